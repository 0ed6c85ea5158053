//! What has to be done now and then: the stream, the lease and the live sessions are looked after.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::news::restore;
use crate::base::clock::Unix;
use crate::io::redis::lease::RENEWAL;
use crate::io::redis::link::{Away, Shared};
use crate::io::redis::server::Connection;
use crate::io::redis::stream::Anchor;
use crate::proxy::gate::Gate;
use crate::state::revocation::end_one;
use crate::state::sessions::Subject as _;
use crate::telemetry::logging::Level;
use crate::telemetry::record::Describe as _;

/// So often the stream is looked after.
const CARE: Duration = Duration::from_secs(5);
/// And what has expired is deleted in each such turn.
const TRIM: u32 = 2;
/// A sweep may take its time.
const SWEEP_PATIENCE: Duration = Duration::from_secs(2);

/// What ends with the connection.
pub type Never = Result<Infallible, Away>;

pub fn locked(anchor: &Mutex<Option<Anchor>>) -> MutexGuard<'_, Option<Anchor>> {
    anchor.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks after the stream: that it is there, that it has what this replica holds, and nothing that is over.
pub async fn care(
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
        shared.compare_clocks(connection).await?;
        let known = locked(anchor).clone();
        let goes_on = shared.goes_on(connection, known.as_ref()).await?;
        let newest = shared.newest(connection).await?;
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
pub async fn settle(gate: &Gate, shared: &Shared, connection: &mut Connection) -> Result<(), Away> {
    let held: HashSet<String> = gate
        .sessions
        .matching(|entry| entry.user_key().is_some())
        .iter()
        .filter_map(|entry| entry.shared_name())
        .collect();
    shared.settle(connection, &held).await
}

pub async fn keep_lease(gate: &Gate, shared: &Shared, connection: &mut Connection) -> Never {
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
pub async fn sweep(gate: &Gate, shared: &Shared) -> Never {
    let every = shared.settings.sweep.filter(|_| shared.has_keys());
    let Some(every) = every else { return std::future::pending().await };
    let mut told = false;
    loop {
        tokio::time::sleep(every).await;
        let entries = gate.sessions.matching(|entry| !entry.switch.has_ended());
        let (entries, facts): (Vec<_>, Vec<_>) =
            entries.into_iter().filter_map(|entry| entry.subject.facts().map(|facts| (entry, facts))).unzip();
        let refused = match shared.look_up_all(&facts, SWEEP_PATIENCE).await {
            Ok(refused) => {
                told = false;
                refused
            }
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    gate.recorder.log.say(Level::Warn, "blacklist_not_swept", &error.to_string());
                }
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
