//! Places under the limits of sessions that share an address or a user.

use std::net::IpAddr;

use super::gate::Gate;
use super::guest::Guest;
use super::plan::{OnUserLimit, Plan};
use crate::base::reject::Reason;
use crate::policy::peer;
use crate::state::sessions::Registration;
use crate::state::tally::Place;

/// A place under the limit of sessions of one address.
pub fn of_address(gate: &Gate, plan: &Plan, address: Option<IpAddr>) -> Result<Option<Place>, Reason> {
    let shared = &plan.limits.per_address;
    let (Some(limit), Some(address)) = (shared.limit, address) else { return Ok(None) };
    let key = gate.addresses.key(&[shared.scope.as_bytes(), &peer::prefix(address)]);
    gate.addresses.take(key, limit).map(Some).ok_or(Reason::AddressSessionsExceeded)
}

/// A place under the user's limit, if need be that of the user's oldest session. The last step before the
/// dial: nobody who is refused pushes anybody out.
pub fn of_user(gate: &Gate, plan: &Plan, registration: &Registration<Guest>) -> Result<(), Reason> {
    let shared = &plan.limits.per_user;
    let facts = registration.entry.subject.who.facts.as_deref();
    let (Some(limit), Some(facts)) = (shared.limit, facts) else { return Ok(()) };
    let Some(sub) = facts.sub() else { return Ok(()) };
    let key = gate.users.key(&[shared.scope.as_bytes(), facts.iss().as_bytes(), sub.as_bytes()]);
    loop {
        if let Some(place) = gate.users.take(key, limit) {
            registration.entry.hold(place);
            return Ok(());
        }
        let may_displace = plan.limits.on_user_limit == OnUserLimit::CloseOldest && !plan.shadow;
        if !may_displace || !gate.sessions.displace_oldest(facts.iss(), sub, key) {
            return Err(Reason::UserSessionsExceeded);
        }
    }
}
