//! One upgrade, in a straight line: verdict, permits, registration, dial, the backend's 101, the
//! client's 101. Everything held on the way releases itself when the client leaves.

use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::judge::{self, Judged};
use super::plan::{Auth, Gate, Plan, Who};
use super::refuse::switching;
use super::session::OnExpiry;
use crate::base::clock::Unix;
use crate::base::reject::{Reason, Reject};
use crate::io::dial::Stream;
use crate::io::jwks::Issuer;
use crate::io::upstream::{self, Answer, UpgradeRequest};
use crate::policy::bearer::{self, Offer, Rewrite};
use crate::policy::carrier::Delivery;
use crate::policy::claims::Facts;
use crate::policy::headers::{Told, outgoing};
use crate::policy::jwt;
use crate::policy::request::Kind;
use crate::state::permits::Permit;
use crate::state::sessions::Registration;
use crate::state::verified::Verified;
use crate::telemetry::logging::Level;

/// A token that is what it says.
#[derive(Debug)]
pub struct Bearer {
    pub facts: Arc<Facts>,
    pub issuer: Arc<Issuer>,
    pub from_cookie: bool,
}

/// Signature and issuer of a token, from memory if it was verified before.
pub async fn verify(gate: &Gate, token: &str) -> Result<(Arc<Facts>, Arc<Issuer>), Reason> {
    let issuer_of = |iss: &str| gate.snapshot.issuers.iter().find(|issuer| issuer.policy.url == iss);
    if let Some(known) = gate.verified.get(token) {
        let issuer = issuer_of(known.facts.iss()).ok_or(Reason::TokenIssuer)?;
        if !issuer.policy.algorithms.contains(&known.algorithm) {
            return Err(Reason::TokenAlgorithm);
        }
        return Ok((known.facts, Arc::clone(issuer)));
    }
    let jwt = jwt::parse(token)?;
    // The issuer is chosen by what the token claims; its keys then prove the claim.
    let issuer = match jwt.claims.get("iss") {
        Some(serde_json::Value::String(iss)) => issuer_of(iss).ok_or(Reason::TokenIssuer)?,
        Some(_) => return Err(Reason::TokenMalformed),
        None => return Err(Reason::TokenClaimMissing),
    };
    let (algorithm, key) = issuer.verify(&jwt).await?;
    let facts = Arc::new(Facts::of(jwt)?);
    gate.verified.put(token, Verified { facts: Arc::clone(&facts), algorithm, key });
    Ok((facts, Arc::clone(issuer)))
}

/// The verdict on a request: everything that can be said without the backend.
pub struct Verdict {
    pub judged: Judged,
    pub bearer: Option<Bearer>,
    pub rewrite: Rewrite,
}

