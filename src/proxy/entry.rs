//! Every request enters here, and here alone a `Reject` becomes an answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::body::Body;
use super::dress::{self, Dress};
use super::forward;
use super::handshake::{self, Agreed, Outcome};
use super::judge;
use super::plan::{AttemptsCount, Gate, Guest, Plan, Settings, Snapshot, Who};
use super::refuse::{self, close};
use super::session::{Early, Session};
use super::visit::Visit;
use super::wire::ClientIo;
use super::worker::Worker;
use crate::base::reject::{Reason, Reject};
use crate::io::dial::Stream;
use crate::policy::cors;
use crate::policy::peer::Peer;
use crate::policy::request::{self, Kind};
use crate::policy::trace::Trace;
use crate::state::permits::Slot;
use crate::telemetry::logging::Level;
use crate::telemetry::record::{Describe, Recorder, SessionRecord, Told, Traffic, shadowed};

/// What becomes of a connection after its 101.
#[derive(Debug)]
pub enum Next {
    Live {
        session: Box<Session<Guest>>,
        backend: Stream,
        early: Vec<u8>,
    },
    /// Accepted only to be closed.
    Close {
        frame: Vec<u8>,
        patience: Option<Duration>,
    },
}

impl Next {
    /// Goes on in a task of its own, so that an idle session carries nothing of its handshake around.
    pub fn start(self, mut client: TcpStream, client_early: Vec<u8>, slot: Slot) {
        match self {
            Self::Live { session, backend, early } => {
                let early = Early { client: client_early, backend: early };
                tokio::spawn(session.run(client, early, backend, slot));
            }
            Self::Close { frame, patience } => {
                tokio::spawn(async move {
                    close(&mut client, &frame, patience).await;
                    drop(slot);
                });
            }
        }
    }

    /// The client has left before it got the 101.
    pub fn lost(self) {
        if let Self::Live { mut session, .. } = self {
            session.record.finish(Reason::ClientLost, None, Traffic::default());
        }
    }
}

/// The answer to an upgrade, and what follows a 101.
#[derive(Debug)]
pub struct Answer {
    pub response: Response<Body>,
    pub next: Option<Next>,
}

/// Answers one request that hyper has read. `slot` is the connection's place under `max_connections`:
/// a session takes it along.
pub async fn serve(
    worker: Arc<Worker>,
    socket: IpAddr,
    slot: Slot,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::convert::Infallible> {
    let started = Instant::now();
    let (mut head, body) = request.into_parts();
    let on_upgrade = head.extensions.remove::<OnUpgrade>();
    match (request::kind(&head), on_upgrade) {
        (Ok(Kind::Upgrade), Some(on_upgrade)) => {
            let answer = upgrade(&worker, socket, &head, started).await;
            if let Some(next) = answer.next {
                tokio::spawn(async move {
                    match into_stream(on_upgrade).await {
                        Some((client, early)) => next.start(client, early, slot),
                        None => next.lost(),
                    }
                });
            }
            Ok(answer.response)
        }
        (Ok(Kind::Plain), _) => Ok(plain(&worker, socket, &head, body, started).await),
        (Ok(Kind::Upgrade), None) => Ok(malformed(&worker, socket, &head, Reason::Internal, started)),
        (Err(reason), _) => Ok(malformed(&worker, socket, &head, reason, started)),
    }
}

fn who(worker: &Worker, peer: &Peer, head: &Parts) -> Who {
    let origin = head.headers.get(header::ORIGIN).map(|o| String::from_utf8_lossy(o.as_bytes()).into());
    let request_id = worker.request_id(head);
    Who { address: peer.address, request_id, origin, plan: None, facts: None }
}

/// The refusal of what is no request that may go on: the connection ends with it.
fn malformed(
    worker: &Worker,
    socket: IpAddr,
    head: &Parts,
    reason: Reason,
    started: Instant,
) -> Response<Body> {
    let snapshot = worker.gate.snapshot.load_full();
    let peer = worker.peer(&snapshot.settings, socket, head);
    let reason =
        if worker.is_over_attempts(&snapshot.settings, &peer) { Reason::AttemptsExceeded } else { reason };
    let who = who(worker, &peer, head);
    let asked = Asked { worker, settings: &snapshot.settings, visit: visit(head, &peer), started };
    let mut response = asked.refused_plain(reason, &who, head.headers.contains_key(header::UPGRADE));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn visit<'a>(head: &'a Parts, peer: &'a Peer) -> Visit<'a> {
    Visit { head, host: request::host(&head.headers).unwrap_or_default(), peer }
}

/// A request under the configuration that was in force when it came.
#[derive(Clone, Copy)]
struct Asked<'a> {
    worker: &'a Worker,
    settings: &'a Settings,
    visit: Visit<'a>,
    started: Instant,
}

impl Asked<'_> {
    fn plan<'p>(&'p self, who: &'p Who) -> &'p Plan {
        who.plan.as_ref().unwrap_or(&self.settings.unmatched)
    }

    /// Records a refusal, and counts it against whoever it is from.
    fn record(&self, reason: Reason, who: &Who, upgrade: bool, told: Told) {
        let target = self.plan(who).token.redacted(&self.visit.head.uri);
        let recorder = &self.worker.gate.recorder;
        recorder.refused(reason, who, upgrade, Some(&target), told, self.started.elapsed());
        self.worker.count_refusal(self.settings, self.visit.peer, reason, upgrade);
    }

    fn dress(&self, response: &mut Response<Body>, who: &Who, nonce: Option<&str>) {
        let facts = who.facts.as_deref();
        Dress { settings: self.settings, plan: self.plan(who), visit: self.visit, facts, nonce }
            .apply(response);
    }

    /// A refusal over HTTP.
    fn refused_plain(&self, reason: Reason, who: &Who, upgrade: bool) -> Response<Body> {
        let mut refusal = refuse::plain(reason.into());
        self.record(reason, who, upgrade, refusal.told);
        self.dress(&mut refusal.response, who, None);
        refusal.response
    }

    /// A refusal as an upgrade is told it.
    fn refused(&self, reject: Reject, who: &Who) -> Answer {
        let plan = self.plan(who);
        let mut refusal = refuse::upgrade(reject, self.visit.head, &plan.refuse, &plan.token);
        self.record(reject.reason, who, true, refusal.told);
        self.dress(&mut refusal.response, who, None);
        let next = refusal.close.map(|frame| Next::Close { frame, patience: plan.session.close_timeout });
        Answer { response: refusal.response, next }
    }
}

