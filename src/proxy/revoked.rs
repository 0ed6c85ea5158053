//! Whether whoever comes is revoked.

use super::gate::Gate;
use super::plan::{OnStale, Snapshot};
use crate::base::clock::Unix;
use crate::base::reject::Reason;
use crate::policy::claims::Facts;
use crate::telemetry::logging::Level;

/// Whether the token, its session or its user is revoked, as far as is known; and if the backend has a
/// blacklist of its own, by that.
pub async fn check(gate: &Gate, snapshot: &Snapshot, facts: Option<&Facts>) -> Result<(), Reason> {
    let Some(facts) = facts else { return Ok(()) };
    if gate.blacklist.is_stale() {
        return Err(Reason::BlacklistUnavailable);
    }
    gate.blacklist.check(facts, Unix::now())?;
    let Some(shared) = snapshot.shared.as_ref().filter(|shared| shared.has_keys()) else { return Ok(()) };
    match shared.look_up(facts).await {
        Ok(revoked) => revoked.map_or(Ok(()), Err),
        Err(error) => {
            gate.recorder.log.say(Level::Debug, "blacklist_not_asked", &error.to_string());
            match snapshot.settings.blacklist.on_stale {
                OnStale::RefuseNew => Err(Reason::BlacklistUnavailable),
                OnStale::Allow => Ok(()),
            }
        }
    }
}
