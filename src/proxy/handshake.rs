//! One upgrade, in a straight line: verdict, places, registration, blacklist, dial, the backend's 101,
//! the client's 101. Everything held on the way releases itself when the client leaves.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::extension;
use super::gate::Gate;
use super::guest::{Guest, Who};
use super::judge::{self, Judged};
use super::places;
use super::plan::{Auth, HttpToken, Plan, Snapshot};
use super::refuse::switching;
use super::revoked;
use super::visit::Visit;
use super::worker::fall_in;
use crate::base::clock::Unix;
use crate::base::reject::{Reason, Reject};
use crate::io::dial::Stream;
use crate::io::jwks::Issuer;
use crate::io::upstream::{self, Answer, UpgradeRequest};
use crate::policy::bearer::{self, Offer, Rewrite};
use crate::policy::carrier::Delivery;
use crate::policy::claims::Facts;
use crate::policy::headers::{Told, outgoing};
use crate::policy::json::{Item, Json};
use crate::policy::jwt;
use crate::policy::peer::Peer;
use crate::policy::request::Kind;
use crate::policy::trace::Trace;
use crate::state::sessions::{Places, Registration};
use crate::state::verified::Verified;
use crate::telemetry::logging::Level;

/// A token that is what it says.
#[derive(Debug)]
pub struct Bearer {
    pub facts: Arc<Facts>,
    pub issuer: Arc<Issuer>,
    pub from_cookie: bool,
}

impl Bearer {
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    fn verified(&self) -> judge::Verified<'_> {
        judge::Verified { facts: &self.facts, issuer: &self.issuer, from_cookie: self.from_cookie }
    }
}

/// Signature and issuer of a token, from memory if it was verified before.
pub async fn verify(
    snapshot: &Snapshot,
    token: &str,
    trace: &mut Trace,
) -> Result<(Arc<Facts>, Arc<Issuer>), Reason> {
    let name = snapshot.verified.name(token);
    if let Some(known) = name.and_then(|name| snapshot.verified.get(name)) {
        let issuer = snapshot.issuer(known.facts.iss()).ok_or(Reason::TokenIssuer)?;
        if !issuer.policy.algorithms.contains(&known.algorithm) {
            return Err(Reason::TokenAlgorithm);
        }
        return Ok((known.facts, Arc::clone(issuer)));
    }
    let jwt = trace.step("token.from", || "form: a signed JWT".into(), jwt::parse(token))?;
    // The issuer is chosen by what the token claims; its keys then prove the claim.
    let (named, issuer) = match jwt.claims.get("iss").map(Item::kind) {
        Some(Json::Text(iss)) => (iss, snapshot.issuer(iss).ok_or(Reason::TokenIssuer)),
        Some(_) => ("not a text", Err(Reason::TokenMalformed)),
        None => ("missing", Err(Reason::TokenClaimMissing)),
    };
    let issuer = trace.step("issuer.url", || format!("issuer: iss {named}"), issuer)?;
    let verified = issuer.verify(&jwt).await;
    let what = || {
        let algorithm = jwt.algorithm.map_or("an algorithm that the gate does not know", |a| a.word());
        format!("signature: {algorithm}, kid {}", jwt.kid.as_deref().unwrap_or("missing"))
    };
    let (algorithm, key) = trace.step("issuer.algorithms issuer.jwks_uri", what, verified)?;
    let mut facts = trace.step("", || "claims: their types".into(), Facts::of(jwt))?;
    if snapshot.settings.needs_token() {
        facts.keep(token);
    }
    let facts = Arc::new(facts);
    if let Some(name) = name {
        snapshot.verified.put(name, Verified { facts: Arc::clone(&facts), algorithm, key });
    }
    Ok((facts, Arc::clone(issuer)))
}

/// The verdict on a request: everything that can be said without the backend.
#[derive(Debug)]
pub struct Verdict {
    pub judged: Judged,
    pub bearer: Option<Bearer>,
    pub rewrite: Rewrite,
}

impl Verdict {
    /// On a plain request that needs no token; where one would be taken away it is taken away.
    pub fn unasked(head: &Parts, judged: Judged) -> Self {
        let plan = &judged.plan;
        let rewrite = match judge::wants_token(plan, Kind::Plain) {
            Some(_) => bearer::rewrite(head, &plan.token, delivery(plan, Kind::Plain), None),
            None => Rewrite::default(),
        };
        Self { judged, bearer: None, rewrite }
    }
}

