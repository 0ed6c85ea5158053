//! May this request in? Pure functions: over the head, then over the verified token. No permits, no I/O.
//! A handshake, a plain request, `explain` and a reload all ask here.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::header::ORIGIN;
use http::request::Parts;
use http::{HeaderValue, Method};

use super::guest::Guest;
use super::plan::{Auth, HttpAuth, Plan, Settings, Snapshot, Unmatched};
use super::visit::Visit;
use crate::base::clock::Unix;
use crate::base::reject::Reason;
use crate::io::jwks::Issuer;
use crate::policy::claims::Facts;
use crate::policy::origin::Verdict;
use crate::policy::peer::Peer;
use crate::policy::profile::Profile;
use crate::policy::request::{self, Kind};
use crate::policy::route::Params;
use crate::policy::trace::Trace;

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

/// A verified token.
#[derive(Clone, Copy, Debug)]
pub struct Verified<'a> {
    pub facts: &'a Facts,
    pub issuer: &'a Issuer,
    pub from_cookie: bool,
}

fn ok_if(holds: bool, reason: Reason) -> Result<(), Reason> {
    if holds { Ok(()) } else { Err(reason) }
}

/// Where this request comes from must be allowed on its route.
fn address(plan: &Plan, peer: &Peer, trace: &mut Trace) -> Result<(), Reason> {
    let allowed = plan.allow_addresses.is_empty() || plan.allow_addresses.contains(peer.address);
    let what = || format!("address: {}", peer.address);
    trace.step("listen.allow_addresses", what, ok_if(allowed, Reason::AddressDenied))
}

/// An upgrade before its token is looked for: route, address and origin.
pub fn upgrade(
    settings: &Settings,
    visit: Visit<'_>,
    trace: &mut Trace,
) -> Result<Judged, (Reason, Option<Arc<Plan>>)> {
    let head = visit.head;
    let found = settings.routes.find(head.uri.path()).ok_or(Reason::RouteUnknown);
    let what = || match &found {
        Ok((plan, _)) => format!("route: {} is of {}", head.uri.path(), plan.name),
        Err(_) => format!("route: none for {}", head.uri.path()),
    };
    let _ = trace.step("route.path", what, found.as_ref().map(|_| ()).map_err(|reason| *reason));
    let (plan, params) = found.map_err(|reason| (reason, None))?;
    let mut leniency = Leniency { shadow: plan.shadow, first: visit.noted };
    let with_plan = |reason| (reason, Some(Arc::clone(plan)));
    leniency.apply(address(plan, visit.peer, trace)).map_err(with_plan)?;
    // Daphne decodes subprotocols before it splits them: it would see others than we do.
    if plan.upstream.settings.profile == Profile::Daphne
        && request::list(&head.headers, &http::header::SEC_WEBSOCKET_PROTOCOL)
            .any(|value| value.contains('%'))
    {
        return Err(with_plan(Reason::UpgradeMalformed));
    }
    let origin = plan.origin.look(&head.headers, visit.seen(settings).own());
    let what = || match origin {
        Verdict::Undecided => format!("origin: {}, the token decides", shown_origin(head)),
        Verdict::Pass | Verdict::Denied => format!("origin: {}", shown_origin(head)),
    };
    let keys = if head.headers.contains_key(ORIGIN) { "origin.allow" } else { "origin.allow_missing" };
    let listed = trace.step(keys, what, ok_if(origin != Verdict::Denied, Reason::OriginDenied));
    leniency.apply(listed).map_err(with_plan)?;
    Ok(Judged { plan: Arc::clone(plan), params, origin, leniency })
}

fn shown_origin(head: &Parts) -> String {
    let origin = head.headers.get(ORIGIN).map(HeaderValue::as_bytes);
    origin.map_or_else(|| "none".into(), |origin| String::from_utf8_lossy(origin).into_owned())
}

