//! When a thread at rest wakes up to look around.

use std::time::Duration;

use tokio::time::Instant;

/// The moments that all those share who look around now and then, so that their thread wakes once for them.
///
/// tokio wakes for a slot of its timers, of 64 or 4096 ms, and then again for each timer in it; but one
/// that is due where its slot begins is done at once. Slots are counted from the start of the runtime.
#[derive(Clone, Copy, Debug)]
pub struct Beat(Instant);

impl Beat {
    /// Of a runtime that is built right now.
    pub fn new() -> Self {
        Self(Instant::now())
    }

    /// Waits for the next multiple of `every`, which is best one of 64 ms.
    pub async fn next(self, every: Duration) {
        let beats = self.0.elapsed().as_nanos() / every.as_nanos().max(1) + 1;
        let beats = u32::try_from(beats).unwrap_or(u32::MAX);
        tokio::time::sleep_until(self.0 + every * beats).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_begins_when_looks_at_the_same_moment() {
        let beat = Beat::new();
        let every = Duration::from_millis(1024);
        for (later, at) in [(0, 1024), (0, 2048), (1, 3072), (1000, 4096), (1100, 6144)] {
            tokio::time::advance(Duration::from_millis(later)).await;
            beat.next(every).await;
            // Timers are exact to a millisecond.
            let late = beat.0.elapsed().saturating_sub(Duration::from_millis(at));
            assert!(late <= Duration::from_millis(1) && beat.0.elapsed().as_millis() >= u128::from(at));
        }
    }
}
