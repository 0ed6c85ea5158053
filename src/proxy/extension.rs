//! A newer token of the same login prolongs the sessions that an older one has opened: a page renews its
//! token for its HTTP calls anyway, and its socket lives on.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::gate::Gate;
use super::guest::Guest;
use super::judge;
use super::plan::Snapshot;
use crate::base::clock::Unix;
use crate::io::jwks::Issuer;
use crate::policy::claims::Facts;
use crate::state::sessions::{Entry, Subject as _};

/// Shows a verified token that is not revoked to the live sessions of its login.
pub fn offer(gate: &Gate, snapshot: &Snapshot, issuer: &Issuer, token: &Arc<Facts>) {
    let (Some(sub), Some(_)) = (token.sub(), token.sid()) else { return };
    // Most requests come from who has no socket, or with the token that has opened it.
    let is_another = |entry: &Entry<Guest>| {
        entry.subject.who.facts.as_ref().is_some_and(|facts| !Arc::ptr_eq(facts, token))
    };
    for entry in gate.sessions.of_user(token.iss(), sub, is_another) {
        let guest = &entry.subject;
        let Some(old) = guest.facts() else { continue };
        if !is_newer(&old, token) || entry.expires.load(Ordering::Relaxed) == 0 || has_refused(guest, token) {
            continue;
        }
        let Some(plan) = guest.who.plan.as_ref().filter(|plan| plan.session.extend) else { continue };
        let admitted = judge::again(snapshot, guest, Some(token), Ok(()), Unix::now()).is_ok()
            && plan.identity.render(&old).0 == plan.identity.render(token).0;
        if admitted {
            let until = plan.session.good_until(&issuer.policy, token).unwrap_or_default();
            prolong(gate, &entry, token, u64::try_from(until.as_millis()).unwrap_or_default());
        } else {
            guest.newer().refused = Some(Arc::downgrade(token));
        }
        gate.recorder.metrics.extension(admitted);
    }
}

/// Same login and client, issued no earlier, good for longer.
fn is_newer(old: &Facts, new: &Facts) -> bool {
    let later = |old: Option<f64>, new: Option<f64>| old.zip(new).is_some_and(|(old, new)| new > old);
    let earlier = |old: Option<f64>, new: Option<f64>| old.zip(new).is_none_or(|(old, new)| new < old);
    old.sid() == new.sid()
        && old.client() == new.client()
        && later(old.exp, new.exp)
        && !earlier(old.iat, new.iat)
}

fn has_refused(guest: &Guest, token: &Arc<Facts>) -> bool {
    guest.newer().refused.as_ref().is_some_and(|refused| refused.as_ptr() == Arc::as_ptr(token))
}

/// It lives by the new token from now on; and if that was revoked meanwhile, or the configuration has
/// changed, whoever did it has looked at the old one.
fn prolong(gate: &Gate, entry: &Entry<Guest>, token: &Arc<Facts>, until: u64) {
    entry.subject.newer().taken = Some(Arc::clone(token));
    entry.expires.fetch_max(until, Ordering::Relaxed);
    let now = Unix::now();
    let revoked = gate.blacklist.check(token, now);
    if let Err(reason) = judge::again(&gate.snapshot.load(), &entry.subject, Some(token), revoked, now) {
        entry.switch.end(reason, now);
    }
}
