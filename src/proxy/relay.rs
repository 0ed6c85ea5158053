//! Both directions of a live socket, and what ended them.

use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::splice::Half;
use crate::base::clock::Unix;
use crate::base::reject::Reason;
use crate::policy::frame::{Closed, Sender};
use crate::state::sessions::Counters;

/// Why a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub reason: Reason,
    /// The Close that one side sent.
    pub closed: Option<Closed>,
    /// When it was ended from outside.
    pub since: Option<Unix>,
}

impl Ended {
    pub fn by(reason: Reason) -> Self {
        Self { reason, closed: None, since: None }
    }
}

/// Both directions.
#[derive(Debug)]
pub struct Relay {
    pub received: Half,
    pub sent: Half,
    /// When it began, by both clocks.
    began: (Instant, Unix),
    /// The switch knows the task, which is one and the same for life.
    pub watched: bool,
    /// The first Close that went by.
    pub closed: Option<Ended>,
    /// When the answer to it is no longer waited for.
    pub give_up: Option<Instant>,
    /// Nobody's silence is judged before the next timer.
    pub held_up: bool,
}

impl Relay {
    pub fn new(now: Instant) -> Self {
        Self {
            received: Half::new(Sender::Client, now),
            sent: Half::new(Sender::Backend, now),
            began: (now, Unix::now()),
            watched: false,
            closed: None,
            give_up: None,
            held_up: false,
        }
    }

    /// When a message last moved, in either direction.
    pub fn last_data(&self) -> Instant {
        self.received.last_data.max(self.sent.last_data)
    }

    /// Lets others see what went by.
    pub fn publish(&self, counters: &Counters) {
        let Self { received, sent, .. } = self;
        let was = |one: &std::sync::atomic::AtomicU64| one.load(Ordering::Relaxed);
        if received.bytes == was(&counters.received_bytes) && sent.bytes == was(&counters.sent_bytes) {
            return;
        }
        let messages = was(&counters.received_messages) + was(&counters.sent_messages);
        for (counter, now) in [
            (&counters.received_messages, received.messages),
            (&counters.received_bytes, received.bytes),
            (&counters.sent_messages, sent.messages),
            (&counters.sent_bytes, sent.bytes),
        ] {
            counter.store(now, Ordering::Relaxed);
        }
        if received.messages + sent.messages != messages {
            let (instant, wall) = self.began;
            let at = wall.0 + self.last_data().duration_since(instant);
            counters.last_data.store(u64::try_from(at.as_millis()).unwrap_or_default(), Ordering::Relaxed);
        }
    }
}
