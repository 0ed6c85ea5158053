//! How many sessions each key holds: an address, a user.

use std::array;
use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use siphasher::sip128::{Hasher128, SipHasher24};

const SHARDS: usize = 64;

/// Maps smaller than this never shrink: what they would give back is not worth the work.
const SMALL: usize = 64;

type Held = HashMap<u128, u32>;

/// Places by key. A key is a hash under a secret of the process, so that no two can be made to collide:
/// else one user could take the places of another.
#[derive(Debug)]
pub struct Tally {
    secret: [u8; 16],
    shards: [Mutex<Held>; SHARDS],
}

impl Tally {
    pub fn new(secret: [u8; 16]) -> Arc<Self> {
        Arc::new(Self { secret, shards: array::from_fn(|_| Mutex::default()) })
    }

    /// The key of `parts`; each is hashed with its length, so that ("ab", "c") is not ("a", "bc").
    pub fn key(&self, parts: &[&[u8]]) -> u128 {
        let mut hasher = SipHasher24::new_with_key(&self.secret);
        for part in parts {
            hasher.write(&(part.len() as u64).to_le_bytes());
            hasher.write(part);
        }
        hasher.finish128().as_u128()
    }

    fn shard(&self, key: u128) -> MutexGuard<'_, Held> {
        let index = usize::try_from(key % SHARDS as u128).unwrap_or_default();
        let [first, ..] = &self.shards;
        locked(self.shards.get(index).unwrap_or(first))
    }

    /// A place; `None` = `limit` are taken.
    pub fn take(self: &Arc<Self>, key: u128, limit: u32) -> Option<Place> {
        let mut held = self.shard(key);
        let taken = held.get(&key).copied().unwrap_or_default();
        if taken >= limit {
            return None;
        }
        held.insert(key, taken + 1);
        Some(Place(Box::new(Taken { tally: Arc::clone(self), key, along: None })))
    }

    /// Keys with at least one place taken.
    pub fn keys(&self) -> usize {
        self.shards.iter().map(|shard| locked(shard).len()).sum()
    }
}

fn locked(shard: &Mutex<Held>) -> MutexGuard<'_, Held> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One place; given back when dropped. Boxed, for most sessions need none.
#[derive(Debug)]
pub struct Place(Box<Taken>);

#[derive(Debug)]
struct Taken {
    tally: Arc<Tally>,
    key: u128,
    /// What else is given back with the place.
    along: Option<Box<dyn Along>>,
}

/// Something that is given back together with a place, by being dropped.
pub trait Along: Debug + Send + Sync {
    /// What it is called by those who count it.
    fn name(&self) -> &str;
}

impl Place {
    pub fn key(&self) -> u128 {
        self.0.key
    }

    /// The name of what goes along.
    pub fn along(&self) -> Option<&str> {
        self.0.along.as_deref().map(Along::name)
    }

    /// Takes something along.
    pub fn with(mut self, along: impl Along + 'static) -> Self {
        self.0.along = Some(Box::new(along));
        self
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut held = self.tally.shard(self.key);
        match held.get_mut(&self.key) {
            Some(taken) if *taken > 1 => *taken -= 1,
            _ => {
                held.remove(&self.key);
            }
        }
        // HashMaps never shrink by themselves: after a burst the memory should come back.
        if held.capacity() > SMALL && held.len() * 4 < held.capacity() {
            held.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    fn capacity(tally: &Tally) -> usize {
        tally.shards.iter().map(|shard| locked(shard).capacity()).sum()
    }

    #[test]
    fn no_more_than_the_limit_and_a_key_without_places_is_forgotten() {
        let tally = Tally::new([7; 16]);
        let take = |name: &str, limit| tally.take(tally.key(&[b"user", name.as_bytes()]), limit);
        let alice = [take("alice", 2).unwrap(), take("alice", 2).unwrap()];
        assert!(take("alice", 2).is_none());
        let bob = take("bob", 1).unwrap();
        assert_eq!(tally.keys(), 2);
        assert_eq!(alice[0].key(), tally.key(&[b"user", b"alice"]));
        assert_ne!(alice[0].key(), bob.key());
        let [first, second] = alice;
        drop(first);
        let again = take("alice", 2).unwrap();
        assert!(take("alice", 2).is_none());
        drop((second, again, bob));
        assert_eq!(tally.keys(), 0);
    }

    #[test]
    fn a_limit_of_none_or_one_that_was_lowered_admits_nobody() {
        let tally = Tally::new([7; 16]);
        assert!(tally.take(tally.key(&[b"a"]), 0).is_none());
        assert_eq!(tally.keys(), 0);
        let held = [tally.take(tally.key(&[b"a"]), 2).unwrap(), tally.take(tally.key(&[b"a"]), 2).unwrap()];
        assert!(tally.take(tally.key(&[b"a"]), 1).is_none());
        drop(held);
        assert!(tally.take(tally.key(&[b"a"]), 1).is_some());
    }

    #[test]
    fn the_secret_makes_the_key() {
        assert_ne!(Tally::new([1; 16]).key(&[b"a"]), Tally::new([2; 16]).key(&[b"a"]));
    }

    #[test]
    fn after_a_burst_the_memory_comes_back() {
        let tally = Tally::new([7; 16]);
        let burst: Vec<_> =
            (0..50_000_u32).map(|n| tally.take(tally.key(&[&n.to_le_bytes()]), 1).unwrap()).collect();
        assert_eq!(tally.keys(), 50_000);
        assert!(capacity(&tally) >= 50_000);
        drop(burst);
        assert_eq!(tally.keys(), 0);
        assert!(capacity(&tally) <= SHARDS * SMALL, "{}", capacity(&tally));
    }

    #[test]
    fn threads_never_pass_the_limit_and_all_places_come_back() {
        const LIMIT: u32 = 3;
        const THREADS: usize = 8;
        let tally = Tally::new([7; 16]);
        let together = Barrier::new(THREADS);
        let got = AtomicU32::new(0);
        let held = [const { AtomicU32::new(0) }; 4];
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    // All at once for the same key, and none lets go before all have asked.
                    together.wait();
                    let place = tally.take(tally.key(&[b"all"]), LIMIT);
                    got.fetch_add(u32::from(place.is_some()), Ordering::SeqCst);
                    together.wait();
                    drop(place);
                    // Coming and going at will.
                    for round in 0..5_000_usize {
                        let user = round % held.len();
                        let Some(place) = tally.take(tally.key(&[&user.to_le_bytes()]), LIMIT) else {
                            continue;
                        };
                        assert!(held[user].fetch_add(1, Ordering::SeqCst) < LIMIT);
                        thread::yield_now();
                        held[user].fetch_sub(1, Ordering::SeqCst);
                        drop(place);
                    }
                });
            }
        });
        assert_eq!(got.into_inner(), LIMIT);
        assert_eq!(tally.keys(), 0);
    }

    proptest! {
        #[test]
        fn parts_that_differ_have_keys_that_differ(
            one in prop::collection::vec("[ab]{0,3}", 0..4), other in prop::collection::vec("[ab]{0,3}", 0..4),
        ) {
            let tally = Tally::new([7; 16]);
            let key = |parts: &[String]| {
                tally.key(&parts.iter().map(String::as_bytes).collect::<Vec<_>>())
            };
            prop_assert_eq!(key(&one) == key(&other), one == other);
        }
    }
}
