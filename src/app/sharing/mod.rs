//! `[blacklist] redis`: what other replicas have been told is taken over, what this one holds is told, and
//! the blacklist of the backend is looked up for those who are on the gate.

mod news;
mod upkeep;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use self::news::{apply, missing, survey, take_all};
use self::upkeep::{Never, care, keep_lease, locked, settle, sweep};
use super::feed::update_staleness;
use crate::base::clock::Unix;
use crate::io::redis::link::{Away, Shared};
use crate::io::redis::server::Connection;
use crate::io::redis::stream::{Anchor, Mark};
use crate::proxy::gate::Gate;
use crate::proxy::lifetime::jitter;
use crate::state::blacklist::Feed;
use crate::telemetry::logging::Level;

/// The tail is waited for so long at a time; an answer after that, though empty, is a contact.
const WAIT: Duration = Duration::from_secs(5);
/// A lost connection is opened again, at first after the first and never later than the last of these.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

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
        // Half to all of it: not all replicas come back at once.
        tokio::time::sleep(pause.mul_f64(f64::midpoint(1.0, jitter()))).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

/// Looks once, as one who only wants to know: nothing is told.
pub async fn look_once(gate: &Gate, shared: &Shared) {
    let looked = async {
        let (_, mut connection) = shared.connect(WAIT).await?;
        let survey = survey(shared, &mut connection).await?;
        take_all(gate, shared, &mut connection, &survey).await?;
        shared.open(connection);
        shared.touch();
        Ok::<_, Away>(())
    };
    if let Err(error) = looked.await {
        let trouble = format!("[blacklist] redis {}: {error}", shared.settings.place());
        gate.recorder.log.say(Level::Warn, "blacklist_redis_lost", &trouble);
    }
    update_staleness(gate);
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
            let survey = survey(&self.shared, connection).await?;
            take_all(&self.gate, &self.shared, connection, &survey).await?;
            if !missing(&self.gate, &survey).is_empty() {
                self.shared.set_unpublished(true);
            }
            self.after = survey.last;
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
        let place = self.shared.settings.place();
        let trouble = format!("[blacklist] redis {place}: {error}; what is known holds");
        if self.told.as_ref() != Some(&trouble) {
            self.gate.recorder.log.say(Level::Warn, "blacklist_redis_lost", &trouble);
            self.told = Some(trouble);
        }
    }

    /// Often enough that who is in touch is never taken for stale.
    fn wait(&self) -> Duration {
        let stale_after = self.gate.snapshot.load().settings.blacklist.stale_after;
        stale_after.map_or(WAIT, |after| (after / 3).clamp(Duration::from_millis(10), WAIT))
    }

    /// Takes over what comes.
    async fn follow(&mut self, mut waiting: Connection) -> Never {
        loop {
            let some = self.shared.tail(&mut waiting, &self.after, self.wait()).await?;
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
