//! Every request enters here, and here alone a `Reject` becomes an answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
use super::forward::{self, Pools};
use super::handshake::{self, Agreed, Outcome};
use super::judge;
use super::plan::{Gate, Who};
use super::refuse::{self, close};
use super::session::{Early, Session};
use super::wire::ClientIo;
use crate::base::reject::{Reason, Reject};
use crate::io::dial::Stream;
use crate::policy::request::{self, Kind, request_id_is_plain};
use crate::state::permits::Slot;
use crate::telemetry::logging::Level;
use crate::telemetry::record::{Describe, Recorder, SessionRecord, Traffic, shadowed};

/// One worker's view of the gate.
#[derive(Debug)]
pub struct Worker {
    pub gate: Arc<Gate>,
    pub pools: Pools,
    /// Makes the request ids of this worker unlike those of any other.
    pub id_prefix: u64,
    pub id_next: AtomicU64,
}

impl Worker {
    fn request_id(&self, head: &Parts) -> Box<str> {
        let given = head.headers.get("x-request-id").map(HeaderValue::as_bytes);
        if let Some(id) =
            given.filter(|id| request_id_is_plain(id)).and_then(|id| std::str::from_utf8(id).ok())
        {
            return id.into();
        }
        let n = self.id_next.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{n:08x}", self.id_prefix).into()
    }
}

/// What becomes of a connection after its 101.
#[derive(Debug)]
pub enum Next {
    Live {
        session: Box<Session<Who>>,
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
    peer: IpAddr,
    slot: Slot,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::convert::Infallible> {
    let started = Instant::now();
    let (mut head, body) = request.into_parts();
    let on_upgrade = head.extensions.remove::<OnUpgrade>();
    match (request::kind(&head), on_upgrade) {
        (Ok(Kind::Upgrade), Some(on_upgrade)) => {
            let answer = upgrade(&worker, peer, &head, started).await;
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
        (Ok(Kind::Plain), _) => Ok(plain(&worker, peer, &head, body, started).await),
        (Ok(Kind::Upgrade), None) => Ok(malformed(&worker, peer, &head, Reason::Internal, started)),
        (Err(reason), _) => Ok(malformed(&worker, peer, &head, reason, started)),
    }
}

fn who(worker: &Worker, peer: IpAddr, head: &Parts) -> Who {
    let origin = head.headers.get(header::ORIGIN).map(|o| String::from_utf8_lossy(o.as_bytes()).into());
    Who { address: peer, request_id: worker.request_id(head), origin, plan: None, facts: None }
}

/// The refusal of what is no request that may go on: the connection ends with it.
fn malformed(
    worker: &Worker,
    peer: IpAddr,
    head: &Parts,
    reason: Reason,
    started: Instant,
) -> Response<Body> {
    let mut refusal = refuse::plain(reason.into());
    refusal.response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    let (who, upgrade) = (who(worker, peer, head), head.headers.contains_key(header::UPGRADE));
    let target = worker.gate.snapshot.unmatched.token.redacted(&head.uri);
    worker.gate.recorder.refused(reason, &who, upgrade, Some(&target), refusal.told, started.elapsed());
    refusal.response
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
pub async fn upgrade(worker: &Worker, peer: IpAddr, head: &Parts, started: Instant) -> Answer {
    let gate = &worker.gate;
    if let Err(reason) = request::check(head, &gate.snapshot.hosts) {
        return Answer { response: malformed(worker, peer, head, reason, started), next: None };
    }
    let host = request::host(&head.headers).unwrap_or_default();
    let mut pending = Pending { recorder: &gate.recorder, who: Some(who(worker, peer, head)), started };
    let outcome = match &mut pending.who {
        Some(who) if !gate.lifecycle.refuses() => {
            let line = handshake::run(gate, head, host, started, who);
            match gate.snapshot.handshake_timeout {
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
        (Ok(Outcome::Agreed(agreed)), Some(who)) => open(gate, *agreed, who, head, started),
        (Ok(Outcome::Answered(response)), Some(who)) => {
            let status = response.status().as_u16();
            let reject = Reject { reason: Reason::UpstreamRefused, upstream_status: Some(status) };
            let mut answer = refused(gate, reject, &who, head, started);
            if answer.next.is_none() {
                // Over HTTP the backend speaks for itself.
                let (mut parts, body) = response.into_parts();
                parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
                answer.response = Response::from_parts(parts, Body::Stream(body));
            }
            answer
        }
        (Err(reject), Some(who)) => refused(gate, reject, &who, head, started),
        (_, None) => Answer { response: refuse::plain(Reason::Internal.into()).response, next: None },
    }
}

fn refused(gate: &Gate, reject: Reject, who: &Who, head: &Parts, started: Instant) -> Answer {
    let plan = who.plan.as_ref().unwrap_or(&gate.snapshot.unmatched);
    let refusal = refuse::upgrade(reject, head, &plan.refuse, &plan.token);
    let target = plan.token.redacted(&head.uri);
    gate.recorder.refused(reject.reason, who, true, Some(&target), refusal.told, started.elapsed());
    let next = refusal.close.map(|frame| Next::Close { frame, patience: plan.session.close_timeout });
    Answer { response: refusal.response, next }
}

fn open(gate: &Gate, agreed: Agreed, who: Who, head: &Parts, started: Instant) -> Answer {
    let target = agreed.plan.token.redacted(&head.uri);
    if let Some(reason) = agreed.would_refuse {
        gate.recorder.would_refuse(reason);
    }
    let recorder = Arc::clone(&gate.recorder);
    let session = Session {
        frames: Arc::clone(&agreed.plan.frames),
        settings: Arc::clone(&agreed.plan.session),
        refuse: Arc::clone(&agreed.plan.refuse),
        shadow: agreed.plan.shadow,
        record: SessionRecord::open(recorder, who, started.elapsed(), agreed.would_refuse, &target),
        registration: Some(agreed.registration),
        permit: Some(agreed.permit),
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
    peer: IpAddr,
    head: &Parts,
    body: Incoming,
    started: Instant,
) -> Response<Body> {
    let gate = &worker.gate;
    if let Err(reason) = request::check(head, &gate.snapshot.hosts) {
        return malformed(worker, peer, head, reason, started);
    }
    let mut who = who(worker, peer, head);
    let mut would_refuse = None;
    let response = match forwarded(worker, head, body, &mut who, &mut would_refuse).await {
        Ok(response) => response,
        Err(reason) => {
            let refusal = refuse::plain(reason.into());
            let plan = who.plan.as_ref().unwrap_or(&gate.snapshot.unmatched);
            let target = plan.token.redacted(&head.uri);
            gate.recorder.refused(reason, &who, false, Some(&target), refusal.told, started.elapsed());
            refusal.response
        }
    };
    record_request(&gate.recorder, head, &who, &response, would_refuse, started);
    response
}

async fn forwarded(
    worker: &Worker,
    head: &Parts,
    body: Incoming,
    who: &mut Who,
    would_refuse: &mut Option<Reason>,
) -> Result<Response<Body>, Reason> {
    let gate = &worker.gate;
    if gate.lifecycle.refuses() {
        return Err(Reason::Draining);
    }
    let host = request::host(&head.headers).unwrap_or_default();
    let judged = judge::plain(&gate.snapshot, head)?;
    let verdict = handshake::authenticate(gate, head, host, Kind::Plain, judged, who).await?;
    if let Some(reason) = verdict.judged.leniency.first {
        gate.recorder.would_refuse(reason);
        *would_refuse = Some(reason);
    }
    forward::send(gate, &worker.pools, head, body, host, verdict, who).await
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
