//! What is revoked. Readers look up a handful of hashes; `state::revocation` is the only writer.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;

use super::entries::{Entry, Table};
use super::naming::{spread, written};
use crate::base::clock::Unix;
use crate::base::reject::Reason;
use crate::policy::claims::Facts;
use crate::policy::revocation::{Kind, Selector, is_before};

/// All revocations that hold.
#[derive(Debug)]
pub struct Blacklist {
    table: RwLock<Table>,
    max_entries: AtomicU32,
    gauge: Gauge,
    round: AtomicU64,
    /// One bit for each feed.
    stale: AtomicU8,
}

/// Where revocations come from that nobody has posted here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Feed {
    File = 1,
    Redis = 2,
}

impl Feed {
    pub const ALL: [Self; 2] = [Self::File, Self::Redis];

    /// Its name in metrics and messages.
    pub const fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Redis => "redis",
        }
    }
}

/// There is no room for another one, and none is ever pushed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A revocation as it is told.
#[derive(Clone, Debug)]
pub struct Listed {
    pub id: String,
    pub selector: Selector,
    pub note: Option<String>,
    /// `None` = as long as it stands in the file.
    pub expires: Option<Unix>,
}

/// A page of a longer list.
#[derive(Clone, Debug, Default)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub total: usize,
    /// Where the next page begins.
    pub next: Option<String>,
}

impl Blacklist {
    /// `gauge` = how many entries there are.
    pub fn new(max_entries: u32, gauge: Gauge) -> Self {
        Self {
            table: RwLock::default(),
            max_entries: max_entries.into(),
            gauge,
            round: AtomicU64::new(0),
            stale: AtomicU8::new(0),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_max_entries(&self, max_entries: u32) {
        self.max_entries.store(max_entries, Ordering::Relaxed);
    }

    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether a feed has been out of touch for too long to let anybody in.
    pub fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Acquire) != 0
    }

    /// Which feeds those are.
    pub fn stale(&self) -> Vec<Feed> {
        let stale = self.stale.load(Ordering::Acquire);
        Feed::ALL.into_iter().filter(|feed| stale & *feed as u8 != 0).collect()
    }

    pub fn set_stale(&self, feed: Feed, stale: bool) {
        if stale {
            self.stale.fetch_or(feed as u8, Ordering::AcqRel);
        } else {
            self.stale.fetch_and(!(feed as u8), Ordering::AcqRel);
        }
    }

    /// Whether this token, its session or its user is revoked.
    pub fn check(&self, facts: &Facts, now: Unix) -> Result<(), Reason> {
        let table = self.read();
        for kind in Kind::ALL {
            if table.kinds.get(kind as usize) == Some(&0) {
                continue;
            }
            let Some(value) = kind.value(facts) else { continue };
            let entry = table.find(kind, facts.iss(), value).and_then(|position| table.entry(position));
            let named = entry.filter(|entry| entry.holds(now.0.as_secs())).is_some_and(|entry| {
                !kind.has_moment() || is_before(facts, Unix(Duration::from_millis(entry.before)))
            });
            if named {
                return Err(kind.reason());
            }
        }
        Ok(())
    }

    fn find_or_insert(&self, table: &mut Table, selector: &Selector) -> Result<u32, Full> {
        if let Some(known) = table.find(selector.kind, &selector.iss, &selector.value) {
            return Ok(known);
        }
        if table.len() >= self.max_entries.load(Ordering::Relaxed) as usize {
            return Err(Full);
        }
        table.insert(selector).ok_or(Full)
    }

