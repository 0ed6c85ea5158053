//! A revocation that somebody has asked for, or takes back: carried out here, and told to all other replicas.

use std::sync::Arc;

use super::gate::Gate;
use crate::base::clock::Unix;
use crate::io::redis::link::{Away, Shared};
use crate::io::redis::stream::News;
use crate::policy::revocation::{Kind, Selector};
use crate::state::blacklist::{Full, Listed};
use crate::state::revocation::{self, Revoked};
use crate::telemetry::logging::{Level, Line};

/// What has become of it.
#[derive(Debug)]
pub struct Done {
    pub revoked: Revoked,
    /// All replicas will know of it, and it outlives this one.
    pub shared: bool,
}

/// Revokes what a selector names until `expires`. `by` = the line of the log, which says who asked for it.
pub async fn revoke(
    gate: &Gate,
    selector: &Selector,
    expires: Unix,
    note: Option<&str>,
    now: Unix,
    by: impl for<'l> Fn(Line<'l>) -> Line<'l>,
) -> Result<Done, Full> {
    let revoked = revocation::revoke(&gate.blacklist, &gate.sessions, selector, expires, note, now);
    let revoked = revoked.inspect_err(|_| {
        gate.recorder.metrics.blacklist_rejected.inc();
    })?;
    tell(gate, &revoked, by);
    let shared = gate.snapshot.load().shared.clone();
    let shared = match shared {
        None => false,
        Some(shared) => publish(gate, &shared, &revoked.listed, expires, now).await,
    };
    Ok(Done { revoked, shared })
}

async fn publish(gate: &Gate, shared: &Arc<Shared>, listed: &Listed, expires: Unix, now: Unix) -> bool {
    let news = News::Revoked { selector: listed.selector.clone(), note: listed.note.clone() };
    let told = shared.publish(&listed.id, &news, expires.0.saturating_sub(now.0)).await;
    if let Err(error) = &told {
        let message =
            format!("{}: {error}; it holds on this replica, and is told when Redis is back", listed.selector);
        gate.recorder.log.say(Level::Warn, "revocation_not_shared", &message);
    }
    told.is_ok()
}

/// Takes a revocation back on all replicas, or on none: one that still has it would tell it to the others
/// again. `None` = there is none, `Some(false)` = the file says so too.
pub async fn withdraw(gate: &Gate, id: &str) -> Result<Option<bool>, Away> {
    let (shared, now) = (gate.snapshot.load().shared.clone(), Unix::now());
    if let Some(shared) = shared
        && let Some(expires) = gate.blacklist.asked_until(id).filter(|expires| *expires > now)
    {
        let news = News::Withdrawn { id: id.to_owned() };
        shared.tell(&news, expires.0.saturating_sub(now.0)).await?;
        shared.no_longer_pending(&[id.to_owned()]);
    }
    Ok(revocation::withdraw(&gate.blacklist, id))
}

/// One line for each revocation, and what shadow mode would have done.
pub fn tell(gate: &Gate, revoked: &Revoked, by: impl for<'l> Fn(Line<'l>) -> Line<'l>) {
    let reason = revoked.listed.selector.kind.reason();
    if let Some(line) = gate.recorder.log.line(Level::Info, "revocation") {
        named(by(line.text("reason", reason.label())), &revoked.listed)
            .maybe("note", revoked.listed.note.as_deref())
            .number("closed", revoked.closed as u64)
            .number("would_close", revoked.shadowed as u64)
            .write();
    }
    for _ in 0..revoked.shadowed {
        gate.recorder.would_refuse(reason);
    }
}

fn named<'l>(line: Line<'l>, listed: &Listed) -> Line<'l> {
    let selector = &listed.selector;
    let moment = selector.issued_before.map(|moment| moment.to_string());
    let value = (selector.kind != Kind::Before).then_some(selector.value.as_str());
    line.text("id", &listed.id)
        .maybe(selector.kind.claim(), value)
        .maybe("issued_before", moment.as_deref())
        .text("iss", &selector.iss)
        .maybe("expires_at", listed.expires.map(|moment| moment.to_string()).as_deref())
}
