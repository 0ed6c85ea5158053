//! What the stream says is carried out here, and what it lacks is told to it.

use std::collections::HashMap;
use std::time::Duration;

use crate::base::clock::Unix;
use crate::io::redis::link::{Away, Shared};
use crate::io::redis::server::Connection;
use crate::io::redis::stream::{AT_ONCE, News, Position, Told};
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
    // One without a span has ended when it began, whatever the clocks say.
    let holds = |told: &&Told| told.expires > told.at.max(now);
    for told in all.iter().filter(holds).filter(|told| !(live && told.by == shared.replica())) {
        match &told.news {
            Some(News::Revoked { selector, note }) => revoked.push(Foreign {
                selector,
                expires: told.expires,
                note: note.as_deref(),
                since: told.at.min(now),
            }),
            Some(News::Withdrawn { id }) => {
                take_over(gate, &std::mem::take(&mut revoked), now);
                withdraw(gate, shared, id, Some(&told.by));
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

/// What was asked for here and nobody else has heard of yet is not what another replica takes back.
fn withdraw(gate: &Gate, shared: &Shared, id: &str, by: Option<&str>) {
    if !shared.is_pending(id)
        && revocation::withdraw(&gate.blacklist, id).is_some()
        && let Some(line) = gate.recorder.log.line(Level::Info, "revocation_withdrawn")
    {
        line.text("by", Feed::Redis.word()).maybe("replica", by).text("id", id).write();
    }
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

/// What the whole stream says of one revocation in the end.
#[derive(Clone, Copy, Debug)]
struct Net {
    before: Option<Unix>,
    expires: Unix,
    holds: bool,
    /// Where it was last taken back: what stands before that means nothing.
    withdrawn: Option<Position>,
}

/// What the whole stream says in the end.
#[derive(Debug, Default)]
pub struct Survey {
    net: HashMap<u128, Net>,
    /// Id of the last entry.
    pub last: String,
}

/// Reads all of the stream; nothing is carried out.
pub async fn survey(shared: &Shared, connection: &mut Connection) -> Result<Survey, Away> {
    let mut survey = Survey::default();
    loop {
        let some = shared.range(connection, &survey.last).await?;
        let Some(last) = some.last() else { return Ok(survey) };
        survey.last.clone_from(&last.id);
        for told in &some {
            let fresh = Net { before: None, expires: told.expires, holds: false, withdrawn: None };
            match &told.news {
                Some(News::Revoked { selector, .. }) => {
                    let net = survey.net.entry(name(selector)).or_insert(fresh);
                    if !net.holds {
                        (net.before, net.expires, net.holds) = (None, told.expires, true);
                    }
                    net.before = net.before.max(selector.issued_before);
                    net.expires = net.expires.max(told.expires);
                }
                Some(News::Withdrawn { id }) => {
                    let Ok(id) = u128::from_str_radix(id, 16) else { continue };
                    let net = survey.net.entry(id).or_insert(fresh);
                    (net.holds, net.withdrawn) = (false, Some(told.position()));
                }
                Some(News::Displaced { .. }) | None => {}
            }
        }
    }
}

/// Carries out what the whole stream says in the end: nothing that was taken back later closes anything.
pub async fn take_all(
    gate: &Gate,
    shared: &Shared,
    connection: &mut Connection,
    survey: &Survey,
) -> Result<(), Away> {
    let mut after = String::new();
    while after != survey.last {
        let mut some = shared.range(connection, &after).await?;
        // What has come since the survey is the tail's, which carries it out once.
        if let Some(end) = some.iter().position(|told| told.id == survey.last) {
            some.truncate(end + 1);
        }
        let Some(last) = some.last() else { break };
        after.clone_from(&last.id);
        some.retain(|told| match &told.news {
            Some(News::Revoked { selector, .. }) => {
                let net = survey.net.get(&name(selector));
                net.and_then(|net| net.withdrawn).is_none_or(|withdrawn| told.position() > withdrawn)
            }
            Some(News::Withdrawn { .. } | News::Displaced { .. }) => false,
            None => true,
        });
        apply(gate, shared, &some, false).await;
    }
    for (id, _) in survey.net.iter().filter(|(_, net)| !net.holds) {
        withdraw(gate, shared, &naming::written(*id), None);
    }
    Ok(())
}

/// What this replica holds and the stream lacks.
pub fn missing(gate: &Gate, survey: &Survey) -> Vec<(News, Duration)> {
    let (now, mut missing) = (Unix::now(), Vec::new());
    gate.blacklist.asked_for(now, |listed| {
        let Some(expires) = listed.expires else { return };
        let net = survey.net.get(&name(&listed.selector));
        let known = net.is_some_and(|net| {
            net.holds && net.before >= listed.selector.issued_before && net.expires.0 + SLACK >= expires.0
        });
        if !known {
            let news = News::Revoked { selector: listed.selector, note: listed.note };
            missing.push((news, expires.0.saturating_sub(now.0)));
        }
    });
    missing
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
    let pending = shared.pending();
    if !missing(gate, &survey(shared, connection).await?).is_empty() {
        if !shared.may_restore(connection).await? {
            return Ok(false);
        }
        // Whoever did so until now has told some of it.
        let missing = missing(gate, &survey(shared, connection).await?);
        for part in missing.chunks(AT_ONCE) {
            shared.publish_all(connection, part).await?;
        }
        shared.has_restored(connection).await?;
        if let Some(line) = gate.recorder.log.line(Level::Info, "revocations_published_again") {
            line.number("entries", missing.len() as u64).write();
        }
    }
    shared.no_longer_pending(&pending);
    Ok(true)
}