/// A plain request: its route, or what holds for those that no route names.
pub fn plain(settings: &Settings, visit: Visit<'_>) -> Result<Judged, (Reason, Option<Arc<Plan>>)> {
    let (plan, params) = match settings.routes.find(visit.head.uri.path()) {
        Some((plan, params)) => (plan, params),
        None if settings.unmatched_http == Unmatched::Pass => (&settings.unmatched, Params::new()),
        None => return Err((Reason::RouteUnknown, None)),
    };
    let mut leniency = Leniency { shadow: plan.shadow, first: visit.noted };
    let allowed = leniency.apply(address(plan, visit.peer, &mut Trace::Off));
    allowed.map_err(|reason| (reason, Some(Arc::clone(plan))))?;
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

/// The token's own checks, and those of the route on it. Without `now` those that time decides are left
/// out: a live session has its own clock.
pub fn facts(
    judged: &Judged,
    kind: Kind,
    visit: Visit<'_>,
    settings: &Settings,
    verified: Option<Verified<'_>>,
    now: Option<Unix>,
    trace: &mut Trace,
) -> Result<(), Reason> {
    if let Some(Verified { facts, issuer, .. }) = verified {
        match now {
            Some(_) if !issuer.is_usable() => return Err(Reason::KeysUnavailable),
            Some(now) => issuer.policy.check(facts, now, trace)?,
            None => issuer.policy.check_claims(facts, trace)?,
        }
    }
    let from_cookie = verified.is_some_and(|verified| verified.from_cookie);
    let facts = verified.map(|verified| verified.facts);
    match kind {
        Kind::Upgrade => {
            let again = look_again(judged, judged.origin, visit, settings, facts, from_cookie);
            if judged.origin == Verdict::Undecided || from_cookie {
                let what = || format!("origin again: {}", shown_origin(visit.head));
                trace.step("origin.allow", what, again)?;
            } else {
                again?;
            }
        }
        Kind::Plain if from_cookie && is_unsafe(&visit.head.method) => {
            same_site(judged, visit, settings, facts)?;
        }
        Kind::Plain => {}
    }
    judged.plan.rule.check(facts, &judged.params, &visit.view(), trace)
}

fn look_again(
    judged: &Judged,
    first: Verdict,
    visit: Visit<'_>,
    settings: &Settings,
    facts: Option<&Facts>,
    from_cookie: bool,
) -> Result<(), Reason> {
    let allowed = facts.map(Facts::allowed_origins).unwrap_or_default();
    let seen = visit.seen(settings);
    judged.plan.origin.look_again(first, &visit.head.headers, seen.own(), &allowed, from_cookie)
}

/// RFC 9110 §9.2.1, turned around.
fn is_unsafe(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

/// A cookie alone must not let another site change anything.
fn same_site(
    judged: &Judged,
    visit: Visit<'_>,
    settings: &Settings,
    facts: Option<&Facts>,
) -> Result<(), Reason> {
    let headers = &visit.head.headers;
    let only = |name: &str| {
        let mut lines = headers.get_all(name).iter();
        lines.next().filter(|_| lines.next().is_none()).map(HeaderValue::as_bytes)
    };
    // Browsers write it themselves; under a strict Referrer-Policy a page's own form has the origin `null`.
    let nameless = !headers.contains_key(ORIGIN) || only("origin") == Some(b"null");
    if only("sec-fetch-site") == Some(b"same-origin") && nameless {
        return Ok(());
    }
    let first = judged.plan.origin.look(headers, visit.seen(settings).own());
    look_again(judged, first, visit, settings, facts, true)
}

/// A live session under another configuration: what a handshake would be refused for, but for time and
/// limits; or what its route in shadow mode has let pass.
pub fn again(
    snapshot: &Snapshot,
    guest: &Guest,
    token: Option<&Facts>,
    revoked: Result<(), Reason>,
    now: Unix,
) -> Result<Option<Reason>, Reason> {
    let settings = &snapshot.settings;
    let mut request = http::Request::builder().uri(&*guest.path);
    if let Some(origin) = &guest.who.origin {
        request = request.header(ORIGIN, &**origin);
    }
    let (mut head, ()) = request.body(()).map_err(|_| Reason::RequestMalformed)?.into_parts();
    if let Some(headers) = &guest.headers {
        head.headers = (**headers).clone();
    }
    let direct = Peer::at(guest.who.address);
    let peer = guest.forwarded.as_deref().unwrap_or(&direct);
    let visit = Visit { head: &head, host: &guest.host, peer, noted: None };
    let mut judged = upgrade(settings, visit, &mut Trace::Off).map_err(|(reason, _)| reason)?;
    // Its own clock ends whoever is not in shadow mode.
    let was_shadow = guest.shadow.swap(judged.plan.shadow, Ordering::Relaxed);
    let now = was_shadow.then_some(now);
    let verdict = again_with_token(snapshot, guest, token, visit, &judged, now).and(revoked);
    judged.leniency.apply(verdict)?;
    Ok(judged.leniency.first)
}

fn again_with_token(
    snapshot: &Snapshot,
    guest: &Guest,
    token: Option<&Facts>,
    visit: Visit<'_>,
    judged: &Judged,
    now: Option<Unix>,
) -> Result<(), Reason> {
    let verified = match token {
        _ if wants_token(&judged.plan, Kind::Upgrade).is_none() => None,
        Some(facts) => {
            let issuer = snapshot.issuer(facts.iss()).ok_or(Reason::TokenIssuer)?;
            let ends =
                guest.who.plan.as_ref().and_then(|plan| plan.session.good_until(&issuer.policy, facts));
            if now.zip(ends).is_some_and(|(now, end)| now.0 >= end) {
                return Err(Reason::TokenExpired);
            }
            Some(Verified { facts, issuer, from_cookie: guest.from_cookie })
        }
        None if judged.plan.auth == Auth::Required => return Err(Reason::TokenMissing),
        None => None,
    };
    // What was not kept cannot be judged.
    if judged.plan.rule.reads_headers() && guest.headers.is_none() {
        return Err(Reason::RuleDenied);
    }
    facts(judged, Kind::Upgrade, visit, &snapshot.settings, verified, None, &mut Trace::Off)
}
