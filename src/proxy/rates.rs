//! How much a client may still send: messages by the configured rate, pings and pongs by a fixed one.

use std::time::Duration;

use tokio::time::Instant;

use crate::base::value::Rate;
use crate::policy::frame::{Budget, Counts, MAX_CONTROLS_PER_SECOND};
use crate::policy::window::Window;

const CONTROLS: Rate = Rate { count: MAX_CONTROLS_PER_SECOND, per: Duration::from_secs(1) };
/// Of a client that has sent nothing yet that is limited.
const UNSPENT: Budget = Budget { controls: MAX_CONTROLS_PER_SECOND as u64, ..Budget::UNLIMITED };

/// The account of one client; it takes no room before there is something to count.
#[derive(Debug, Default)]
pub struct Rates(Option<Box<Windows>>);

#[derive(Debug)]
struct Windows {
    began: Instant,
    messages: Window,
    controls: Window,
}

impl Rates {
    fn windows(&mut self, now: Instant) -> &mut Windows {
        let begin =
            || Box::new(Windows { began: now, messages: Window::default(), controls: Window::default() });
        self.0.get_or_insert_with(begin)
    }

    pub fn budget(&mut self, messages: Option<Rate>, now: Instant) -> Budget {
        if self.0.is_none() && messages.is_none() {
            return UNSPENT;
        }
        let windows = self.windows(now);
        let since = now.duration_since(windows.began);
        Budget {
            messages: messages.map_or(u64::MAX, |rate| windows.messages.budget(rate, since)),
            controls: windows.controls.budget(CONTROLS, since),
        }
    }

    pub fn spend(&mut self, counts: &Counts, now: Instant) {
        if self.0.is_some() || counts.controls() > 0 {
            let windows = self.windows(now);
            windows.messages.spend(counts.messages());
            windows.controls.spend(counts.controls());
        }
    }
}