    /// Adds what somebody asked for; what is known already holds for the longer of both times.
    /// `true` = it was known.
    pub(super) fn post(
        &self,
        selector: &Selector,
        expires: Unix,
        note: Option<&str>,
        now: Unix,
    ) -> Result<(Listed, bool), Full> {
        if self.len() >= self.max_entries.load(Ordering::Relaxed) as usize {
            // What holds no more takes no room.
            self.sweep(now);
        }
        let mut table = self.write();
        let position = self.find_or_insert(&mut table, selector)?;
        let entry = table.entry_mut(position).ok_or(Full)?;
        let before = millis(selector.issued_before);
        let held = entry.holds(now.0.as_secs());
        if !held {
            (entry.before, entry.expires, entry.note) = (0, 0, None);
        }
        // A later moment says more than the entry did.
        let known = held && entry.before >= before;
        entry.before = entry.before.max(before);
        entry.expires = entry.expires.max(whole_seconds(expires));
        if let Some(note) = note {
            entry.note = Some(note.into());
        }
        let listed = table.entry(position).map(|entry| listed(&table, entry)).ok_or(Full)?;
        self.count(&table);
        Ok((listed, known))
    }

    /// Takes back what somebody asked for. `None` = there is no such thing; `Some(false)` = it stands in
    /// the file as well, and so holds on.
    pub(super) fn withdraw(&self, id: &str) -> Option<bool> {
        let id = u128::from_str_radix(id, 16).ok()?;
        let mut table = self.write();
        let position = table.position(id)?;
        let entry = table.entry_mut(position)?;
        entry.expires = 0;
        if entry.round != 0 {
            return Some(false);
        }
        table.remove(position);
        self.count(&table);
        Some(true)
    }

    /// Until when somebody has asked for it to hold.
    pub fn asked_until(&self, id: &str) -> Option<Unix> {
        let id = u128::from_str_radix(id, 16).ok()?;
        let table = self.read();
        let entry = table.entry(table.position(id)?)?;
        Some(Unix(Duration::from_secs(entry.expires.into())))
    }

    /// For so many entries at once: a table that grows step by step leaves its old ones behind, half as large
    /// as itself together.
    pub fn make_room(&self, entries: usize) {
        let mut table = self.write();
        let entries = entries.min(self.max_entries.load(Ordering::Relaxed) as usize);
        let (more, free) = (entries.saturating_sub(table.len()), table.free.len());
        table.entries.reserve(more.saturating_sub(free));
        table.index.reserve(more, |slot| spread(slot.hash));
    }

    /// Begins to read the file anew.
    pub(super) fn begin_round(&self) -> u8 {
        let round = self.round.fetch_add(1, Ordering::Relaxed) % u64::from(u8::MAX) + 1;
        u8::try_from(round).unwrap_or(1)
    }

    /// Takes over some lines of the file: how many of them did not fit, and whether any is new.
    pub(super) fn take_lines(&self, selectors: &[Selector], round: u8) -> (usize, bool) {
        let mut table = self.write();
        let (mut full, mut new) = (0, false);
        for selector in selectors {
            let Ok(position) = self.find_or_insert(&mut table, selector) else {
                full += 1;
                continue;
            };
            if let Some(entry) = table.entry_mut(position) {
                new |= entry.round == 0;
                entry.round = round;
            }
        }
        self.count(&table);
        (full, new)
    }

    /// Forgets what the file no longer has.
    pub(super) fn end_round(&self, round: u8) {
        for positions in self.parts() {
            let mut table = self.write();
            for position in positions {
                let Some(entry) = table.entry_mut(position) else { continue };
                if entry.round != 0 && entry.round != round {
                    entry.round = 0;
                    if entry.expires == 0 {
                        table.remove(position);
                    }
                }
            }
            self.count(&table);
        }
    }

    /// Forgets what has expired.
    pub fn sweep(&self, now: Unix) {
        for positions in self.parts() {
            let mut table = self.write();
            for position in positions {
                if table.entry(position).is_some_and(|entry| !entry.holds(now.0.as_secs())) {
                    table.remove(position);
                }
            }
            self.count(&table);
        }
    }

    /// All positions, a part at a time: handshakes wait for no more than that.
    fn parts(&self) -> impl Iterator<Item = Range<u32>> + use<> {
        const AT_ONCE: u32 = 4096;
        let len = u32::try_from(self.read().entries.len()).unwrap_or(u32::MAX);
        (0..len.div_ceil(AT_ONCE)).map(move |n| n * AT_ONCE..len.min((n + 1) * AT_ONCE))
    }

