//! Refused requests per address in a sliding window: guessing is slowed down, and a broken client does
//! not cost a signature check each time it comes.

use std::array;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quick_cache::unsync::Cache;
use tokio::time::Instant;

use crate::base::value::Rate;
use crate::policy::peer::prefix;

/// Addresses remembered, at about 110 bytes each (11 MB in all). More would follow a larger flood of
/// addresses, but then each counts little; fewer would let a smaller one make the gate forget.
const MAX_ADDRESSES: usize = 100_000;

/// So that workers seldom meet at one lock. With what the cache knows of those it has let go, each holds
/// 3,750 entries, just below a power of two: its memory grows by doubling.
const SHARDS: usize = 40;

/// Parts of a window. More of them lift the ban sooner after the window's end, and cost two bytes each.
const PARTS: usize = 8;

/// One more, for the oldest part has only partly left the window. It counts whole.
const BUCKETS: usize = PARTS + 1;

/// The attempts of one address. The counts go from the newest part of time to the oldest.
#[derive(Debug)]
struct Window {
    /// Length of a part in nanoseconds.
    part: u64,
    /// The number of the newest part.
    newest: u64,
    counts: [u16; BUCKETS],
}

impl Window {
    fn new(part: u64, newest: u64) -> Self {
        Self { part, newest, counts: [0; BUCKETS] }
    }

    /// Buckets that have left the window for good. Time that runs backwards between two threads takes none.
    fn gone(&self, elapsed: u64) -> usize {
        let parts = (elapsed / self.part).saturating_sub(self.newest);
        usize::try_from(parts).map_or(BUCKETS, |parts| parts.min(BUCKETS))
    }

    fn is_past(&self, elapsed: u64) -> bool {
        self.gone(elapsed) == BUCKETS
    }

    fn count(&mut self, elapsed: u64) {
        let gone = self.gone(elapsed);
        self.counts.rotate_right(gone);
        self.counts.iter_mut().take(gone).for_each(|count| *count = 0);
        self.newest = self.newest.max(elapsed / self.part);
        if let Some(newest) = self.counts.first_mut() {
            *newest = newest.saturating_add(1);
        }
    }

    /// A bucket that is full has lost count, so it is as many as any rate allows.
    fn attempts(&self, elapsed: u64) -> u32 {
        let inside = self.counts.iter().take(BUCKETS - self.gone(elapsed));
        inside.fold(0, |sum, count| match *count {
            u16::MAX => u32::MAX,
            count => sum.saturating_add(count.into()),
        })
    }
}

/// An IPv4 address, or the /64 of an IPv6 address.
type Address = [u8; 8];

/// Not least recently used: addresses that come once give way to those that come again, so that a flood
/// of them does not wash out what is known of the others.
type Windows = Cache<Address, Window>;

/// Attempts of all addresses.
///
/// In no time as long as the rate's do more of them pass unnoticed than it allows. In exchange an address
/// may stay refused for up to an eighth of that time longer than an exact count would have it.
#[derive(Debug)]
pub struct Attempts {
    shards: [Mutex<Windows>; SHARDS],
    /// Random, so that nobody can choose addresses that crowd out another's.
    hasher: RandomState,
    epoch: Instant,
}

impl Default for Attempts {
    fn default() -> Self {
        Self::new()
    }
}

impl Attempts {
    pub fn new() -> Self {
        Self {
            shards: array::from_fn(|_| Mutex::new(empty())),
            hasher: RandomState::new(),
            epoch: Instant::now(),
        }
    }

    fn shard(&self, address: Address) -> MutexGuard<'_, Windows> {
        let index = usize::try_from(self.hasher.hash_one(address) % SHARDS as u64).unwrap_or_default();
        let [first, ..] = &self.shards;
        locked(self.shards.get(index).unwrap_or(first))
    }

    fn elapsed(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Whether the address has used up its `rate` at `now`.
    pub fn is_over(&self, address: IpAddr, rate: Rate, now: Instant) -> bool {
        let (address, elapsed) = (prefix(address), self.elapsed(now));
        let windows = self.shard(address);
        let window = windows.get(&address).filter(|window| window.part == part(rate.per));
        window.map_or(0, |window| window.attempts(elapsed)) >= rate.count
    }

    /// Counts one. A window made for a rate over another time begins anew.
    pub fn count(&self, address: IpAddr, rate: Rate, now: Instant) {
        let (address, elapsed, part) = (prefix(address), self.elapsed(now), part(rate.per));
        let fresh = || Window::new(part, elapsed / part);
        let mut windows = self.shard(address);
        if let Some(mut window) = windows.get_mut(&address) {
            if window.part != part {
                *window = fresh();
            }
            window.count(elapsed);
            return;
        }
        let mut window = fresh();
        window.count(elapsed);
        windows.insert(address, window);
    }

    /// Addresses remembered.
    pub fn tracked(&self) -> usize {
        self.shards.iter().map(|shard| locked(shard).len()).sum()
    }

    /// Forgets those whose window has passed.
    pub fn sweep(&self, now: Instant) {
        let elapsed = self.elapsed(now);
        for shard in &self.shards {
            let mut windows = locked(shard);
            if windows.is_empty() {
                continue;
            }
            windows.retain(|_, window| !window.is_past(elapsed));
            // It would keep the memory of its fullest time.
            if windows.is_empty() {
                *windows = empty();
            }
        }
    }
}

