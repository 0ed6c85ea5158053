//! Bytes that a destination did not take, exactly sized, and how many of them there are in all.

use std::sync::atomic::{AtomicUsize, Ordering};

/// All sessions together keep so many unsent bytes before reads become small.
const KEPT_ENOUGH: usize = 64 << 20;

static KEPT: AtomicUsize = AtomicUsize::new(0);

/// Bytes that the destination did not take; as small as can be when there are none.
#[derive(Debug, Default)]
pub struct Kept(Option<Box<Waiting>>);

#[derive(Debug)]
struct Waiting {
    bytes: Box<[u8]>,
    sent: usize,
}

impl Kept {
    pub fn keep(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self::default();
        }
        KEPT.fetch_add(bytes.len(), Ordering::Relaxed);
        Self(Some(Box::new(Waiting { bytes: bytes.into(), sent: 0 })))
    }

    /// The destination has taken so many more.
    pub fn took(&mut self, n: usize) {
        if let Some(waiting) = &mut self.0 {
            waiting.sent += n;
            if waiting.sent >= waiting.bytes.len() {
                self.0 = None;
            }
        }
    }

    pub fn rest(&self) -> &[u8] {
        self.0.as_ref().and_then(|waiting| waiting.bytes.get(waiting.sent..)).unwrap_or_default()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        KEPT.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

/// Whether so much is kept that less should be read at a time.
pub fn is_enough() -> bool {
    KEPT.load(Ordering::Relaxed) > KEPT_ENOUGH
}
