//! The live sessions: who is on which, what went over it, and the switch that ends it.

use std::collections::BTreeMap;
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
#[repr(C)]
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
        self.end_now()
    }

    /// As [`Self::ended`], for those whose waker is registered.
    pub fn end_now(&self) -> Option<End> {
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
    /// The token that it lives by.
    fn facts(&self) -> Option<Arc<Facts>>;
    /// Nothing of it is ever closed for a policy's sake.
    fn is_shadow(&self) -> bool;
    /// In shadow mode: what would have ended it.
    fn note(&self, reason: Reason);
    fn noted(&self) -> Option<Reason>;
}

/// What a session takes away from others while it lives.
#[derive(Debug, Default)]
pub struct Places {
    pub all: Option<Permit>,
    pub address: Option<Place>,
    pub user: Option<Place>,
}

/// What has passed in one direction: written by the session alone, so that nothing is ever added at once.
#[derive(Debug, Default)]
pub struct Passed {
    messages: AtomicU64,
    bytes: AtomicU64,
}

impl Passed {
    pub fn add(&self, messages: u64, bytes: u64) {
        for (counter, more) in [(&self.messages, messages), (&self.bytes, bytes)] {
            counter.store(counter.load(Ordering::Relaxed) + more, Ordering::Release);
        }
    }

    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::Acquire)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }
}

/// The traffic of a session, as others may see it.
#[derive(Debug, Default)]
pub struct Counters {
    pub received: Passed,
    pub sent: Passed,
    /// Milliseconds since the epoch; 0 = none yet.
    pub last_data: AtomicU64,
}

/// One session, or a handshake past its verdict. In this order what every message touches is in one line
/// of the cache.
#[derive(Debug)]
#[repr(C)]
pub struct Entry<T> {
    pub counters: Counters,
    pub switch: Switch,
    pub id: u64,
    pub started: Unix,
    pub subject: T,
    /// How long the last ping took that was answered, in microseconds; 0 = none was.
    pub rtt: AtomicU64,
    /// When it ends with its token, in milliseconds since the epoch; 0 = never.
    pub expires: AtomicU64,
    places: Mutex<Places>,
}

impl<T> Entry<T> {
    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends for a newer session of its user, and frees the place at once.
    fn give_way(&self) {
        self.switch.end(Reason::UserSessionsExceeded, Unix::now());
        self.places().user = None;
    }

    /// Takes a user's place along.
    pub fn hold(&self, place: Place) {
        self.places().user = Some(place);
    }

    /// The key of the user whose place it holds.
    pub fn user_key(&self) -> Option<u128> {
        self.places().user.as_ref().map(Place::key)
    }

    /// The name by which other replicas count it.
    pub fn shared_name(&self) -> Option<String> {
        self.places().user.as_ref()?.along().map(str::to_owned)
    }
}

impl<T: Describe> Describe for Arc<Entry<T>> {
    fn describe<'l>(&self, line: Line<'l>) -> Line<'l> {
        self.subject.describe(line)
    }
}

