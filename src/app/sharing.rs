//! `[blacklist] redis`: what other replicas have been told is taken over, what this one holds is told, and
//! the blacklist of the backend is looked up for those who are on the gate.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::feed::update_staleness;
use crate::base::clock::Unix;
use crate::io::redis::lease::{self, RENEWAL};
use crate::io::redis::stream::{AT_ONCE, Anchor, Mark, News, Told};
use crate::io::redis::{Away, Connection, Shared};
use crate::policy::revocation::Selector;
use crate::proxy::gate::Gate;
use crate::proxy::revoking::tell;
use crate::state::blacklist::Feed;
use crate::state::naming;
use crate::state::revocation::{self, Foreign, end_one};
use crate::state::sessions::Subject as _;
use crate::telemetry::logging::Level;
use crate::telemetry::record::Describe as _;

/// The tail is waited for so long at a time; an answer after that, though empty, is a contact.
const WAIT: Duration = Duration::from_secs(5);
/// A lost connection is opened again, at first after the first and never later than the last of these.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// So often the stream is looked after.
const CARE: Duration = Duration::from_secs(5);
/// And what has expired is deleted in each such turn.
const TRIM: u32 = 2;
/// So many at once are told line by line, and their sessions looked for one by one.
const FEW: usize = 16;
/// What was asked for may end so much earlier there: for their clock and ours, and whole seconds.
const SLACK: Duration = Duration::from_secs(5);
/// A sweep may take its time.
const SWEEP_PATIENCE: Duration = Duration::from_secs(2);

fn locked(anchor: &Mutex<Option<Anchor>>) -> MutexGuard<'_, Option<Anchor>> {
    anchor.lock().unwrap_or_else(PoisonError::into_inner)
}

type Never = Result<Infallible, Away>;