/// Looks for the token, verifies it, and judges. What is learned on the way goes into `who`.
pub async fn authenticate(
    snapshot: &Snapshot,
    visit: Visit<'_>,
    kind: Kind,
    mut judged: Judged,
    who: &mut Who,
    trace: &mut Trace,
) -> Result<Verdict, Reason> {
    let (head, settings) = (visit.head, &snapshot.settings);
    let plan = Arc::clone(&judged.plan);
    let Some(auth) = judge::wants_token(&plan, kind) else {
        if kind == Kind::Upgrade {
            let _ = trace.step("route.auth", || "token: not looked for".into(), Ok(()));
            let verdict = judge::facts(&judged, kind, visit, settings, None, Some(Unix::now()), trace);
            judged.leniency.apply(verdict)?;
        }
        return Ok(Verdict { judged, bearer: None, rewrite: Rewrite::default() });
    };
    let found = bearer::find(head, &plan.token);
    let what = || match &found {
        Ok(Some(found)) if found.from_cookie => "token: in a cookie".to_owned(),
        Ok(Some(_)) => "token: found".to_owned(),
        Ok(None) => "token: none".to_owned(),
        Err(_) => "token: cannot be told".to_owned(),
    };
    let there = match &found {
        Ok(None) if auth == Auth::Required => Err(Reason::TokenMissing),
        Ok(_) => Ok(()),
        Err(reason) => Err(*reason),
    };
    let keys = if there == Err(Reason::TokenMissing) { "route.auth" } else { "token.from" };
    judged.leniency.apply(trace.step(keys, what, there))?;
    let found = found.ok().flatten();
    let mut bearer = None;
    if let Some(found) = &found
        && let Some((facts, issuer)) = judged.leniency.apply(verify(snapshot, &found.token, trace).await)?
    {
        who.facts = Some(Arc::clone(&facts));
        bearer = Some(Bearer { facts, issuer, from_cookie: found.from_cookie });
    }
    let now = Unix::now();
    let verified = bearer.as_ref().map(Bearer::verified);
    let verdict = judge::facts(&judged, kind, visit, settings, verified, Some(now), trace);
    judged.leniency.apply(verdict)?;
    // In shadow mode a token that is not good makes nobody.
    if judged.leniency.first.is_some()
        && let Some(shown) = &bearer
        && (!shown.issuer.is_usable()
            || shown.issuer.policy.check(&shown.facts, now, &mut Trace::Off).is_err())
    {
        bearer = None;
    }
    let token = found.as_ref().map(|found| found.token.as_ref());
    let rewrite = bearer::rewrite(head, &plan.token, delivery(&plan, kind), token);
    Ok(Verdict { judged, bearer, rewrite })
}

fn delivery(plan: &Plan, kind: Kind) -> &Delivery {
    match (kind, plan.http_token) {
        (Kind::Upgrade, _) => &plan.upstream.settings.token,
        (Kind::Plain, HttpToken::Keep) => &Delivery::Keep,
        (Kind::Plain, HttpToken::Strip) => &Delivery::Strip,
    }
}

/// Path and query for the backend.
pub fn target(head: &Parts, rewrite: &Rewrite) -> String {
    let path = head.uri.path();
    match (&rewrite.query, head.uri.query()) {
        (Some(query), _) if query.is_empty() => path.to_owned(),
        (Some(query), _) => format!("{path}?{query}"),
        (None, Some(query)) => format!("{path}?{query}"),
        (None, None) => path.to_owned(),
    }
}

