//! A counter for what every worker counts with every message: each thread has a cell of its own, so that
//! no two of them wait for the same line of memory, and a scrape adds them up.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use prometheus_client::metrics::counter::{Atomic, Counter};

/// More threads than this share cells.
const SHARDS: usize = 16;

/// Counts in as many cells as there are threads.
pub type BusyCounter = Counter<u64, Sharded>;

#[derive(Debug, Default)]
pub struct Sharded([Cell; SHARDS]);

/// Alone on its line of memory.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Cell(AtomicU64);

thread_local! {
    static SHARD: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS
    };
}

impl Atomic<u64> for Sharded {
    fn inc(&self) -> u64 {
        self.inc_by(1)
    }

    /// What it returns is what this thread's cell was before.
    fn inc_by(&self, v: u64) -> u64 {
        SHARD.with(|shard| self.0.get(*shard).map_or(0, |cell| cell.0.fetch_add(v, Ordering::Relaxed)))
    }

    fn get(&self) -> u64 {
        self.0.iter().map(|cell| cell.0.load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_whichever_threads_count() {
        let counter = BusyCounter::default();
        std::thread::scope(|scope| {
            for _ in 0..2 * SHARDS {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        counter.inc_by(3);
                    }
                });
            }
        });
        assert_eq!(counter.get(), 2 * SHARDS as u64 * 3000);
    }
}