/// Looks for the token, verifies it, and judges. What is learned on the way goes into `who`.
pub async fn authenticate(
    gate: &Gate,
    head: &Parts,
    host: &str,
    kind: Kind,
    mut judged: Judged,
    who: &mut Who,
) -> Result<Verdict, Reason> {
    let plan = Arc::clone(&judged.plan);
    who.plan = Some(Arc::clone(&plan));
    let own = gate.snapshot.own(host);
    let Some(auth) = judge::wants_token(&plan, kind) else {
        if kind == Kind::Upgrade {
            let verdict = judge::facts(&judged, kind, head, own, None, Unix::now());
            judged.leniency.apply(verdict)?;
        }
        return Ok(Verdict { judged, bearer: None, rewrite: Rewrite::default() });
    };
    let found = judged.leniency.apply(bearer::find(head, &plan.token))?.flatten();
    let mut bearer = None;
    match &found {
        None if auth == Auth::Required => {
            judged.leniency.apply::<()>(Err(Reason::TokenMissing))?;
        }
        None => {}
        Some(found) => {
            if let Some((facts, issuer)) = judged.leniency.apply(verify(gate, &found.token).await)? {
                who.facts = Some(Arc::clone(&facts));
                bearer = Some(Bearer { facts, issuer, from_cookie: found.from_cookie });
            }
        }
    }
    let now = Unix::now();
    let verified = bearer.as_ref().map(|b| (b.facts.as_ref(), b.issuer.as_ref(), b.from_cookie));
    let verdict = judge::facts(&judged, kind, head, own, verified, now);
    judged.leniency.apply(verdict)?;
    // In shadow mode a token that is not good makes nobody.
    if judged.leniency.first.is_some()
        && let Some(shown) = &bearer
        && (!shown.issuer.is_usable() || shown.issuer.policy.check(&shown.facts, now).is_err())
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
        (Kind::Plain, super::plan::HttpToken::Keep) => &Delivery::Keep,
        (Kind::Plain, super::plan::HttpToken::Strip) => &Delivery::Strip,
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

/// Calls `out` with each header for the backend.
pub fn headers_for_backend(
    gate: &Gate,
    head: &Parts,
    host: &str,
    verdict: &Verdict,
    who: &Who,
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
    let port = host.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let public = gate.snapshot.public_url.as_ref();
    let told = Told {
        address: who.address,
        proto: public.map_or("http", |url| url.scheme.as_str()),
        host: public.map_or(host, |url| url.host.as_str()),
        port: public.map_or(port.unwrap_or(80), |url| url.port),
        upstream_host: settings.host.as_ref().map_or(host.as_bytes(), HeaderValue::as_bytes),
        request_id: &who.request_id,
        identity: &identity,
        profile: settings.profile,
        compression: plan.frames.compression,
    };
    outgoing(head, &gate.snapshot.owned, &verdict.rewrite, &told, out);
}

/// An upgrade that both sides have agreed to.
#[derive(Debug)]
pub struct Agreed {
    pub response: Response<()>,
    pub plan: Arc<Plan>,
    pub registration: Registration,
    pub permit: Permit,
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

/// The whole line.
pub async fn run(
    gate: &Gate,
    head: &Parts,
    host: &str,
    started: Instant,
    who: &mut Who,
) -> Result<Outcome, Reject> {
    let judged = judge::upgrade(&gate.snapshot, head, host).map_err(|(reason, plan)| {
        who.plan = plan;
        reason
    });
    let verdict = match judged {
        Ok(judged) => authenticate(gate, head, host, Kind::Upgrade, judged, who).await,
        Err(reason) => Err(reason),
    };
    gate.recorder.metrics.verdict_after(started.elapsed());
    let verdict = verdict?;
    let plan = Arc::clone(&verdict.judged.plan);
    let permit = gate.permits.take().ok_or(Reason::SessionsFull)?;
    let registration = gate.sessions.register(who.facts.clone());
    // From here on whoever ends sessions reaches this one too; and whoever began to drain is seen.
    if gate.lifecycle.refuses() {
        return Err(Reason::Draining.into());
    }
    let target = target(head, &verdict.rewrite);
    let mut request = UpgradeRequest::new(&target);
    headers_for_backend(gate, head, host, &verdict, who, |name, value| request.header(name, value));
    // All that are ready are judged first and then dial one after the other: the backend wakes once for
    // many, where every single wake-up costs more than a verdict.
    tokio::task::yield_now().await;
    let answer = tokio::select! {
        answer = ask(gate, &plan, request) => answer?,
        reason = std::future::poll_fn(|cx| registration.switch.poll_ended(cx)) => return Err(reason.into()),
    };
    match answer {
        Answer::Refused(response) => Ok(Outcome::Answered(response)),
        Answer::Switched { headers: answered, early, stream } => Ok(Outcome::Agreed(Box::new(Agreed {
            response: agreement(head, &plan, answered),
            expires: expiry(&plan, verdict.bearer.as_ref()),
            plan,
            registration,
            permit,
            would_refuse: verdict.judged.leniency.first,
            backend: stream,
            backend_early: early,
        }))),
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

/// When the session ends with its token.
fn expiry(plan: &Plan, bearer: Option<&Bearer>) -> Option<Instant> {
    let bearer = bearer.filter(|_| plan.session.on_expiry == OnExpiry::Close)?;
    let slack = bearer.issuer.policy.leeway.max(plan.session.expiry_grace);
    let end = Duration::try_from_secs_f64(bearer.facts.exp?).ok()? + slack;
    Some(Instant::now() + end.saturating_sub(Unix::now().0))
}