/// A handshake that is under way. If its client leaves it is dropped, and still leaves a line.
struct Pending<'r> {
    recorder: &'r Recorder,
    /// `None` once it is told.
    who: Option<Who>,
    started: Instant,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let Some(who) = self.who.take() else { return };
        if let Some(line) = self.recorder.log.line(Level::Info, "handshake_refused") {
            let line = who.describe(line.text("reason", Reason::ClientLost.label()));
            line.millis("duration_ms", self.started.elapsed()).write();
        }
    }
}

/// Answers an upgrade whose form is right.
pub async fn upgrade(worker: &Worker, socket: IpAddr, head: &Parts, started: Instant) -> Answer {
    let gate = &worker.gate;
    let snapshot = gate.snapshot.load_full();
    let settings = &snapshot.settings;
    let peer = worker.peer(settings, socket, head);
    let visit = visit(head, &peer);
    let asked = Asked { worker, settings, visit, started };
    let mut pending = Pending { recorder: &gate.recorder, who: Some(who(worker, &peer, head)), started };
    let is_over = worker.is_over_attempts(settings, &peer);
    if !is_over {
        if let Err(reason) = request::check(head, &settings.hosts) {
            pending.who = None;
            return Answer { response: malformed(worker, socket, head, reason, started), next: None };
        }
        if settings.limits.attempts_count == AttemptsCount::All {
            worker.count_attempt(settings, &peer);
        }
    }
    let outcome = match &mut pending.who {
        _ if is_over => Err(Reason::AttemptsExceeded.into()),
        Some(who) if !gate.lifecycle.refuses() => {
            let line = handshake::run(gate, visit, started, who);
            match settings.handshake_timeout {
                None => line.await,
                Some(timeout) => tokio::time::timeout_at(started + timeout, line)
                    .await
                    .unwrap_or(Err(Reason::UpstreamTimeout.into())),
            }
        }
        _ => Err(Reason::Draining.into()),
    };
    // As before the dial: answers go out in a burst.
    tokio::task::yield_now().await;
    match (outcome, pending.who.take()) {
        (Ok(Outcome::Agreed(agreed)), Some(_)) => open(gate, *agreed, head, started),
        (Ok(Outcome::Answered(response)), Some(who)) => {
            let status = response.status().as_u16();
            let reject = Reject { reason: Reason::UpstreamRefused, upstream_status: Some(status) };
            let mut answer = asked.refused(reject, &who);
            if answer.next.is_none() {
                // Over HTTP the backend speaks for itself.
                let (mut parts, body) = response.into_parts();
                parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
                answer.response = Response::from_parts(parts, Body::Stream(body));
                asked.dress(&mut answer.response, &who, None);
            }
            answer
        }
        (Err(reject), Some(who)) => asked.refused(reject, &who),
        (_, None) => Answer { response: refuse::plain(Reason::Internal.into()).response, next: None },
    }
}

fn open(gate: &Gate, agreed: Agreed, head: &Parts, started: Instant) -> Answer {
    let target = agreed.plan.token.redacted(&head.uri);
    if let Some(reason) = agreed.would_refuse {
        gate.recorder.would_refuse(reason);
    }
    let recorder = Arc::clone(&gate.recorder);
    let entry = Arc::clone(&agreed.registration.entry);
    let session = Session {
        frames: Arc::clone(&agreed.plan.frames),
        settings: Arc::clone(&agreed.plan.session),
        refuse: Arc::clone(&agreed.plan.refuse),
        shadow: agreed.plan.shadow,
        record: SessionRecord::open(recorder, entry, started.elapsed(), agreed.would_refuse, &target),
        registration: Some(agreed.registration),
        expires: agreed.expires,
    };
    Answer {
        response: agreed.response.map(|()| Body::Empty),
        next: Some(Next::Live {
            session: Box::new(session),
            backend: agreed.backend,
            early: agreed.backend_early,
        }),
    }
}

