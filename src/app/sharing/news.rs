//! What the stream says is carried out here, and what it lacks is told to it.

use std::collections::HashMap;
use std::time::Duration;

use crate::base::clock::Unix;
use crate::io::redis::link::{Away, Shared};
use crate::io::redis::server::Connection;
use crate::io::redis::stream::{AT_ONCE, News, Told};
use crate::policy::revocation::Selector;
use crate::proxy::gate::Gate;
use crate::proxy::revoking::tell;
use crate::state::blacklist::Feed;
use crate::state::naming;
use crate::state::revocation::{self, Foreign};
use crate::telemetry::logging::Level;

/// So many at once are told line by line, and their sessions looked for one by one.
const FEW: usize = 16;
/// What was asked for may end so much earlier there: for their clock and ours, and whole seconds.
const SLACK: Duration = Duration::from_secs(5);

/// Carries out what the stream says; `live` = as it is said, so that what this replica has said itself is
/// known.
pub async fn apply(gate: &Gate, shared: &Shared, all: &[Told], live: bool) {
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
pub async fn missing(
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
pub async fn restore(gate: &Gate, shared: &Shared, connection: &mut Connection) -> Result<bool, Away> {
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
