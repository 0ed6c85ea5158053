//! The live sessions: who is on which, what went over it, and the switch that ends it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use prometheus_client::metrics::gauge::Gauge;

use super::permits::Permit;
use super::tally::Place;
use crate::base::clock::Unix;
use crate::base::reject::Reason;
use crate::policy::claims::Facts;
use crate::telemetry::logging::Line;
use crate::telemetry::record::Describe;

/// The switch of one session. The first reason counts.
#[derive(Debug, Default)]
pub struct Switch {
    /// 0 = alive, else when it was to end in microseconds since the epoch, and in the low byte a
    /// reason's number + 1.
    end: AtomicU64,
    waker: AtomicWaker,
}

/// Why a session is to end, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub reason: Reason,
    pub since: Unix,
}

impl Switch {
    /// Ends the session, unless something else has: `true` = it was this.
    pub fn end(&self, reason: Reason, since: Unix) -> bool {
        let micros = u64::try_from(since.0.as_micros()).unwrap_or_default();
        let end = micros << 8 | (u64::from(reason as u8) + 1);
        let first = self.end.compare_exchange(0, end, Ordering::AcqRel, Ordering::Acquire).is_ok();
        self.waker.wake();
        first
    }

    pub fn has_ended(&self) -> bool {
        self.end.load(Ordering::Acquire) != 0
    }

    /// Registers the waker first, so that no end is missed.
    pub fn ended(&self, waker: &Waker) -> Option<End> {
        self.waker.register(waker);
        let end = self.end.load(Ordering::Acquire);
        let number = usize::try_from(end & 0xff).ok()?.checked_sub(1)?;
        let reason = Reason::ALL.get(number).copied()?;
        Some(End { reason, since: Unix(Duration::from_micros(end >> 8)) })
    }

    /// As [`Self::ended`], for those that wait for nothing else.
    pub fn poll_ended(&self, cx: &Context<'_>) -> Poll<End> {
        self.ended(cx.waker()).map_or(Poll::Pending, Poll::Ready)
    }
}

/// What a session has to say about itself.
pub trait Subject: Describe {
    fn facts(&self) -> Option<&Facts>;
    /// Nothing of it is ever closed for a policy's sake.
    fn is_shadow(&self) -> bool;
}

/// What a session takes away from others while it lives.
#[derive(Debug, Default)]
pub struct Places {
    pub all: Option<Permit>,
    pub address: Option<Place>,
    pub user: Option<Place>,
}

/// Traffic as others may see it: written by the session alone, now and then.
#[derive(Debug, Default)]
pub struct Counters {
    pub received_messages: AtomicU64,
    pub received_bytes: AtomicU64,
    pub sent_messages: AtomicU64,
    pub sent_bytes: AtomicU64,
    /// Milliseconds since the epoch; 0 = none yet.
    pub last_data: AtomicU64,
}

/// One session, or a handshake past its verdict.
#[derive(Debug)]
pub struct Entry<T> {
    pub id: u64,
    pub started: Unix,
    pub subject: T,
    pub switch: Switch,
    pub counters: Counters,
    /// When it ends with its token, in milliseconds since the epoch; 0 = never.
    pub expires: AtomicU64,
    places: Mutex<Places>,
}

impl<T> Entry<T> {
    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a user's place along.
    pub fn hold(&self, place: Place) {
        self.places().user = Some(place);
    }
}

impl<T: Describe> Describe for Arc<Entry<T>> {
    fn describe<'l>(&self, line: Line<'l>) -> Line<'l> {
        self.subject.describe(line)
    }
}

#[derive(Debug)]
struct Shard<T> {
    sessions: HashMap<u64, Arc<Entry<T>>>,
    /// Sessions of each user, by the hash of issuer and sub.
    users: HashMap<u64, u32>,
}

const SHARDS: u64 = 64;

/// All live sessions, and handshakes past their verdict.
#[derive(Debug)]
pub struct Sessions<T> {
    shards: Vec<Mutex<Shard<T>>>,
    next: AtomicU64,
    users: Gauge,
}

fn user_hash(iss: &str, sub: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (iss, sub).hash(&mut hasher);
    hasher.finish()
}