/// The client's connection as hyper hands it over, with what it had read too much.
async fn into_stream(on_upgrade: OnUpgrade) -> Option<(TcpStream, Vec<u8>)> {
    let parts = on_upgrade.await.ok()?.downcast::<TokioIo<ClientIo>>().ok()?;
    Some((parts.io.into_inner().into_stream(), parts.read_buf.to_vec()))
}

async fn plain(
    worker: &Worker,
    socket: IpAddr,
    head: &Parts,
    body: Incoming,
    started: Instant,
) -> Response<Body> {
    let gate = &worker.gate;
    let snapshot = gate.snapshot.load_full();
    let settings = &snapshot.settings;
    let peer = worker.peer(settings, socket, head);
    let asked = Asked { worker, settings, visit: visit(head, &peer), started };
    let is_over = worker.is_over_attempts(settings, &peer);
    if !is_over && let Err(reason) = request::check(head, &settings.hosts) {
        return malformed(worker, socket, head, reason, started);
    }
    let mut who = who(worker, &peer, head);
    let mut would_refuse = None;
    let answer = if is_over {
        Err(Reason::AttemptsExceeded)
    } else if let Some(answer) = dress::preflight(settings, asked.visit, &body) {
        Ok(answer)
    } else {
        forwarded(worker, asked.visit, body, &mut who, &mut would_refuse).await
    };
    let response = answer.unwrap_or_else(|reason| asked.refused_plain(reason, &who, false));
    record_request(&gate.recorder, head, &who, &response, would_refuse, started);
    response
}

/// Judges a plain request, sends it on, and dresses the answer.
async fn forwarded(
    worker: &Worker,
    visit: Visit<'_>,
    body: Incoming,
    who: &mut Who,
    would_refuse: &mut Option<Reason>,
) -> Result<Response<Body>, Reason> {
    let gate = &worker.gate;
    if gate.lifecycle.refuses() {
        return Err(Reason::Draining);
    }
    let (snapshot, verdict) = loop {
        let snapshot = gate.snapshot.load_full();
        (who.plan, who.facts) = (None, None);
        let verdict = judged(gate, &snapshot, visit, who).await;
        if gate.snapshot.load().generation == snapshot.generation {
            break (snapshot, verdict?);
        }
    };
    if let Some(reason) = verdict.judged.leniency.first {
        gate.recorder.would_refuse(reason);
        *would_refuse = Some(reason);
    }
    let plan = Arc::clone(&verdict.judged.plan);
    let nonce = dress::fresh_nonce(&plan);
    let pool = worker.pool(&snapshot, &plan.upstream);
    let sent = forward::send(gate, &snapshot, &pool, visit, body, &verdict, who, nonce.as_deref());
    let mut response = sent.await?;
    let facts = verdict.bearer.as_ref().map(|bearer| bearer.facts.as_ref());
    let dress = Dress { settings: &snapshot.settings, plan: &plan, visit, facts, nonce: nonce.as_deref() };
    dress.apply(&mut response);
    Ok(response)
}

/// The verdict on a plain request under one configuration.
async fn judged(
    gate: &Gate,
    snapshot: &Snapshot,
    visit: Visit<'_>,
    who: &mut Who,
) -> Result<handshake::Verdict, Reason> {
    let judged = judge::plain(&snapshot.settings, visit).map_err(|(reason, plan)| {
        who.plan = plan;
        reason
    })?;
    who.plan = Some(Arc::clone(&judged.plan));
    // Without a policy of ours a preflight is the backend's business; it never has a token.
    if cors::is_preflight(visit.head) {
        let rewrite = crate::policy::bearer::Rewrite::default();
        return Ok(handshake::Verdict { judged, bearer: None, rewrite });
    }
    let (kind, trace) = (Kind::Plain, &mut Trace::Off);
    let mut verdict = handshake::authenticate(snapshot, visit, kind, judged, who, trace).await?;
    let revoked = handshake::check_revoked(gate, verdict.bearer.as_ref());
    verdict.judged.leniency.apply(revoked)?;
    Ok(verdict)
}

fn record_request(
    recorder: &Recorder,
    head: &Parts,
    who: &Who,
    response: &Response<Body>,
    would_refuse: Option<Reason>,
    started: Instant,
) {
    let status = response.status();
    recorder.metrics.http_request(head.method.as_str(), status.as_u16(), started.elapsed());
    if !recorder.log.settings().requests {
        return;
    }
    if let Some(line) = recorder.log.line(Level::Info, "request") {
        let target = who.plan.as_ref().map(|plan| plan.token.redacted(&head.uri));
        let line = line.text("method", head.method.as_str()).maybe("target", target.as_deref());
        let line = who.describe(line.number("status", status.as_u16().into()));
        shadowed(line, would_refuse).millis("duration_ms", started.elapsed()).write();
    }
}
