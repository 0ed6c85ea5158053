//! Tokens of plain requests that the gate has no business with: looked at in passing, for the sake of the
//! live sessions that they may prolong, and for nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::extension;
use super::gate::Gate;
use super::handshake::verify;
use super::plan::{Plan, Snapshot};
use super::visit::Visit;
use crate::base::clock::Unix;
use crate::io::jwks::Issuer;
use crate::policy::bearer;
use crate::policy::claims::Facts;
use crate::policy::json::Item;
use crate::policy::jwt;
use crate::policy::trace::Trace;

/// Tokens that are verified in a second for this; the others have to come again.
const A_SECOND: u64 = 50;

/// Shows the request's token to the live sessions of its login, if it has one.
pub fn look(gate: &Arc<Gate>, snapshot: &Arc<Snapshot>, plan: &Plan, visit: Visit<'_>) {
    if gate.permits.taken() == 0 {
        return;
    }
    let Ok(Some(found)) = bearer::find(visit.head, &plan.token) else { return };
    let name = snapshot.verified.name(&found.token);
    if let Some(known) = name.and_then(|name| snapshot.verified.get(name)) {
        if let Some(issuer) = snapshot.issuer(known.facts.iss()) {
            offer(gate, snapshot, issuer, &known.facts);
        }
        return;
    }
    if found.from_cookie || !has_session(gate, &found.token) || !may_verify() {
        return;
    }
    let (gate, snapshot, token) = (Arc::clone(gate), Arc::clone(snapshot), found.token.into_owned());
    // The request does not wait for it.
    tokio::spawn(async move {
        if let Ok((facts, issuer)) = verify(&snapshot, &token, &mut Trace::Off).await {
            offer(&gate, &snapshot, &issuer, &facts);
        }
    });
}

/// Whether the user that a token claims to be of has a session: else it need not be verified.
fn has_session(gate: &Gate, token: &str) -> bool {
    let Ok(jwt) = jwt::parse(token) else { return false };
    let text = |name: &str| jwt.claims.get(name).and_then(Item::as_str);
    let (Some(iss), Some(sub)) = (text("iss"), text("sub")) else { return false };
    gate.sessions.has_user(iss, sub)
}

fn may_verify() -> bool {
    // The second, and how many were verified in it.
    static WINDOW: AtomicU64 = AtomicU64::new(0);
    let now = Unix::now().0.as_secs();
    let next = |window: u64| match (window >> 16 == now, window & 0xffff) {
        (true, count) if count >= A_SECOND => None,
        (true, _) => Some(window + 1),
        (false, _) => Some(now << 16 | 1),
    };
    WINDOW.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
}

fn offer(gate: &Gate, snapshot: &Snapshot, issuer: &Issuer, token: &Arc<Facts>) {
    let now = Unix::now();
    let good = issuer.is_usable()
        && issuer.policy.check(token, now, &mut Trace::Off).is_ok()
        && gate.blacklist.check(token, now).is_ok();
    if good {
        extension::offer(gate, snapshot, issuer, token);
    }
}
