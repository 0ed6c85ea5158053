//! What the bytes of a session are held against while they go by, and where they are counted.

use std::sync::atomic::Ordering;

use tokio::time::Instant;

use crate::policy::frame::{Counts, FrameLimits, Kind, Scan, Sender, Tag};
use crate::state::sessions::{Counters, Switch};
use crate::telemetry::metrics::Metrics;

/// Of one session, for one poll.
#[derive(Clone, Copy, Debug)]
pub struct Watch<'a> {
    pub limits: &'a FrameLimits,
    pub metrics: &'a Metrics,
    /// Report instead of stopping.
    pub shadow: bool,
    /// Pongs with it are the gate's own.
    pub tag: Option<&'a Tag>,
    /// Once it is thrown the client is no longer read.
    pub switch: &'a Switch,
    pub counters: &'a Counters,
    /// When the session began, by both clocks; the wall's in microseconds since the epoch.
    pub began: (Instant, u64),
}

impl Watch<'_> {
    /// Lets others see what has passed; the moment first, so that none is without one.
    pub fn passed(&self, sender: Sender, scan: &Scan, moved: Option<Instant>) {
        if let Some(now) = moved {
            let (instant, wall) = self.began;
            let since = now.duration_since(instant);
            let micros = wall + since.as_secs() * 1_000_000 + u64::from(since.subsec_micros());
            self.counters.last_data.store(micros / 1000, Ordering::Release);
        }
        let Metrics { bytes_received, messages_received, bytes_sent, messages_sent, .. } = self.metrics;
        let (passed, bytes, messages) = match sender {
            Sender::Client => (&self.counters.received, bytes_received, messages_received),
            Sender::Backend => (&self.counters.sent, bytes_sent, messages_sent),
        };
        passed.add(scan.counts.messages(), scan.approved as u64);
        bytes.inc_by(scan.approved as u64);
        if scan.counts != Counts::default() {
            for (kind, counter) in Kind::ALL.into_iter().zip(messages) {
                let count = scan.counts.of(kind);
                if count > 0 {
                    counter.inc_by(count);
                }
            }
        }
    }
}