impl<T: Subject> Sessions<T> {
    /// `users` is the gauge of distinct users.
    pub fn new(users: Gauge) -> Arc<Self> {
        let shard = || Mutex::new(Shard { sessions: HashMap::new(), users: HashMap::new() });
        let shards = (0..SHARDS).map(|_| shard()).collect();
        Arc::new(Self { shards, next: AtomicU64::new(1), users })
    }

    /// Registers a session: from now on it can be ended from outside.
    pub fn register(self: &Arc<Self>, subject: T, places: Places) -> Registration<T> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let user = subject.facts().and_then(|facts| Some(user_hash(facts.iss(), facts.sub()?)));
        let entry = Arc::new(Entry {
            id,
            started: Unix::now(),
            subject,
            switch: Switch::default(),
            counters: Counters::default(),
            expires: AtomicU64::new(0),
            places: Mutex::new(places),
        });
        let hash = user.unwrap_or(id);
        let mut shard = self.shard(hash);
        shard.sessions.insert(id, Arc::clone(&entry));
        if let Some(user) = user {
            let count = shard.users.entry(user).or_default();
            *count += 1;
            if *count == 1 {
                self.users.inc();
            }
        }
        drop(shard);
        Registration { sessions: Arc::clone(self), hash, has_user: user.is_some(), entry }
    }

    /// Those that match; nothing is held meanwhile.
    pub fn matching(&self, mut matches: impl FnMut(&Entry<T>) -> bool) -> Vec<Arc<Entry<T>>> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            found.extend(shard.sessions.values().filter(|entry| matches(entry)).map(Arc::clone));
        }
        found
    }

    /// As [`Self::matching`], among the sessions of one user.
    pub fn of_user(&self, iss: &str, sub: &str) -> Vec<Arc<Entry<T>>> {
        let shard = self.shard(user_hash(iss, sub));
        let is_theirs = |entry: &&Arc<Entry<T>>| {
            let facts = entry.subject.facts();
            facts.is_some_and(|facts| facts.iss() == iss && facts.sub() == Some(sub))
        };
        shard.sessions.values().filter(is_theirs).map(Arc::clone).collect()
    }

    /// Ends every session that matches; the count of them.
    pub fn end_where(&self, reason: Reason, matches: impl FnMut(&Entry<T>) -> bool) -> usize {
        // Collected under the locks, woken without them.
        let (now, entries) = (Unix::now(), self.matching(matches));
        entries.iter().filter(|entry| entry.switch.end(reason, now)).count()
    }

    /// Ends the oldest session of a user that holds a place under this key, and frees the place at once.
    pub fn displace_oldest(&self, iss: &str, sub: &str, key: u128) -> bool {
        let holds = |entry: &Arc<Entry<T>>| {
            !entry.subject.is_shadow() && entry.places().user.as_ref().is_some_and(|p| p.key() == key)
        };
        let oldest = self.of_user(iss, sub).into_iter().filter(holds).min_by_key(|entry| entry.id);
        let Some(oldest) = oldest else { return false };
        oldest.switch.end(Reason::UserSessionsExceeded, Unix::now());
        oldest.places().user = None;
        true
    }
}

impl<T> Sessions<T> {
    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard<T>> {
        // The index is in range: there are SHARDS of them.
        let index = usize::try_from(hash % SHARDS).unwrap_or_default();
        let shard = self.shards.get(index).or(self.shards.first());
        #[expect(clippy::expect_used, reason = "there is at least one shard")]
        shard.expect("shards").lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn count(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).sessions.len())
            .sum()
    }
}

/// A place among the live sessions; left when dropped.
#[derive(Debug)]
pub struct Registration<T> {
    sessions: Arc<Sessions<T>>,
    hash: u64,
    has_user: bool,
    pub entry: Arc<Entry<T>>,
}

impl<T> Drop for Registration<T> {
    fn drop(&mut self) {
        *self.entry.places() = Places::default();
        let mut shard = self.sessions.shard(self.hash);
        shard.sessions.remove(&self.entry.id);
        if self.has_user
            && let Some(count) = shard.users.get_mut(&self.hash)
        {
            *count -= 1;
            if *count == 0 {
                shard.users.remove(&self.hash);
                self.sessions.users.dec();
            }
        }
        // HashMaps never shrink by themselves: after a burst the memory should come back.
        if shard.sessions.capacity() > 64 && shard.sessions.len() * 4 < shard.sessions.capacity() {
            shard.sessions.shrink_to_fit();
            shard.users.shrink_to_fit();
        }
    }
}
