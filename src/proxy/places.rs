//! Places under the limits of sessions that share an address or a user.

use std::net::IpAddr;
use std::sync::Arc;

use super::gate::Gate;
use super::guest::Guest;
use super::plan::{OnUserLimit, Plan};
use crate::base::reject::Reason;
use crate::io::redis::lease::Taken;
use crate::io::redis::link::Shared;
use crate::policy::peer;
use crate::state::naming;
use crate::state::sessions::Registration;
use crate::state::tally::Place;
use crate::telemetry::logging::Level;

/// A place under the limit of sessions of one address.
pub fn of_address(gate: &Gate, plan: &Plan, address: Option<IpAddr>) -> Result<Option<Place>, Reason> {
    let common = &plan.limits.per_address;
    let (Some(limit), Some(address)) = (common.limit, address) else { return Ok(None) };
    let key = gate.addresses.key(&[common.scope.as_bytes(), &peer::prefix(address)]);
    gate.addresses.take(key, limit).map(Some).ok_or(Reason::AddressSessionsExceeded)
}

/// A place under the user's limit, if need be that of the user's oldest session: over all replicas if they
/// are in touch, else on this one. The last step before the dial: nobody who is refused pushes anybody out.
pub async fn of_user(
    gate: &Gate,
    shared: Option<&Arc<Shared>>,
    plan: &Plan,
    registration: &Registration<Guest>,
) -> Result<(), Reason> {
    let common = &plan.limits.per_user;
    let facts = registration.entry.subject.who.facts.as_deref();
    let (Some(limit), Some(facts)) = (common.limit, facts) else { return Ok(()) };
    let Some(sub) = facts.sub() else { return Ok(()) };
    let key = naming::user(&common.scope, facts.iss(), sub);
    let may_displace = plan.limits.on_user_limit == OnUserLimit::CloseOldest && !plan.shadow;
    let entry = &registration.entry;
    let claim = shared
        .map(|shared| (shared, shared.releases.claim(key, shared.by_their_clock(entry.started), entry.id)));
    let taken = match &claim {
        None => None,
        Some((shared, claim)) => match shared.take(claim, key, limit, may_displace).await {
            Ok(taken) => Some(taken),
            Err(error) => {
                gate.recorder.metrics.limits_alone.inc();
                gate.recorder.log.say(Level::Debug, "limit_of_this_replica_alone", &error.to_string());
                None
            }
        },
    };
    let limit = match taken {
        // Counted already, and by all.
        Some(Taken::Granted) => u32::MAX,
        Some(Taken::InsteadOf { replica, session }) => {
            displace(gate, shared, replica, session);
            u32::MAX
        }
        Some(Taken::Full) => return Err(Reason::UserSessionsExceeded),
        None => limit,
    };
    loop {
        if let Some(place) = gate.users.take(key, limit) {
            entry.hold(match claim {
                Some((_, claim)) => place.with(claim),
                None => place,
            });
            return Ok(());
        }
        if !may_displace || !gate.sessions.displace_oldest(facts.iss(), sub, key) {
            return Err(Reason::UserSessionsExceeded);
        }
    }
}

/// Tells a session to give way, wherever it is.
fn displace(gate: &Gate, shared: Option<&Arc<Shared>>, replica: String, session: u64) {
    let Some(shared) = shared else { return };
    if shared.replica() == replica {
        return gate.sessions.displace(session);
    }
    // The newer one need not wait for that.
    let shared = Arc::clone(shared);
    let log = gate.recorder.log.clone();
    tokio::spawn(async move {
        if let Err(error) = shared.displace(replica, session).await {
            log.say(Level::Warn, "session_not_displaced", &error.to_string());
        }
    });
}
