//! A changed configuration: built whole, swapped whole, or refused whole. Afterwards every live session is
//! judged again, and only those that are no longer allowed are closed.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use super::beat::Beat;
use super::config::{self, Boot, Config};
use super::drain::Control;
use super::feed::update_staleness;
use super::sharing;
use crate::base::clock::Unix;
use crate::base::effective::Effective;
use crate::base::section::Problem;
use crate::io::files::Watched;
use crate::io::jwks::Source;
use crate::io::listener;
use crate::io::redis::link::Shared;
use crate::proxy::gate::Gate;
use crate::proxy::judge;
use crate::proxy::plan::Snapshot;
use crate::state::blacklist::Feed;
use crate::state::sessions::Subject as _;
use crate::telemetry::logging::{Level, Log, LogSettings};

/// What a running gate cannot change.
const FIXED: [&str; 4] = ["listen.address", "admin", "runtime", "metrics"];

/// The fetchers of keys, one for each source of the configuration in force, and who keeps in touch with the
/// other replicas.
#[derive(Debug, Default)]
pub struct Fetchers {
    keys: Vec<(Arc<Source>, JoinHandle<()>)>,
    shared: Option<(Arc<Shared>, JoinHandle<()>)>,
}

impl Fetchers {
    /// Starts those that are new and ends those that nobody names any more.
    pub fn follow(&mut self, gate: &Arc<Gate>, snapshot: &Snapshot) {
        self.share(gate, snapshot);
        self.fetch(gate, snapshot);
    }

    fn share(&mut self, gate: &Arc<Gate>, snapshot: &Snapshot) {
        let is_other = |kept: &(Arc<Shared>, _)| {
            snapshot.shared.as_ref().is_none_or(|shared| !Arc::ptr_eq(shared, &kept.0))
        };
        if let Some((shared, keeper)) = self.shared.take_if(|kept| is_other(kept)) {
            keeper.abort();
            shared.close();
        }
        if let (None, Some(shared)) = (&self.shared, &snapshot.shared) {
            gate.recorder.metrics.know_feed(Feed::Redis.word());
            let keeper = tokio::spawn(sharing::keep(Arc::clone(gate), Arc::clone(shared)));
            self.shared = Some((Arc::clone(shared), keeper));
        }
    }

    /// As [`Self::follow`], the keys alone.
    pub fn fetch(&mut self, gate: &Gate, snapshot: &Snapshot) {
        let is_named =
            |source: &Arc<Source>| snapshot.issuers.iter().any(|issuer| Arc::ptr_eq(&issuer.source, source));
        self.keys.retain(|(source, fetcher)| {
            let named = is_named(source);
            if !named {
                fetcher.abort();
            }
            named
        });
        for issuer in &snapshot.issuers {
            if !self.keys.iter().any(|(source, _)| Arc::ptr_eq(source, &issuer.source)) {
                gate.recorder.metrics.know_issuer(&issuer.policy.url);
                let fetcher = Arc::clone(&issuer.source).keep_fresh(Arc::clone(&gate.recorder));
                self.keys.push((Arc::clone(&issuer.source), tokio::spawn(fetcher)));
            }
        }
    }
}

/// As many connections as the file descriptors carry; fewer than asked for are told.
pub fn affordable(wanted: Option<u32>, log: &Log) -> u32 {
    let (affordable, told) = listener::affordable(wanted);
    if let Some(told) = told {
        log.say(Level::Warn, "max_connections_lowered", &told);
    }
    affordable
}

/// Settings of the log as the command line changes them.
pub type Adapt = Box<dyn Fn(LogSettings) -> LogSettings + Send>;

/// Watches the configuration file of a running gate.
pub struct Reloader {
    file: Watched,
    adapt: Adapt,
    /// The trouble with the file that has been told.
    told: Option<String>,
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloader").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Reloader {
    pub fn new(path: PathBuf, adapt: Adapt) -> Self {
        let mut file = Watched::new(path);
        file.adopt();
        Self { file, adapt, told: None }
    }

    /// Looks at the file, and obeys SIGHUP if signals are ours, for ever.
    pub async fn run(mut self, control: Arc<Control>, mut fetchers: Fetchers, signals: bool, beat: Beat) {
        let mut hangups = if signals { signal(SignalKind::hangup()).ok() } else { None };
        loop {
            let asked = async {
                match &mut hangups {
                    Some(hangups) => hangups.recv().await,
                    None => std::future::pending().await,
                }
            };
            let asked = tokio::select! {
                hangup = asked => hangup.is_some(),
                () = control.reload_asked() => true,
                () = beat.next(self.file.pause()) => false,
            };
            let looked = self.file.look();
            if asked {
                self.file.adopt();
            }
            match looked {
                // Back again, it is taken over even if it is what it was: so that nobody still thinks it lost.
                Ok(changed) if asked || changed || self.told.take().is_some() => {
                    self.reload(&control, &mut fetchers);
                }
                Ok(_) => {}
                Err(error) => {
                    let trouble = format!("{}: {error}", self.file.path().display());
                    if asked || self.told.as_ref() != Some(&trouble) {
                        refused(control.gate(), std::slice::from_ref(&trouble));
                        self.told = Some(trouble);
                    }
                }
            }
        }
    }