/// By the hash of issuer and sub (of nobody: by the id), and the id.
type Shard<T> = BTreeMap<(u64, u64), Arc<Entry<T>>>;

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
        let shards = (0..SHARDS).map(|_| Mutex::new(BTreeMap::new())).collect();
        Arc::new(Self { shards, next: AtomicU64::new(1), users })
    }

    /// Registers a session: from now on it can be ended from outside.
    pub fn register(self: &Arc<Self>, subject: T, places: Places) -> Registration<T> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let facts = subject.facts();
        let user = facts.and_then(|facts| Some(user_hash(facts.iss(), facts.sub()?)));
        let entry = Arc::new(Entry {
            id,
            started: Unix::now(),
            subject,
            switch: Switch::default(),
            counters: Counters::default(),
            rtt: AtomicU64::new(0),
            expires: AtomicU64::new(0),
            places: Mutex::new(places),
        });
        let hash = user.unwrap_or(id);
        let mut shard = self.shard(hash);
        if user.is_some() && of(&shard, hash).next().is_none() {
            self.users.inc();
        }
        shard.insert((hash, id), Arc::clone(&entry));
        drop(shard);
        Registration { sessions: Arc::clone(self), hash, has_user: user.is_some(), entry }
    }

    /// Those that match; nothing is held meanwhile.
    pub fn matching(&self, mut matches: impl FnMut(&Entry<T>) -> bool) -> Vec<Arc<Entry<T>>> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            found.extend(shard.values().filter(|entry| matches(entry)).map(Arc::clone));
        }
        found
    }

    /// As [`Self::matching`], among the sessions of one user.
    pub fn of_user(&self, iss: &str, sub: &str, matches: impl Fn(&Entry<T>) -> bool) -> Vec<Arc<Entry<T>>> {
        let hash = user_hash(iss, sub);
        let shard = self.shard(hash);
        let theirs = of(&shard, hash).filter(|entry| matches(entry)).filter(|entry| is_of(entry, iss, sub));
        theirs.map(Arc::clone).collect()
    }

    /// Whether a user has any session.
    pub fn has_user(&self, iss: &str, sub: &str) -> bool {
        let hash = user_hash(iss, sub);
        of(&self.shard(hash), hash).any(|entry| is_of(entry, iss, sub))
    }

    /// Ends every session that matches; the count of them.
    pub fn end_where(&self, reason: Reason, matches: impl FnMut(&Entry<T>) -> bool) -> usize {
        // Collected under the locks, woken without them.
        let (now, entries) = (Unix::now(), self.matching(matches));
        entries.iter().filter(|entry| entry.switch.end(reason, now)).count()
    }

    /// Ends the oldest session of a user that holds a place under this key, and frees the place at once.
    pub fn displace_oldest(&self, iss: &str, sub: &str, key: u128) -> bool {
        let holds = |entry: &Entry<T>| !entry.subject.is_shadow() && entry.user_key() == Some(key);
        let oldest = self.of_user(iss, sub, holds).into_iter().min_by_key(|entry| entry.id);
        let Some(oldest) = oldest else { return false };
        oldest.give_way();
        true
    }

    /// As [`Self::displace_oldest`], by its id.
    pub fn displace(&self, id: u64) {
        let it = self.matching(|entry| entry.id == id && !entry.subject.is_shadow());
        if let Some(entry) = it.first() {
            entry.give_way();
        }
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
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
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
        shard.remove(&(self.hash, self.entry.id));
        if self.has_user && of(&shard, self.hash).next().is_none() {
            self.sessions.users.dec();
        }
    }
}

/// Whether it is this user's: hashes of two users may be the same.
fn is_of<T: Subject>(entry: &Entry<T>, iss: &str, sub: &str) -> bool {
    entry.subject.facts().is_some_and(|facts| facts.iss() == iss && facts.sub() == Some(sub))
}

