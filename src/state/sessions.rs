//! The live sessions: who is on which, and the switch that ends each.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::task::AtomicWaker;
use prometheus_client::metrics::gauge::Gauge;

use crate::base::reject::Reason;
use crate::policy::claims::Facts;

/// The switch of one session. The first reason counts.
#[derive(Debug, Default)]
pub struct Switch {
    /// 0 = alive, else a reason's number + 1.
    end: AtomicU8,
    waker: AtomicWaker,
}

impl Switch {
    /// Ends the session, unless something else has.
    pub fn end(&self, reason: Reason) {
        let _ = self.end.compare_exchange(0, reason as u8 + 1, Ordering::AcqRel, Ordering::Acquire);
        self.waker.wake();
    }

    /// Registers the waker first, so that no end is missed.
    pub fn ended(&self, waker: &Waker) -> Option<Reason> {
        self.waker.register(waker);
        let end = self.end.load(Ordering::Acquire).checked_sub(1)?;
        Reason::ALL.get(usize::from(end)).copied()
    }

    /// As [`Self::ended`], for those that wait for nothing else.
    pub fn poll_ended(&self, cx: &Context<'_>) -> Poll<Reason> {
        self.ended(cx.waker()).map_or(Poll::Pending, Poll::Ready)
    }
}

#[derive(Debug)]
struct Entry {
    facts: Option<Arc<Facts>>,
    switch: Arc<Switch>,
}

type User<'a> = (&'a str, &'a str);

fn user(facts: Option<&Arc<Facts>>) -> Option<User<'_>> {
    facts.and_then(|facts| Some((facts.iss(), facts.sub()?)))
}

#[derive(Debug, Default)]
struct Shard {
    sessions: HashMap<u64, Entry>,
    /// Sessions of each user, by the hash of issuer and sub.
    users: HashMap<u64, u32>,
}

const SHARDS: u64 = 64;

/// All live sessions, and handshakes past their verdict.
#[derive(Debug)]
pub struct Sessions {
    shards: Vec<Mutex<Shard>>,
    next: AtomicU64,
    users: Gauge,
}

impl Sessions {
    /// `users` is the gauge of distinct users.
    pub fn new(users: Gauge) -> Arc<Self> {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Arc::new(Self { shards, next: AtomicU64::new(1), users })
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        // The index is in range: there are SHARDS of them.
        let index = usize::try_from(hash % SHARDS).unwrap_or_default();
        let shard = self.shards.get(index).or(self.shards.first());
        #[expect(clippy::expect_used, reason = "there is at least one shard")]
        shard.expect("shards").lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a session: from now on it can be ended from outside.
    pub fn register(self: &Arc<Self>, facts: Option<Arc<Facts>>) -> Registration {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let user = user(facts.as_ref()).map(|user| {
            let mut hasher = DefaultHasher::new();
            user.hash(&mut hasher);
            hasher.finish()
        });
        let switch = Arc::new(Switch::default());
        let hash = user.unwrap_or(id);
        let mut shard = self.shard(hash);
        shard.sessions.insert(id, Entry { facts, switch: Arc::clone(&switch) });
        if let Some(user) = user {
            let count = shard.users.entry(user).or_default();
            *count += 1;
            if *count == 1 {
                self.users.inc();
            }
        }
        drop(shard);
        Registration { sessions: Arc::clone(self), id, hash, has_user: user.is_some(), switch }
    }

    /// Ends every session that matches; the count of them.
    pub fn end_where(&self, reason: Reason, mut matches: impl FnMut(Option<&Facts>) -> bool) -> usize {
        let mut ended = 0;
        for shard in &self.shards {
            // Collect under the lock, wake without it.
            let switches: Vec<Arc<Switch>> = {
                let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
                let matching = shard.sessions.values().filter(|entry| matches(entry.facts.as_deref()));
                matching.map(|entry| Arc::clone(&entry.switch)).collect()
            };
            ended += switches.len();
            for switch in &switches {
                switch.end(reason);
            }
        }
        ended
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
pub struct Registration {
    sessions: Arc<Sessions>,
    id: u64,
    hash: u64,
    has_user: bool,
    pub switch: Arc<Switch>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut shard = self.sessions.shard(self.hash);
        shard.sessions.remove(&self.id);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::jwt::Jwt;
    use serde_json::json;

    fn facts(sub: &str) -> Arc<Facts> {
        let claims = json!({"iss": "x", "sub": sub}).as_object().unwrap().clone();
        let jwt = Jwt { signed: "", signature: vec![], algorithm: None, kid: None, is_at: false, claims };
        Arc::new(Facts::of(jwt).unwrap())
    }

    #[test]
    fn sessions_are_counted_ended_and_forgotten() {
        let gauge = Gauge::default();
        let sessions = Sessions::new(gauge.clone());
        let alice = [sessions.register(Some(facts("alice"))), sessions.register(Some(facts("alice")))];
        let bob = sessions.register(Some(facts("bob")));
        let nobody = sessions.register(None);
        assert_eq!((sessions.count(), gauge.get()), (4, 2));
        let matches = |facts: Option<&Facts>| facts.is_some_and(|facts| facts.sub() == Some("alice"));
        assert_eq!(sessions.end_where(Reason::Draining, matches), 2);
        for session in &alice {
            assert_eq!(session.switch.ended(Waker::noop()), Some(Reason::Draining));
        }
        assert!(bob.switch.ended(Waker::noop()).is_none());
        drop(alice);
        assert_eq!((sessions.count(), gauge.get()), (2, 1));
        drop((bob, nobody));
        assert_eq!((sessions.count(), gauge.get()), (0, 0));
    }

    #[test]
    fn the_first_reason_counts() {
        let switch = Switch::default();
        switch.end(Reason::TokenExpired);
        switch.end(Reason::Draining);
        assert_eq!(switch.ended(Waker::noop()), Some(Reason::TokenExpired));
    }
}