    /// Calls `each` with all that somebody asked for and that holds, a part at a time.
    pub fn asked_for(&self, now: Unix, mut each: impl FnMut(Listed)) {
        for positions in self.parts() {
            let table = self.read();
            let entries = positions.filter_map(|position| table.entry(position));
            for entry in entries.filter(|entry| u64::from(entry.expires) > now.0.as_secs()) {
                let expires = Some(Unix(Duration::from_secs(entry.expires.into())));
                each(Listed { expires, ..listed(&table, entry) });
            }
        }
    }

    fn count(&self, table: &Table) {
        self.gauge.set(i64::try_from(table.len()).unwrap_or(i64::MAX));
    }

    /// Those that hold, a page at a time.
    pub fn list(&self, after: Option<u32>, limit: usize, now: Unix) -> Page<Listed> {
        let mut page = Page { items: Vec::new(), total: 0, next: None };
        let mut last = 0;
        for positions in self.parts() {
            let table = self.read();
            for position in positions {
                let entry = table.entry(position).filter(|entry| entry.holds(now.0.as_secs()));
                let Some(entry) = entry else { continue };
                page.total += 1;
                if after.is_some_and(|after| position <= after) {
                    continue;
                }
                if page.items.len() == limit {
                    page.next = Some(last.to_string());
                } else {
                    last = position;
                    page.items.push(listed(&table, entry));
                }
            }
        }
        page
    }
}

/// Never earlier than asked for.
fn whole_seconds(moment: Unix) -> u32 {
    let up = u64::from(moment.0.subsec_nanos() > 0);
    u32::try_from(moment.0.as_secs() + up).unwrap_or(u32::MAX)
}

fn millis(moment: Option<Unix>) -> u64 {
    moment.map_or(0, |moment| u64::try_from(moment.0.as_millis()).unwrap_or(u64::MAX))
}