/// The sessions under one hash.
fn of<T>(shard: &Shard<T>, hash: u64) -> impl Iterator<Item = &Arc<Entry<T>>> {
    shard.range((hash, 0)..=(hash, u64::MAX)).map(|(_, entry)| entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::permits::Permits;
    use crate::state::tally::Tally;
    use serde_json::json;

    #[derive(Debug)]
    struct Someone {
        facts: Option<Arc<Facts>>,
        shadow: bool,
    }

    impl Describe for Someone {
        fn describe<'l>(&self, line: Line<'l>) -> Line<'l> {
            line
        }
    }

    impl Subject for Someone {
        fn facts(&self) -> Option<Arc<Facts>> {
            self.facts.clone()
        }
        fn is_shadow(&self) -> bool {
            self.shadow
        }
        fn note(&self, _: Reason) {}
        fn noted(&self) -> Option<Reason> {
            None
        }
    }

    fn someone(iss: &str, sub: &str) -> Someone {
        Someone { facts: Some(Arc::new(Facts::said(&json!({"iss": iss, "sub": sub})))), shadow: false }
    }

    fn nobody() -> Someone {
        Someone { facts: None, shadow: false }
    }

    fn end_of(registration: &Registration<Someone>) -> Option<Reason> {
        registration.entry.switch.ended(Waker::noop()).map(|end| end.reason)
    }

    #[test]
    fn sessions_are_counted_ended_and_forgotten() {
        let gauge = Gauge::default();
        let sessions = Sessions::new(gauge.clone());
        let register = |someone| sessions.register(someone, Places::default());
        let alice = [register(someone("x", "alice")), register(someone("x", "alice"))];
        let (bob, nobody) = (register(someone("x", "bob")), register(nobody()));
        assert_eq!((sessions.count(), gauge.get()), (4, 2));
        let is_alice =
            |entry: &Entry<Someone>| entry.subject.facts().is_some_and(|facts| facts.sub() == Some("alice"));
        assert_eq!(sessions.end_where(Reason::Draining, is_alice), 2);
        assert_eq!(sessions.end_where(Reason::OperatorClosed, is_alice), 0, "they were ended already");
        for session in &alice {
            assert_eq!(end_of(session), Some(Reason::Draining));
        }
        assert_eq!((end_of(&bob), end_of(&nobody)), (None, None));
        drop(alice);
        assert_eq!((sessions.count(), gauge.get()), (2, 1));
        drop((bob, nobody));
        assert_eq!((sessions.count(), gauge.get()), (0, 0));
    }

    #[test]
    fn users_of_two_issuers_are_two() {
        let gauge = Gauge::default();
        let sessions = Sessions::new(gauge.clone());
        let _held = ["x", "y"].map(|iss| sessions.register(someone(iss, "alice"), Places::default()));
        assert_eq!(gauge.get(), 2);
        assert_eq!(sessions.of_user("x", "alice", |_| true).len(), 1);
        assert_eq!(sessions.of_user("z", "alice", |_| true).len(), 0);
        assert_eq!((sessions.has_user("y", "alice"), sessions.has_user("z", "alice")), (true, false));
    }

    #[test]
    fn the_first_reason_counts_and_the_moment_is_kept() {
        let switch = Switch::default();
        let moment = Unix(Duration::from_micros(1_700_000_000_123_456));
        assert!(switch.end(Reason::TokenExpired, moment));
        assert!(!switch.end(Reason::Draining, Unix(Duration::ZERO)));
        assert_eq!(switch.ended(Waker::noop()), Some(End { reason: Reason::TokenExpired, since: moment }));
    }

    #[test]
    fn every_reason_can_end_a_session() {
        for reason in Reason::ALL {
            let switch = Switch::default();
            switch.end(*reason, Unix::now());
            assert_eq!(switch.ended(Waker::noop()).map(|end| end.reason), Some(*reason));
        }
    }

    #[test]
    fn the_oldest_makes_room_at_once_and_a_shadow_never_does() {
        let sessions = Sessions::new(Gauge::default());
        let tally = Tally::new([1; 16]);
        let key = tally.key(&[b"alice"]);
        let register = |shadow| {
            let registration =
                sessions.register(Someone { shadow, ..someone("x", "alice") }, Places::default());
            registration.entry.hold(tally.take(key, 10).unwrap());
            registration
        };
        let [shadow, oldest, newest] = [true, false, false].map(register);
        let other = sessions.register(someone("x", "alice"), Places::default());
        assert!(tally.take(key, 3).is_none());
        assert!(sessions.displace_oldest("x", "alice", key));
        assert_eq!(end_of(&oldest), Some(Reason::UserSessionsExceeded));
        assert_eq!((end_of(&shadow), end_of(&newest), end_of(&other)), (None, None, None));
        let taken = tally.take(key, 3).unwrap();
        drop(oldest);
        assert!(tally.take(key, 3).is_none(), "its place was given back twice");
        assert!(sessions.displace_oldest("x", "alice", key));
        assert_eq!(end_of(&newest), Some(Reason::UserSessionsExceeded));
        assert!(!sessions.displace_oldest("x", "alice", key), "only a shadow is left");
        assert!(!sessions.displace_oldest("x", "bob", key));
        drop(taken);
    }

    #[test]
    fn a_place_is_free_when_the_registration_ends_though_others_still_look_at_the_entry() {
        let sessions = Sessions::new(Gauge::default());
        let permits = Permits::new(Some(1));
        let places = Places { all: permits.take(), ..Places::default() };
        let registration = sessions.register(nobody(), places);
        let looked_at = Arc::clone(&registration.entry);
        assert!(permits.take().is_none());
        drop(registration);
        assert!(permits.take().is_some());
        assert!(!looked_at.switch.has_ended());
    }
}