/// Calls `out` with each header for the backend. `nonce` is that of the answer's CSP.
pub fn headers_for_backend(
    gate: &Gate,
    snapshot: &Snapshot,
    visit: Visit<'_>,
    verdict: &Verdict,
    who: &Who,
    nonce: Option<&str>,
    out: impl FnMut(&HeaderName, &[u8]),
) {
    let plan = &verdict.judged.plan;
    let settings = &plan.upstream.settings;
    let (identity, left_out) = match &verdict.bearer {
        Some(bearer) => plan.identity.render(&bearer.facts),
        None => (Vec::new(), Vec::new()),
    };
    for name in left_out {
        if let Some(line) = gate.recorder.log.line(Level::Warn, "identity_header_left_out") {
            line.text("header", name.as_str()).text("request_id", &who.request_id).write();
        }
    }
    let seen = visit.seen(&snapshot.settings);
    let told = Told {
        address: who.address,
        proto: seen.scheme(),
        host: &seen.host,
        port: seen.port,
        upstream_host: settings.host.as_ref().map_or(visit.host.as_bytes(), HeaderValue::as_bytes),
        request_id: &who.request_id,
        nonce,
        identity: &identity,
        profile: settings.profile,
        compression: plan.frames.compression,
    };
    outgoing(visit.head, &snapshot.settings.owned, &verdict.rewrite, &told, out);
}

/// An upgrade that both sides have agreed to.
#[derive(Debug)]
pub struct Agreed {
    pub response: Response<()>,
    pub plan: Arc<Plan>,
    pub registration: Registration<Guest>,
    pub expires: Option<Instant>,
    pub would_refuse: Option<Reason>,
    pub backend: Stream,
    pub backend_early: Vec<u8>,
}

/// How an upgrade ended that was not refused by the gate.
#[derive(Debug)]
pub enum Outcome {
    Agreed(Box<Agreed>),
    /// The backend's own 3xx or 4xx.
    Answered(Response<Incoming>),
}

/// An upgrade that may dial.
struct Admitted {
    snapshot: Arc<Snapshot>,
    verdict: Verdict,
    registration: Registration<Guest>,
}

/// Everything up to the dial, under one configuration.
async fn admit(
    gate: &Gate,
    snapshot: &Arc<Snapshot>,
    visit: Visit<'_>,
    who: &mut Who,
) -> Result<Admitted, Reason> {
    let judged = judge::upgrade(&snapshot.settings, visit, &mut Trace::Off).map_err(|(reason, plan)| {
        who.plan = plan;
        reason
    })?;
    who.plan = Some(Arc::clone(&judged.plan));
    let mut verdict = authenticate(snapshot, visit, Kind::Upgrade, judged, who, &mut Trace::Off).await?;
    let plan = Arc::clone(&verdict.judged.plan);
    let leniency = &mut verdict.judged.leniency;
    let address =
        leniency.apply(places::of_address(gate, &plan, snapshot.settings.counted(visit.peer)))?.flatten();
    let all = Some(gate.permits.take().ok_or(Reason::SessionsFull)?);
    let guest = Guest {
        who: who.clone(),
        path: visit.head.uri.path().into(),
        host: visit.host.into(),
        forwarded: visit.peer.trusted.then(|| Box::new(visit.peer.clone())),
        from_cookie: verdict.bearer.as_ref().is_some_and(|bearer| bearer.from_cookie),
        headers: plan.rule.reads_headers().then(|| Box::new(visit.head.headers.clone())),
        shadow: plan.shadow.into(),
        newer: Mutex::default(),
        noted: AtomicU8::new(0),
    };
    let registration = gate.sessions.register(guest, Places { all, address, user: None });
    // From here on whoever ends sessions reaches this one too; and what was revoked before, or by whoever
    // began to drain, is seen.
    if gate.lifecycle.refuses() {
        return Err(Reason::Draining);
    }
    if leniency
        .apply(revoked::check(gate, snapshot, verdict.bearer.as_ref().map(Bearer::facts)).await)?
        .is_none()
    {
        verdict.bearer = None;
    }
    Ok(Admitted { snapshot: Arc::clone(snapshot), verdict, registration })
}