/// Keeps a replica in touch, for ever.
pub async fn keep(gate: Arc<Gate>, shared: Arc<Shared>) {
    let mut keeper = Keeper {
        gate,
        shared,
        after: String::new(),
        mark: Mark::default(),
        anchor: Arc::default(),
        told: None,
    };
    let mut pause = RETRY.0;
    loop {
        let Err(error) = keeper.live().await;
        if keeper.shared.is_open() {
            pause = RETRY.0;
        }
        keeper.shared.close();
        keeper.lost(&error);
        tokio::time::sleep(jittered(pause)).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

/// Looks once, as one who only wants to know: nothing is told.
pub async fn look_once(gate: &Gate, shared: &Shared) {
    let looked = async {
        let (_, mut connection) = shared.connect(WAIT).await?;
        missing(gate, shared, &mut connection).await?;
        shared.open(connection);
        shared.touch();
        Ok::<_, Away>(())
    };
    if let Err(error) = looked.await {
        gate.recorder.log.say(Level::Warn, "blacklist_redis_lost", &format!("[blacklist] redis: {error}"));
    }
    update_staleness(gate);
}

/// Half to all of it: not all replicas come back at once.
fn jittered(pause: Duration) -> Duration {
    let mut random = [0; 1];
    let _ = getrandom::fill(&mut random);
    pause / 2 + pause / 2 * u32::from(random[0]) / 255
}

struct Keeper {
    gate: Arc<Gate>,
    shared: Arc<Shared>,
    /// Id of the last entry that was read.
    after: String,
    mark: Mark,
    /// The first entry that was read since the stream was last looked after.
    anchor: Arc<Mutex<Option<Anchor>>>,
    /// The trouble that has been told.
    told: Option<String>,
}

impl Keeper {
    /// From one connection to its loss.
    async fn live(&mut self) -> Never {
        let (waiting, mut rest) = self.shared.connect(WAIT).await?;
        self.catch_up(&mut rest).await?;
        settle(&self.gate, &self.shared, &mut rest).await?;
        self.shared.open(rest.clone());
        self.in_touch(&mut rest).await;
        let (gate, shared) = (Arc::clone(&self.gate), Arc::clone(&self.shared));
        self.anchor().clone_from(&self.mark.anchor);
        let anchor = Arc::clone(&self.anchor);
        let (mut leases, mut releases, mut cared) = (rest.clone(), rest.clone(), rest);
        tokio::select! {
            lost = self.follow(waiting) => lost,
            lost = keep_lease(&gate, &shared, &mut leases) => lost,
            lost = shared.tell_releases(&mut releases) => lost,
            lost = care(&gate, &shared, &mut cared, &anchor) => lost,
            lost = sweep(&gate, &shared) => lost,
        }
    }

    /// Reads what it has missed: from where it stopped, if that is still the same stream.
    async fn catch_up(&mut self, connection: &mut Connection) -> Result<(), Away> {
        let mark = self.shared.mark(connection).await?;
        let same_run = mark.run.is_some() && mark.run == self.mark.run;
        if same_run && self.shared.goes_on(connection, self.mark.anchor.as_ref()).await? {
            loop {
                let some = self.shared.range(connection, &self.after).await?;
                let Some(last) = some.last() else { break };
                self.after.clone_from(&last.id);
                apply(&self.gate, &self.shared, &some, false).await;
            }
        } else {
            let (missing, last) = missing(&self.gate, &self.shared, connection).await?;
            self.after = last;
            if !missing.is_empty() {
                self.shared.set_unpublished(true);
            }
        }
        self.mark = mark;
        Ok(())
    }

    async fn in_touch(&mut self, connection: &mut Connection) {
        self.touch();
        let log = &self.gate.recorder.log;
        if let Some(policy) = self.shared.may_evict(connection).await {
            let message = format!(
                "[blacklist] redis: maxmemory-policy is {policy}: revocations may be thrown out; set noeviction or a volatile policy"
            );
            log.say(Level::Warn, "blacklist_redis_may_evict", &message);
        }
        if let Some(line) = log.line(Level::Info, "blacklist_redis_in_touch") {
            line.number("entries", self.gate.blacklist.len() as u64)
                .text("replica", self.shared.replica())
                .write();
        }
        self.told = None;
        if self.shared.has_unpublished() {
            self.shared.wake();
        }
    }

    fn anchor(&self) -> MutexGuard<'_, Option<Anchor>> {
        locked(&self.anchor)
    }

    fn touch(&self) {
        self.shared.touch();
        let now = Unix::now().seconds();
        self.gate.recorder.metrics.feed_in_touch(Feed::Redis.word(), now);
        update_staleness(&self.gate);
    }

    fn lost(&mut self, error: &Away) {
        update_staleness(&self.gate);
        let trouble = format!("[blacklist] redis: {error}; what is known holds");
        if self.told.as_ref() != Some(&trouble) {
            self.gate.recorder.log.say(Level::Warn, "blacklist_redis_lost", &trouble);
            self.told = Some(trouble);
        }
    }

    /// Takes over what comes.
    async fn follow(&mut self, mut waiting: Connection) -> Never {
        loop {
            let some = self.shared.tail(&mut waiting, &self.after, WAIT).await?;
            if let Some(last) = some.last() {
                self.after.clone_from(&last.id);
                let anchor = (last.id.clone(), last.expires);
                self.anchor().get_or_insert_with(|| anchor.clone());
                self.mark.anchor = Some(anchor);
                apply(&self.gate, &self.shared, &some, true).await;
            }
            self.touch();
        }
    }
}

/// Carries out what the stream says; `live` = as it is said, so that what this replica has said itself is
/// known.
async fn apply(gate: &Gate, shared: &Shared, all: &[Told], live: bool) {
    let now = Unix::now();
    let mut revoked = Vec::new();
    for told in all.iter().filter(|told| told.expires > now && !(live && told.by == shared.replica())) {
        match &told.news {
            Some(News::Revoked { selector, note }) => revoked.push(Foreign {
                selector,
                expires: told.expires,
                note: note.as_deref(),
                since: told.at.min(now),
            }),
            Some(News::Withdrawn { id }) => {
                take_over(gate, &std::mem::take(&mut revoked), now);
                if revocation::withdraw(&gate.blacklist, id).is_some()
                    && let Some(line) = gate.recorder.log.line(Level::Info, "revocation_withdrawn")
                {
                    line.text("by", Feed::Redis.word()).text("replica", &told.by).text("id", id).write();
                }
            }
            Some(News::Displaced { replica, session }) if live && replica == shared.replica() => {
                gate.sessions.displace(*session);
            }
            Some(News::Displaced { .. }) => {}
            None => gate.recorder.log.say(Level::Warn, "blacklist_entry_skipped", &told.id),
        }
    }
    take_over(gate, &revoked, now);
    // Many may follow: others have their turn first.
    tokio::task::yield_now().await;
}

fn take_over(gate: &Gate, all: &[Foreign<'_>], now: Unix) {
    let (log, metrics) = (&gate.recorder.log, &gate.recorder.metrics);
    let (mut full, feed) = (0, Feed::Redis.word());
    if all.len() <= FEW {
        for one in all {
            match revocation::take_over(&gate.blacklist, &gate.sessions, one, now) {
                Ok(Some(revoked)) => tell(gate, &revoked, |line| line.text("by", feed)),
                Ok(None) => {}
                Err(_) => full += 1,
            }
        }
    } else {
        let read = revocation::take_over_all(&gate.blacklist, &gate.sessions, all, now);
        full = read.full;
        for reason in &read.shadowed {
            gate.recorder.would_refuse(*reason);
        }
        if read.entries > 0
            && let Some(line) = log.line(Level::Info, "revocation")
        {
            line.text("by", feed)
                .number("entries", read.entries as u64)
                .number("full", read.full as u64)
                .number("closed", read.closed as u64)
                .number("would_close", read.shadowed.len() as u64)
                .write();
        }
    }
    if full > 0 {
        metrics.blacklist_rejected.inc_by(full as u64);
        log.say(Level::Warn, "blacklist_full", "[blacklist] max_entries is reached: raise it");
    }
}

/// Reads all of the stream, takes it over, and tells what this replica holds and the stream lacks; and the id
/// of the last entry.
async fn missing(
    gate: &Gate,
    shared: &Shared,
    connection: &mut Connection,
) -> Result<(Vec<(News, Duration)>, String), Away> {
    let mut there: HashMap<u128, (Option<Unix>, Unix)> = HashMap::new();
    let mut after = String::new();
    loop {
        let some = shared.range(connection, &after).await?;
        let Some(last) = some.last() else { break };
        after.clone_from(&last.id);
        for told in &some {
            if let Some(News::Revoked { selector, .. }) = &told.news {
                let entry = there.entry(name(selector)).or_insert((None, told.expires));
                entry.0 = entry.0.max(selector.issued_before);
                entry.1 = entry.1.max(told.expires);
            }
        }
        apply(gate, shared, &some, false).await;
    }
    let (now, mut missing) = (Unix::now(), Vec::new());
    gate.blacklist.asked_for(now, |listed| {
        let Some(expires) = listed.expires else { return };
        let known = there.get(&name(&listed.selector)).is_some_and(|(before, until)| {
            *before >= listed.selector.issued_before && until.0 + SLACK >= expires.0
        });
        if !known {
            let news = News::Revoked { selector: listed.selector, note: listed.note };
            missing.push((news, expires.0.saturating_sub(now.0)));
        }
    });
    Ok((missing, after))
}

fn name(selector: &Selector) -> u128 {
    naming::id(selector.kind, &selector.iss, &selector.value)
}

/// Tells what the stream lacks; `false` = another replica is about to.
async fn restore(gate: &Gate, shared: &Shared, connection: &mut Connection) -> Result<bool, Away> {
    shared.set_unpublished(false);
    let restored = try_restore(gate, shared, connection).await;
    if !matches!(restored, Ok(true)) {
        shared.set_unpublished(true);
    }
    restored
}

async fn try_restore(gate: &Gate, shared: &Shared, connection: &mut Connection) -> Result<bool, Away> {
    if missing(gate, shared, connection).await?.0.is_empty() {
        return Ok(true);
    }
    if !shared.may_restore(connection).await? {
        return Ok(false);
    }
    // Whoever did so until now has told some of it.
    let (missing, _) = missing(gate, shared, connection).await?;
    for part in missing.chunks(AT_ONCE) {
        shared.publish_all(connection, part).await?;
    }
    shared.has_restored(connection).await?;
    if let Some(line) = gate.recorder.log.line(Level::Info, "revocations_published_again") {
        line.number("entries", missing.len() as u64).write();
    }
    Ok(true)
}

/// Looks after the stream: that it is there, that it has what this replica holds, and nothing that is over.
async fn care(
    gate: &Gate,
    shared: &Shared,
    connection: &mut Connection,
    anchor: &Mutex<Option<Anchor>>,
) -> Never {
    let (mut turns, mut trimmed) = (0_u32, String::new());
    loop {
        tokio::select! {
            () = shared.woken() => {}
            () = tokio::time::sleep(CARE) => turns += 1,
        }
        let known = locked(anchor).clone();
        let goes_on = shared.goes_on(connection, known.as_ref()).await?;
        let newest = shared.mark(connection).await?.anchor;
        if goes_on && !shared.has_unpublished() {
            *locked(anchor) = newest;
        } else {
            match restore(gate, shared, connection).await {
                Ok(true) => *locked(anchor) = newest,
                // In its turn.
                Ok(false) => {}
                // It answers, and takes nothing: it is full, or may not be written to.
                Err(Away::Failed(error)) if !error.is_unrecoverable_error() && !error.is_timeout() => {
                    gate.recorder.log.say(Level::Warn, "revocation_not_shared", &error.to_string());
                    tokio::time::sleep(CARE).await;
                }
                Err(error) => return Err(error),
            }
        }
        if turns >= TRIM {
            turns = 0;
            trimmed = shared.trim(connection, trimmed, Unix::now()).await?;
        }
    }
}

/// Tells who is on this gate, and holds the lease.
async fn settle(gate: &Gate, shared: &Shared, connection: &mut Connection) -> Result<(), Away> {
    let held: HashSet<String> = gate
        .sessions
        .matching(|entry| entry.user_key().is_some())
        .iter()
        .filter_map(|entry| Some(lease::member(entry.user_key()?, entry.started, entry.id)))
        .collect();
    shared.settle(connection, &held, Unix::now()).await
}

async fn keep_lease(gate: &Gate, shared: &Shared, connection: &mut Connection) -> Never {
    // Once more at the first renewal: who asked while there was no connection was counted here alone.
    let mut settled = false;
    loop {
        tokio::time::sleep(RENEWAL).await;
        if !(shared.renew_lease(connection).await? && settled) {
            settle(gate, shared, connection).await?;
            settled = true;
        }
    }
}

/// Ends those whom the backend has put on its own blacklist since they came.
async fn sweep(gate: &Gate, shared: &Shared) -> Never {
    let every = shared.settings.sweep.filter(|_| shared.has_keys());
    let Some(every) = every else { return std::future::pending().await };
    loop {
        tokio::time::sleep(every).await;
        let entries = gate.sessions.matching(|entry| !entry.switch.has_ended());
        let (entries, facts): (Vec<_>, Vec<_>) =
            entries.into_iter().filter_map(|entry| entry.subject.facts().map(|facts| (entry, facts))).unzip();
        let refused = match shared.look_up_all(&facts, SWEEP_PATIENCE).await {
            Ok(refused) => refused,
            Err(error) => {
                gate.recorder.log.say(Level::Warn, "blacklist_not_swept", &error.to_string());
                continue;
            }
        };
        let now = Unix::now();
        for (entry, reason) in
            refused.iter().filter_map(|(place, reason)| Some((entries.get(*place)?, *reason)))
        {
            let noted = entry.subject.noted();
            let closed = end_one(entry, reason, now);
            let would_close = !closed && entry.subject.is_shadow() && noted != Some(reason);
            if would_close {
                gate.recorder.would_refuse(reason);
            }
            if (closed || would_close)
                && let Some(line) = gate.recorder.log.line(Level::Info, "revocation")
            {
                let line = entry.describe(line.text("by", "keys").text("reason", reason.label()));
                line.number("closed", closed.into()).number("would_close", would_close.into()).write();
            }
        }
    }
}
