//! How many of something may come in any stretch of time.

use std::time::Duration;

use crate::base::value::Rate;

/// A sliding count over two buckets: never more than the rate in any window of its length, to within
/// the evenness of the last one.
#[derive(Clone, Debug, Default)]
pub struct Window {
    started: Duration,
    before: u64,
    now: u64,
}

impl Window {
    /// How many more may come at `now` (time since any fixed start).
    pub fn budget(&mut self, rate: Rate, now: Duration) -> u64 {
        let age = now.saturating_sub(self.started);
        if age >= rate.per * 2 {
            *self = Self { started: now, before: 0, now: 0 };
        } else if age >= rate.per {
            *self = Self { started: self.started + rate.per, before: self.now, now: 0 };
        }
        let age = now.saturating_sub(self.started).as_nanos();
        let per = rate.per.as_nanos().max(1);
        let weighted = u128::from(self.before) * per.saturating_sub(age);
        let before = u64::try_from(weighted.div_ceil(per)).unwrap_or(u64::MAX);
        u64::from(rate.count).saturating_sub(before.saturating_add(self.now))
    }

    pub fn spend(&mut self, count: u64) {
        self.now = self.now.saturating_add(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_never_lets_twice_the_rate_through() {
        let rate = Rate { count: 10, per: Duration::from_secs(1) };
        let mut window = Window::default();
        let at = Duration::from_millis;
        assert_eq!(window.budget(rate, at(990)), 10);
        window.spend(10);
        assert_eq!(window.budget(rate, at(1010)), 0);
        assert_eq!(window.budget(rate, at(1500)), 5);
        assert_eq!(window.budget(rate, at(3000)), 10);
    }
}