/// The whole line.
pub async fn run(gate: &Gate, visit: Visit<'_>, started: Instant, who: &mut Who) -> Result<Outcome, Reject> {
    let mut peer = visit.peer.clone();
    let admitted = loop {
        let snapshot = gate.snapshot.load_full();
        (who.plan, who.facts) = (None, None);
        let admitted = admit(gate, &snapshot, Visit { peer: &peer, ..visit }, who).await;
        // Registered under a configuration that no longer holds, and perhaps too late to be judged again
        // with the others: so it is judged again here.
        if gate.snapshot.load().generation == snapshot.generation {
            break admitted;
        }
        drop(admitted);
        let settings = &gate.snapshot.load().settings;
        peer = Peer::of(peer.socket, &visit.head.headers, &settings.trusted_proxies);
        who.address = peer.address;
    };
    let visit = Visit { peer: &peer, ..visit };
    let admitted = match admitted {
        Ok(mut admitted) => {
            let (judged, shared) = (&mut admitted.verdict.judged, admitted.snapshot.shared.as_ref());
            let place = places::of_user(gate, shared, &judged.plan, &admitted.registration).await;
            judged.leniency.apply(place).map(|_| admitted)
        }
        Err(reason) => Err(reason),
    };
    gate.recorder.metrics.verdict_after(started.elapsed());
    let Admitted { snapshot, verdict, registration } = admitted?;
    if let Some(bearer) = verdict.bearer.as_ref().filter(|_| verdict.judged.leniency.first.is_none()) {
        extension::offer(gate, &snapshot, &bearer.issuer, &bearer.facts);
    }
    let plan = Arc::clone(&verdict.judged.plan);
    let target = target(visit.head, &verdict.rewrite);
    let mut request = UpgradeRequest::new(&target);
    headers_for_backend(gate, &snapshot, visit, &verdict, who, None, |name, value| {
        request.header(name, value);
    });
    fall_in().await;
    let answer = tokio::select! {
        biased;
        end = std::future::poll_fn(|cx| registration.entry.switch.poll_ended(cx)) => {
            return Err(end.reason.into());
        }
        answer = ask(gate, &plan, request) => answer?,
    };
    match answer {
        Answer::Refused(response) => Ok(Outcome::Answered(response)),
        Answer::Switched { headers: answered, early, stream } => {
            let until = expiry(&plan, verdict.bearer.as_ref());
            registration.entry.expires.store(until.unwrap_or_default(), Ordering::Relaxed);
            let left = until.map(|until| Duration::from_millis(until).saturating_sub(Unix::now().0));
            let expires = left.map(|left| Instant::now() + left);
            Ok(Outcome::Agreed(Box::new(Agreed {
                response: agreement(visit.head, &plan, answered),
                expires,
                plan,
                registration,
                would_refuse: verdict.judged.leniency.first,
                backend: stream,
                backend_early: early,
            })))
        }
    }
}

async fn ask(gate: &Gate, plan: &Plan, mut request: UpgradeRequest) -> Result<Answer, Reject> {
    let upstream = &plan.upstream;
    let stream = upstream.endpoint.dial(upstream.settings.connect_timeout, request.finish()).await;
    let stream = stream.map_err(|error| {
        let message = format!("{:?}: {error}", upstream.endpoint);
        gate.recorder.log.say(Level::Debug, "upstream_unreachable", &message);
        Reason::UpstreamUnreachable
    })?;
    let answer = upstream::answer(stream, &request);
    match upstream.settings.handshake_timeout {
        None => answer.await,
        Some(timeout) => {
            tokio::time::timeout(timeout, answer).await.unwrap_or(Err(Reason::UpstreamTimeout.into()))
        }
    }
}

/// Our 101: the backend's, but for the subprotocol, which is one that the client has offered.
fn agreement(head: &Parts, plan: &Plan, mut answered: HeaderMap) -> Response<()> {
    let selected = answered.remove(header::SEC_WEBSOCKET_PROTOCOL);
    let selected = selected.as_ref().and_then(|value| value.to_str().ok());
    let offer = if plan.auth == Auth::None {
        Offer::of(&head.headers, false)
    } else {
        plan.token.offer(&head.headers)
    };
    let protocol = offer.answer(selected).and_then(|protocol| HeaderValue::try_from(protocol).ok());
    let accept = answered.remove(header::SEC_WEBSOCKET_ACCEPT);
    crate::policy::headers::strip_hop_by_hop(&mut answered);
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answered;
    let accept = accept.as_ref().and_then(|value| value.to_str().ok()).unwrap_or_default();
    switching(response.headers_mut(), accept, protocol);
    response
}

/// When the session ends with its token, in milliseconds since the epoch.
fn expiry(plan: &Plan, bearer: Option<&Bearer>) -> Option<u64> {
    let bearer = bearer?;
    let end = plan.session.good_until(&bearer.issuer.policy, &bearer.facts)?;
    u64::try_from(end.as_millis()).ok()
}
