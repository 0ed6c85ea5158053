//! Where the process is between its start and its exit.

use std::sync::atomic::{AtomicU8, Ordering};

/// Phases, in the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    Serving = 0,
    /// A drain was asked for: not ready, but still serving until the endpoints have propagated.
    NotReady = 1,
    /// Whatever is new is refused, sessions are being closed.
    Closing = 2,
    /// The drain has ended.
    Drained = 3,
}

/// The phase; it only ever advances.
#[derive(Debug, Default)]
pub struct Lifecycle(AtomicU8);

impl Lifecycle {
    pub fn phase(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
            0 => Phase::Serving,
            1 => Phase::NotReady,
            2 => Phase::Closing,
            _ => Phase::Drained,
        }
    }

    pub fn advance(&self, to: Phase) {
        self.0.fetch_max(to as u8, Ordering::AcqRel);
    }

    /// New handshakes and requests are refused.
    pub fn refuses(&self) -> bool {
        self.phase() >= Phase::Closing
    }
}
