//! May this request in? Pure functions: over the head, then over the verified token. No permits, no I/O.

use std::sync::Arc;

use http::Method;
use http::header::ORIGIN;
use http::request::Parts;

use super::plan::{Auth, HttpAuth, Plan, Snapshot, Unmatched};
use crate::base::clock::Unix;
use crate::base::reject::Reason;
use crate::io::jwks::Issuer;
use crate::policy::claims::Facts;
use crate::policy::origin::{Own, Verdict};
use crate::policy::profile::Profile;
use crate::policy::request::{self, Kind};
use crate::policy::route::Params;

/// What shadow mode has let pass. Only the first counts: it is what a handshake would have been
/// refused for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Leniency {
    shadow: bool,
    pub first: Option<Reason>,
}

impl Leniency {
    /// A denial, or in shadow mode a note of it and `None`.
    pub fn apply<T>(&mut self, result: Result<T, Reason>) -> Result<Option<T>, Reason> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(reason) if self.shadow => {
                self.first = self.first.or(Some(reason));
                Ok(None)
            }
            Err(reason) => Err(reason),
        }
    }
}

/// What the head alone has settled.
#[derive(Debug)]
pub struct Judged {
    pub plan: Arc<Plan>,
    pub params: Params,
    pub origin: Verdict,
    pub leniency: Leniency,
}

/// An upgrade before its token is looked for: route and origin.
pub fn upgrade(snapshot: &Snapshot, head: &Parts, host: &str) -> Result<Judged, (Reason, Option<Arc<Plan>>)> {
    let found = snapshot.routes.find(head.uri.path());
    let (plan, params) = found.ok_or((Reason::RouteUnknown, None))?;
    let mut leniency = Leniency { shadow: plan.shadow, first: None };
    let with_plan = |reason| (reason, Some(Arc::clone(plan)));
    // Daphne decodes subprotocols before it splits them: it would see others than we do.
    if plan.upstream.settings.profile == Profile::Daphne
        && request::list(&head.headers, &http::header::SEC_WEBSOCKET_PROTOCOL)
            .any(|value| value.contains('%'))
    {
        return Err(with_plan(Reason::UpgradeMalformed));
    }
    let origin = plan.origin.look(&head.headers, snapshot.own(host));
    if origin == Verdict::Denied {
        leniency.apply::<()>(Err(Reason::OriginDenied)).map_err(with_plan)?;
    }
    Ok(Judged { plan: Arc::clone(plan), params, origin, leniency })
}

/// A plain request: its route, or what holds for those that no route names.
pub fn plain(snapshot: &Snapshot, head: &Parts) -> Result<Judged, Reason> {
    let (plan, params) = match snapshot.routes.find(head.uri.path()) {
        Some((plan, params)) => (plan, params),
        None if snapshot.unmatched_http == Unmatched::Pass => (&snapshot.unmatched, Params::new()),
        None => return Err(Reason::RouteUnknown),
    };
    let leniency = Leniency { shadow: plan.shadow, first: None };
    Ok(Judged { plan: Arc::clone(plan), params, origin: Verdict::Undecided, leniency })
}

/// Whether a token is looked for, and whether it must be there.
pub fn wants_token(plan: &Plan, kind: Kind) -> Option<Auth> {
    match (kind, plan.auth, plan.http) {
        (Kind::Upgrade, Auth::None, _) | (Kind::Plain, _, HttpAuth::Pass) => None,
        (Kind::Upgrade, auth, _) => Some(auth),
        (Kind::Plain, _, HttpAuth::Optional) => Some(Auth::Optional),
        (Kind::Plain, _, HttpAuth::Required) => Some(Auth::Required),
    }
}

/// The token's own checks, and those of the route on it.
pub fn facts(
    judged: &Judged,
    kind: Kind,
    head: &Parts,
    own: Own<'_>,
    verified: Option<(&Facts, &Issuer, bool)>,
    now: Unix,
) -> Result<(), Reason> {
    let facts = verified.map(|(facts, _, _)| facts);
    if let Some((facts, issuer, _)) = verified {
        if !issuer.is_usable() {
            return Err(Reason::KeysUnavailable);
        }
        issuer.policy.check(facts, now)?;
    }
    let from_cookie = verified.is_some_and(|(_, _, from_cookie)| from_cookie);
    match kind {
        Kind::Upgrade => {
            let allowed = facts.map(Facts::allowed_origins).unwrap_or_default();
            judged.plan.origin.look_again(judged.origin, &head.headers, own, &allowed, from_cookie)?;
        }
        Kind::Plain if from_cookie && is_unsafe(&head.method) => same_site(judged, head, own, facts)?,
        Kind::Plain => {}
    }
    judged.plan.rule.check(facts, &judged.params)
}

/// RFC 9110 §9.2.1, turned around.
fn is_unsafe(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

/// A cookie alone must not let another site change anything.
fn same_site(judged: &Judged, head: &Parts, own: Own<'_>, facts: Option<&Facts>) -> Result<(), Reason> {
    let fetch_site = head.headers.get("sec-fetch-site").map(http::HeaderValue::as_bytes);
    if fetch_site == Some(b"same-origin") && !head.headers.contains_key(ORIGIN) {
        return Ok(());
    }
    let first = judged.plan.origin.look(&head.headers, own);
    let allowed = facts.map(Facts::allowed_origins).unwrap_or_default();
    judged.plan.origin.look_again(first, &head.headers, own, &allowed, true)
}
