//! Limits that are counts: a permit is held as long as what it stands for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// So many at a time. `None` = no limit; they are counted all the same.
#[derive(Debug)]
pub struct Permits {
    /// `u32::MAX` = none.
    limit: AtomicU32,
    taken: AtomicU32,
}

/// One of them; returned when dropped.
#[derive(Debug)]
pub struct Permit(Arc<Permits>);

/// A permit that a connection and what becomes of it share.
pub type Slot = Arc<Permit>;

impl Permits {
    pub fn new(limit: Option<u32>) -> Arc<Self> {
        Arc::new(Self { limit: limit.unwrap_or(u32::MAX).into(), taken: AtomicU32::new(0) })
    }

    /// Who holds more than that keeps it.
    pub fn set_limit(&self, limit: Option<u32>) {
        self.limit.store(limit.unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// `None` = all are taken.
    pub fn take(self: &Arc<Self>) -> Option<Permit> {
        let limit = self.limit.load(Ordering::Relaxed);
        let more = |taken: u32| (taken < limit).then(|| taken + 1);
        self.taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .ok()
            .map(|_| Permit(Arc::clone(self)))
    }

    pub fn taken(&self) -> u32 {
        self.taken.load(Ordering::Acquire)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_limit_and_all_come_back() {
        let permits = Permits::new(Some(2));
        let held = [permits.take().unwrap(), permits.take().unwrap()];
        assert!(permits.take().is_none());
        drop(held);
        assert_eq!(permits.taken(), 0);
        assert!(permits.take().is_some());
    }
}