fn listed(table: &Table, entry: &Entry) -> Listed {
    let expires = (entry.round == 0).then(|| Unix(Duration::from_secs(entry.expires.into())));
    Listed {
        id: written(table.id_of(entry)),
        selector: table.selector(entry),
        note: entry.note.as_deref().map(str::to_owned),
        expires,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::naming::id;
    use super::*;

    fn facts(claims: &Value) -> Facts {
        let mut claims = claims.as_object().unwrap().clone();
        claims.entry("iss").or_insert("x".into());
        Facts::said(&claims.into())
    }

    fn at(seconds: u64) -> Unix {
        Unix(Duration::from_secs(seconds))
    }

    fn selector(kind: Kind, value: &str) -> Selector {
        Selector { kind, iss: "x".into(), value: value.into(), issued_before: None }
    }

    fn blacklist(max: u32) -> Blacklist {
        Blacklist::new(max, Gauge::default())
    }

    fn post(
        blacklist: &Blacklist,
        selector: &Selector,
        until: u64,
        now: u64,
    ) -> Result<(String, bool), Full> {
        blacklist.post(selector, at(until), None, at(now)).map(|(listed, known)| (listed.id, known))
    }

    #[test]
    fn whoever_is_named_is_refused_until_it_expires() {
        let list = blacklist(10);
        let alice = facts(&json!({"sub": "alice", "jti": "j", "sid": "s", "iat": 100}));
        for (kind, value, reason) in [
            (Kind::Jti, "j", Reason::TokenRevoked),
            (Kind::Sid, "s", Reason::TokenRevoked),
            (Kind::Sub, "alice", Reason::UserRevoked),
        ] {
            let (id, known) = post(&list, &selector(kind, value), 200, 100).unwrap();
            assert!(!known);
            assert_eq!(list.check(&alice, at(199)), Err(reason));
            assert_eq!(list.check(&alice, at(200)), Ok(()));
            assert_eq!(list.withdraw(&id), Some(true));
            assert_eq!(list.check(&alice, at(100)), Ok(()));
        }
        assert_eq!(list.len(), 0);
    }

    #[test]
    fn a_blocked_user_hears_of_that_first() {
        let list = blacklist(10);
        post(&list, &selector(Kind::Jti, "j"), 200, 100).unwrap();
        post(&list, &selector(Kind::Sub, "alice"), 200, 100).unwrap();
        let alice = facts(&json!({"sub": "alice", "jti": "j"}));
        assert_eq!(list.check(&alice, at(100)), Err(Reason::UserRevoked));
    }

    #[test]
    fn of_a_moment_the_latest_counts_and_of_a_time_the_longest() {
        let list = blacklist(10);
        let before =
            |seconds| Selector { issued_before: Some(at(seconds)), ..selector(Kind::SubBefore, "alice") };
        let alice = facts(&json!({"sub": "alice", "iat": 100}));
        assert!(!post(&list, &before(100), 200, 100).unwrap().1);
        assert_eq!(list.check(&alice, at(150)), Ok(()));
        assert!(!post(&list, &before(101), 180, 100).unwrap().1, "it says more than before");
        assert!(post(&list, &before(50), 120, 100).unwrap().1, "it says nothing new");
        assert_eq!(list.check(&alice, at(199)), Err(Reason::TokenRevoked));
        assert_eq!(list.len(), 1);
    }

    #[test]
    fn what_has_expired_says_nothing_more() {
        let list = blacklist(10);
        let before =
            |seconds| Selector { issued_before: Some(at(seconds)), ..selector(Kind::SubBefore, "alice") };
        post(&list, &before(1000), 200, 100).unwrap();
        assert!(!post(&list, &before(50), 400, 300).unwrap().1);
        let alice = facts(&json!({"sub": "alice", "iat": 500}));
        assert_eq!(list.check(&alice, at(350)), Ok(()));
    }

    #[test]
    fn no_revocation_ends_before_its_time() {
        let list = blacklist(10);
        let until = Unix(Duration::from_millis(100_500));
        list.post(&selector(Kind::Jti, "j"), until, None, at(100)).unwrap();
        let token = facts(&json!({"jti": "j"}));
        assert!(list.check(&token, Unix(Duration::from_millis(100_499))).is_err());
        assert!(list.check(&token, at(101)).is_ok());
    }

    #[test]
    fn a_full_list_takes_nothing_new_and_loses_nothing() {
        let list = blacklist(2);
        for value in ["a", "b"] {
            post(&list, &selector(Kind::Jti, value), 200, 100).unwrap();
        }
        assert_eq!(post(&list, &selector(Kind::Jti, "c"), 200, 100), Err(Full));
        assert!(post(&list, &selector(Kind::Jti, "a"), 300, 100).unwrap().1);
        assert_eq!(list.len(), 2);
        post(&list, &selector(Kind::Jti, "c"), 300, 250).unwrap();
        assert_eq!(list.len(), 2, "b has made room");
        assert_eq!(list.check(&facts(&json!({"jti": "a"})), at(299)), Err(Reason::TokenRevoked));
    }

    #[test]
    fn what_the_file_says_holds_as_long_as_it_says_so() {
        let list = blacklist(10);
        let (both, file) = (selector(Kind::Jti, "both"), selector(Kind::Jti, "file"));
        let refused = |jti: &str, now| list.check(&facts(&json!({ "jti": jti })), at(now)).is_err();
        let round = list.begin_round();
        assert_eq!(list.take_lines(&[both.clone(), file.clone()], round), (0, true));
        list.end_round(round);
        let (id, known) = post(&list, &both, 200, 100).unwrap();
        assert!(known && refused("both", 1_000_000) && refused("file", 1_000_000));
        list.sweep(at(1_000_000));
        assert!(refused("both", 1_000_000), "swept though the file says so");
        assert_eq!(list.withdraw(&id), Some(false));
        post(&list, &both, 200, 100).unwrap();
        let round = list.begin_round();
        assert_eq!(list.take_lines(&[], round), (0, false));
        list.end_round(round);
        assert!(refused("both", 199) && !refused("both", 200) && !refused("file", 100));
    }

    #[test]
    fn rounds_never_run_out() {
        let list = blacklist(10);
        for n in 0..1000_u32 {
            let round = list.begin_round();
            assert_ne!(round, 0);
            let line = selector(Kind::Jti, if n % 2 == 0 { "even" } else { "odd" });
            list.take_lines(&[line], round);
            list.end_round(round);
            assert_eq!(list.len(), 1, "{n}");
        }
    }

    #[test]
    fn a_long_list_is_told_page_by_page() {
        let list = blacklist(100);
        for n in 0..25 {
            post(&list, &selector(Kind::Jti, &n.to_string()), 200, 100).unwrap();
        }
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let page = list.list(after, 10, at(100));
            assert_eq!(page.total, 25);
            seen.extend(page.items.iter().map(|listed| listed.selector.value.clone()));
            after = page.next.map(|next| next.parse().unwrap());
            if after.is_none() {
                break;
            }
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 25);
        assert_eq!(list.list(None, 10, at(200)).total, 0, "expired ones are not told");
    }

    #[test]
    fn the_same_revocation_has_the_same_name_on_every_replica() {
        let id = |selector: &Selector| post(&blacklist(1), selector, 200, 100).unwrap().0;
        let one = selector(Kind::Jti, "j");
        assert_eq!(id(&one), id(&one));
        assert_ne!(id(&one), id(&selector(Kind::Sid, "j")));
        assert_ne!(id(&one), id(&Selector { iss: "xj".into(), value: String::new(), ..one.clone() }));
        assert_eq!(id(&one).len(), 32);
        assert_eq!(blacklist(1).withdraw("no id"), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Post { value: u8, ttl: u64 },
        Withdraw(u8),
        File(Vec<u8>),
        Sweep,
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..12_u8, 1..50_u64).prop_map(|(value, ttl)| Step::Post { value, ttl }),
            (0..12_u8).prop_map(Step::Withdraw),
            proptest::collection::vec(0..12_u8, 0..6).prop_map(Step::File),
            Just(Step::Sweep),
            (1..30_u64).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Against a map from value to expiry, and a set.
        #[test]
        fn it_holds_what_a_plain_map_would(steps in proptest::collection::vec(step(), 1..60)) {
            let list = blacklist(1000);
            let (mut posted, mut file): (BTreeMap<u8, u64>, Vec<u8>) = Default::default();
            let mut now = 100;
            for step in steps {
                match step {
                    Step::Post { value, ttl } => {
                        post(&list, &selector(Kind::Jti, &value.to_string()), now + ttl, now).unwrap();
                        let until = posted.entry(value).or_default();
                        *until = (*until).max(now + ttl);
                    }
                    Step::Withdraw(value) => {
                        list.withdraw(&written(id(Kind::Jti, "x", &value.to_string())));
                        posted.remove(&value);
                    }
                    Step::File(values) => {
                        let lines: Vec<_> =
                            values.iter().map(|v| selector(Kind::Jti, &v.to_string())).collect();
                        let round = list.begin_round();
                        list.take_lines(&lines, round);
                        list.end_round(round);
                        file = values;
                    }
                    Step::Sweep => list.sweep(at(now)),
                    Step::Wait(seconds) => now += seconds,
                }
                for value in 0..12_u8 {
                    let holds = file.contains(&value) || posted.get(&value).is_some_and(|until| *until > now);
                    let token = facts(&json!({"jti": value.to_string()}));
                    prop_assert_eq!(list.check(&token, at(now)).is_err(), holds, "{} at {}", value, now);
                }
            }
            let holding = (0..12_u8)
                .filter(|v| file.contains(v) || posted.get(v).is_some_and(|until| *until > now))
                .count();
            prop_assert_eq!(list.list(None, 1000, at(now)).total, holding);
        }
    }
}