    fn reload(&self, control: &Arc<Control>, fetchers: &mut Fetchers) {
        let gate = control.gate();
        let loaded = config::load(self.file.path(), Boot::Again);
        let Some(config) = loaded.config else {
            let problems: Vec<_> = loaded.problems.iter().map(Problem::to_string).collect();
            return refused(gate, &problems);
        };
        let fixed = changed_though_fixed(&control.effective(), &config.effective);
        if !fixed.is_empty() {
            return refused(gate, &fixed);
        }
        gate.recorder.log.set((self.adapt)(config.log));
        for warning in &loaded.warnings {
            gate.recorder.log.say(Level::Warn, "config_warning", &warning.to_string());
        }
        take_over(control, config, fetchers);
    }
}

fn refused(gate: &Gate, problems: &[String]) {
    gate.recorder.metrics.reloaded(false);
    for problem in problems {
        gate.recorder.log.say(Level::Error, "config_reload_refused", problem);
    }
}

/// Keys whose change needs a restart.
fn changed_though_fixed(old: &[Effective], new: &[Effective]) -> Vec<String> {
    let is_fixed = |entry: &&Effective| {
        FIXED.contains(&entry.section.as_str())
            || FIXED.contains(&format!("{}.{}", entry.section, entry.key).as_str())
    };
    let value = |entries: &[Effective], like: &Effective| {
        let same = |entry: &&Effective| entry.section == like.section && entry.key == like.key;
        entries.iter().find(same).map(|entry| entry.value.clone())
    };
    let mut changed: Vec<String> = Vec::new();
    for entry in old.iter().chain(new).filter(is_fixed) {
        let (was, is) = (value(old, entry), value(new, entry));
        let text = |value: Option<String>| value.unwrap_or_else(|| "nothing".into());
        let message = format!(
            "{}.{} was {} and is {}: it cannot change while the gate runs; restart it, or change it back. The old configuration stays as a whole",
            entry.section,
            entry.key,
            text(was.clone()),
            text(is.clone())
        );
        if was != is && !changed.contains(&message) {
            changed.push(message);
        }
    }
    changed
}

/// Puts a checked configuration in force.
pub fn take_over(control: &Control, config: Config, fetchers: &mut Fetchers) {
    let gate = control.gate();
    let (max_connections, _) = listener::affordable(config.listen.max_connections);
    gate.connections.set_limit(Some(max_connections));
    gate.permits.set_limit(config.settings.limits.sessions);
    gate.blacklist.set_max_entries(config.settings.blacklist.max_entries);
    control.set(config.drain, config.effective);
    let snapshot = Arc::new(gate.snapshot.load().succeeded_by(config.settings));
    fetchers.follow(gate, &snapshot);
    let generation = snapshot.generation;
    let before = gate.snapshot.swap(Arc::clone(&snapshot));
    update_staleness(gate);
    control.tell_taken_over();
    for gone in before.issuers.iter().filter(|issuer| snapshot.issuer(&issuer.policy.url).is_none()) {
        gone.retire();
    }
    let closed = judge_again(gate, &snapshot);
    gate.recorder.metrics.reloaded(true);
    if let Some(line) = gate.recorder.log.line(Level::Info, "config_reloaded") {
        line.number("generation", generation).number("closed", closed as u64).write();
    }
}

/// Whoever registered before the swap is judged here, whoever registers later by itself.
fn judge_again(gate: &Gate, snapshot: &Snapshot) -> usize {
    let now = Unix::now();
    let mut closed = 0;
    for entry in gate.sessions.matching(|_| true) {
        let token = entry.subject.facts();
        let revoked = token.as_ref().map_or(Ok(()), |token| gate.blacklist.check(token, now));
        match judge::again(snapshot, &entry.subject, token.as_deref(), revoked, now) {
            Ok(None) => {}
            Ok(Some(reason)) => {
                entry.subject.note(reason);
                gate.recorder.would_refuse(reason);
            }
            Err(reason) => closed += usize::from(entry.switch.end(reason, now)),
        }
    }
    closed
}