fn empty() -> Windows {
    Cache::new(MAX_ADDRESSES / SHARDS)
}

fn locked(shard: &Mutex<Windows>) -> MutexGuard<'_, Windows> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Rounded up: rounded down, the parts together would be shorter than the window.
fn part(per: Duration) -> u64 {
    u64::try_from(per.as_nanos().div_ceil(PARTS as u128)).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const RATE: Rate = Rate { count: 3, per: Duration::from_secs(60) };
    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// One that is over `RATE` now.
    fn over(address: IpAddr) -> (Attempts, Instant) {
        let attempts = Attempts::new();
        let now = Instant::now();
        for _ in 0..RATE.count {
            assert!(!attempts.is_over(address, RATE, now));
            attempts.count(address, RATE, now);
        }
        assert!(attempts.is_over(address, RATE, now));
        (attempts, now)
    }

    /// The nth address of a flood: each a /64 of its own.
    fn nth(n: u32) -> IpAddr {
        let [a, b] = [n >> 16, n & 0xffff].map(|half| u16::try_from(half).unwrap());
        Ipv6Addr::new(0x2001, 0xdb8, a, b, 1, 2, 3, 4).into()
    }

    fn memory(attempts: &Attempts) -> usize {
        attempts.shards.iter().map(|shard| locked(shard).memory_used().total()).sum()
    }

    #[test]
    fn an_address_is_refused_for_the_window_and_at_most_an_eighth_longer() {
        let (attempts, now) = over(HERE);
        assert!(attempts.is_over(HERE, RATE, now + RATE.per));
        assert!(!attempts.is_over(HERE, RATE, now + RATE.per * 9 / 8));
        assert!(!attempts.is_over(ip("203.0.113.8"), RATE, now));
    }

    #[test]
    fn a_64_is_one_address_and_a_mapped_one_is_ipv4() {
        let (attempts, now) = over(ip("2001:db8::1"));
        assert!(attempts.is_over(ip("2001:db8::ffff:ffff:ffff:ffff"), RATE, now));
        assert!(!attempts.is_over(ip("2001:db8:0:1::1"), RATE, now));
        let (attempts, now) = over(ip("::ffff:203.0.113.7"));
        assert!(attempts.is_over(HERE, RATE, now));
        assert_eq!(attempts.tracked(), 1);
    }

    #[test]
    fn another_count_holds_at_once_and_another_time_begins_anew() {
        let (attempts, now) = over(HERE);
        assert!(!attempts.is_over(HERE, Rate { count: 4, ..RATE }, now));
        assert!(attempts.is_over(HERE, Rate { count: 1, ..RATE }, now));
        let other = Rate { count: 2, per: Duration::from_secs(10) };
        assert!(!attempts.is_over(HERE, other, now));
        attempts.count(HERE, other, now);
        assert!(!attempts.is_over(HERE, other, now));
        attempts.count(HERE, other, now);
        assert!(attempts.is_over(HERE, other, now));
        assert_eq!(attempts.tracked(), 1);
    }

    #[test]
    fn time_that_runs_backwards_loses_nothing() {
        let (attempts, now) = over(HERE);
        let late = now + RATE.per;
        attempts.count(HERE, RATE, late);
        assert!(attempts.is_over(HERE, RATE, now));
        for _ in 1..RATE.count {
            attempts.count(HERE, RATE, now);
        }
        assert!(attempts.is_over(HERE, RATE, late + RATE.per));
    }

    #[test]
    fn more_than_a_bucket_can_count_is_over_at_any_rate() {
        let (attempts, now) = (Attempts::new(), Instant::now());
        let rate = Rate { count: u32::MAX, per: RATE.per };
        for _ in 1..u16::MAX {
            attempts.count(HERE, rate, now);
        }
        assert!(!attempts.is_over(HERE, rate, now));
        attempts.count(HERE, rate, now);
        attempts.count(HERE, rate, now);
        assert!(attempts.is_over(HERE, rate, now));
    }

    #[test]
    fn the_longest_and_the_shortest_times_are_counted() {
        for per in [Duration::from_nanos(1), Duration::from_millis(1), crate::base::value::LONGEST] {
            let (attempts, now) = (Attempts::new(), Instant::now());
            let rate = Rate { count: 1, per };
            attempts.count(HERE, rate, now);
            assert!(attempts.is_over(HERE, rate, now + per), "{per:?}");
            assert!(!attempts.is_over(HERE, rate, now + per * 2 + Duration::from_nanos(9)), "{per:?}");
        }
    }

    #[test]
    fn sweeping_forgets_what_has_passed_and_nothing_else() {
        let (attempts, now) = over(HERE);
        attempts.count(nth(1), Rate { per: RATE.per * 2, ..RATE }, now);
        attempts.sweep(now + RATE.per);
        assert_eq!(attempts.tracked(), 2);
        assert!(attempts.is_over(HERE, RATE, now + RATE.per));
        attempts.sweep(now + RATE.per * 9 / 8);
        assert_eq!(attempts.tracked(), 1);
        attempts.sweep(now + RATE.per * 3);
        assert_eq!(attempts.tracked(), 0);
        assert_eq!(memory(&attempts), 0);
    }

    #[test]
    fn a_flood_is_bounded_and_does_not_wash_out_those_that_come_again() {
        let early = HERE;
        let (attempts, now) = over(early);
        let late = ip("203.0.113.8");
        for n in 0..300_000 {
            attempts.count(nth(n), RATE, now);
            // It only knocks, for it is refused.
            if n % 1_000 == 0 {
                assert!(attempts.is_over(early, RATE, now), "forgotten after {n}");
            }
            // It comes when all places are taken.
            if n >= 200_000 && n % 500 == 0 {
                let tried = (n - 200_000) / 500;
                assert_eq!(attempts.is_over(late, RATE, now), tried >= RATE.count, "after {n}");
                attempts.count(late, RATE, now);
            }
        }
        assert!(attempts.tracked() <= MAX_ADDRESSES);
        assert!(attempts.tracked() > MAX_ADDRESSES * 9 / 10, "{}", attempts.tracked());
        assert!(size_of::<Window>() <= 40);
        assert!(memory(&attempts) < MAX_ADDRESSES * 120, "{}", memory(&attempts));
    }

    #[test]
    fn no_attempt_is_lost_between_threads() {
        let (attempts, now) = (Attempts::new(), Instant::now());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|_| attempts.count(HERE, RATE, now)));
            }
        });
        assert!(attempts.is_over(HERE, Rate { count: 4_000, ..RATE }, now));
        assert!(!attempts.is_over(HERE, Rate { count: 4_001, ..RATE }, now));
    }

    /// Steps of time as parts in 64 of the window: mostly short, now and then beyond it.
    fn steps() -> impl Strategy<Value = Vec<u32>> {
        prop::collection::vec(prop_oneof![6 => 0..12_u32, 2 => 50..90_u32, 1 => 0..300_u32], 1..60)
    }

    proptest! {
        /// Against a list of all times at which an attempt was counted.
        #[test]
        fn no_window_hides_more_than_the_rate_and_none_lasts_an_eighth_too_long(
            steps in steps(),
            count in 1..7_u32,
            // Short ones too, where a part is a few nanoseconds and rounding shows.
            nanos in prop_oneof![1..100_u64, 1_000..100_000_u64],
            begin in 0..100_000_u64,
        ) {
            let rate = Rate { count, per: Duration::from_nanos(nanos) };
            let attempts = Attempts::new();
            let mut now = Instant::now() + Duration::from_nanos(begin);
            let mut counted: Vec<Instant> = Vec::new();
            let within = |counted: &[Instant], now: Instant, span: Duration| {
                counted.iter().filter(|then| now - **then <= span).count() >= count as usize
            };
            // The parts are whole nanoseconds.
            let longest = rate.per + rate.per / 8 + Duration::from_nanos(9);
            for step in steps {
                now += rate.per * step / 64;
                let over = attempts.is_over(HERE, rate, now);
                if within(&counted, now, rate.per) {
                    prop_assert!(over, "{counted:?} at {now:?}");
                }
                if over {
                    prop_assert!(within(&counted, now, longest), "{counted:?} at {now:?}");
                }
                attempts.count(HERE, rate, now);
                counted.push(now);
            }
        }
    }
}
