//! Bytes that a destination did not take, exactly sized, and how many of them there are in all.

use std::sync::atomic::{AtomicUsize, Ordering};

/// All sessions together keep so many unsent bytes before reads become small.
const KEPT_ENOUGH: usize = 64 << 20;

static KEPT: AtomicUsize = AtomicUsize::new(0);

/// Bytes that the destination did not take.
#[derive(Debug, Default)]
pub struct Kept {
    bytes: Box<[u8]>,
    sent: usize,
}

impl Kept {
    pub fn keep(bytes: &[u8]) -> Self {
        KEPT.fetch_add(bytes.len(), Ordering::Relaxed);
        Self { bytes: bytes.into(), sent: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The destination has taken so many more.
    pub fn took(&mut self, n: usize) {
        self.sent += n;
    }

    pub fn rest(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        KEPT.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

/// Whether so much is kept that less should be read at a time.
pub fn is_enough() -> bool {
    KEPT.load(Ordering::Relaxed) > KEPT_ENOUGH
}
