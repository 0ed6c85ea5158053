//! Every request enters here, and here alone a `Reject` becomes an answer.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::connection::ClientIo;
use super::forward::{self, Pools};
use super::handshake::{self, Agreed, Outcome};
use super::judge;
use super::plan::{Gate, Plan, Who};
use super::refuse::{self, Refusal};
use super::session::{Early, Session};
use crate::base::reject::{Reason, Reject};
use crate::policy::request::{Kind, host, request_id_is_plain};
use crate::state::permits::Permit;
use crate::telemetry::logging::Level;
use crate::telemetry::record::{Describe, Recorder, SessionRecord, Told, Traffic, shadowed};

/// Bodies of requests to the backend and of our answers. Trailers are dropped: no policy looks at them.
#[derive(Debug)]
pub enum Body {
    Empty,
    Whole(Bytes),
    Stream(Incoming),
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream(body) => match Pin::new(body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => Poll::Ready(None),
                other => other,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(body) => body.size_hint(),
        }
    }
}

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

/// Answers one request. `slot` is the connection's place under `max_connections`: a session takes it along.
pub async fn serve(
    worker: Arc<Worker>,
    peer: IpAddr,
    slot: Arc<Permit>,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::convert::Infallible> {
    let started = Instant::now();
    let gate = &worker.gate;
    let (mut head, body) = request.into_parts();
    let on_upgrade = head.extensions.remove::<OnUpgrade>();
    let origin = head.headers.get(header::ORIGIN).map(|o| String::from_utf8_lossy(o.as_bytes()).into());
    let request_id = worker.request_id(&head);
    let mut who = Who { address: peer, request_id, origin, plan: None, facts: None };
    let kind = match judge::request(&gate.snapshot, &head) {
        Ok(kind) => kind,
        Err(reason) => {
            let upgrade = head.headers.contains_key(header::UPGRADE);
            let mut refusal = refuse::plain(reason.into());
            refusal.response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            gate.recorder.refused(reason, &who, upgrade, refusal.told, started.elapsed());
            return Ok(refusal.response);
        }
    };
    let host = host(&head.headers).unwrap_or_default().to_owned();
    match (kind, on_upgrade) {
        (Kind::Upgrade, Some(on_upgrade)) => {
            let pending = Pending { recorder: &gate.recorder, who: Some(who), started };
            Ok(upgrade(&worker, pending, slot, &head, &host, on_upgrade).await)
        }
        (Kind::Upgrade, None) => Ok(refuse::plain(Reason::Internal.into()).response),
        (Kind::Plain, _) => {
            let result = plain(&worker, &head, body, &host, &mut who).await;
            let response = match result {
                Ok(response) => response,
                Err(reason) => {
                    let refusal = refuse::plain(reason.into());
                    gate.recorder.refused(reason, &who, false, refusal.told, started.elapsed());
                    refusal.response
                }
            };
            record_request(&gate.recorder, &head, &who, &response, started);
            Ok(response)
        }
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

async fn upgrade(
    worker: &Worker,
    mut pending: Pending<'_>,
    slot: Arc<Permit>,
    head: &Parts,
    host: &str,
    on_upgrade: OnUpgrade,
) -> Response<Body> {
    let gate = &worker.gate;
    let started = pending.started;
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
    let Some(who) = pending.who.take() else { return refuse::plain(Reason::Internal.into()).response };
    let plan = Arc::clone(who.plan.as_ref().unwrap_or(&gate.snapshot.unmatched));
    match outcome {
        Ok(Outcome::Agreed(agreed)) => open(gate, *agreed, who, started, slot, head, on_upgrade),
        Ok(Outcome::Answered(response)) => {
            let reject =
                Reject { reason: Reason::UpstreamRefused, upstream_status: Some(response.status().as_u16()) };
            let refusal = refuse::upgrade(reject, head, &plan.refuse, &plan.token);
            if refusal.close.is_some() {
                return refused(gate, reject, refusal, &who, started, &plan, slot, on_upgrade);
            }
            let told = Told::Status(response.status().as_u16());
            gate.recorder.refused(Reason::UpstreamRefused, &who, true, told, started.elapsed());
            let (mut parts, body) = response.into_parts();
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            Response::from_parts(parts, Body::Stream(body))
        }
        Err(reject) => {
            let refusal = refuse::upgrade(reject, head, &plan.refuse, &plan.token);
            refused(gate, reject, refusal, &who, started, &plan, slot, on_upgrade)
        }
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "all of it is needed once, here, and belongs to no common thing"
)]
fn refused(
    gate: &Gate,
    reject: Reject,
    refusal: Refusal,
    who: &Who,
    started: Instant,
    plan: &Plan,
    slot: Arc<Permit>,
    on_upgrade: OnUpgrade,
) -> Response<Body> {
    gate.recorder.refused(reject.reason, who, true, refusal.told, started.elapsed());
    if let Some(frame) = refusal.close {
        let patience = plan.session.close_timeout;
        tokio::spawn(async move {
            refuse::close(on_upgrade, frame, patience).await;
            drop(slot);
        });
    }
    refusal.response
}

/// Answers the 101 and starts the session's own task, so that all of the handshake is freed.
fn open(
    gate: &Gate,
    agreed: Agreed,
    who: Who,
    started: Instant,
    slot: Arc<Permit>,
    head: &Parts,
    on_upgrade: OnUpgrade,
) -> Response<Body> {
    let target = agreed.plan.token.redacted(&head.uri);
    if let Some(reason) = agreed.would_refuse {
        gate.recorder.would_refuse(reason);
    }
    let record =
        SessionRecord::open(Arc::clone(&gate.recorder), who, started.elapsed(), agreed.would_refuse, &target);
    let mut session = Session {
        plan: agreed.plan,
        record,
        registration: Some(agreed.registration),
        permit: Some(agreed.permit),
        expires: agreed.expires,
    };
    let (backend, backend_early) = (agreed.backend, agreed.backend_early);
    tokio::spawn(async move {
        if let Some((client, client_early)) = into_stream(on_upgrade).await {
            session.run(client, Early { client: client_early, backend: backend_early }, backend).await;
        } else {
            session.record.finish(Reason::ClientLost, None, Traffic::default());
        }
        drop(slot);
    });
    agreed.response.map(|()| Body::Empty)
}

/// The client's connection as hyper hands it over, with what it had read too much.
async fn into_stream(on_upgrade: OnUpgrade) -> Option<(TcpStream, Vec<u8>)> {
    let parts = on_upgrade.await.ok()?.downcast::<TokioIo<ClientIo>>().ok()?;
    Some((parts.io.into_inner().into_stream(), parts.read_buf.to_vec()))
}

async fn plain(
    worker: &Worker,
    head: &Parts,
    body: Incoming,
    host: &str,
    who: &mut Who,
) -> Result<Response<Body>, Reason> {
    let gate = &worker.gate;
    if gate.lifecycle.refuses() {
        return Err(Reason::Draining);
    }
    let judged = judge::plain(&gate.snapshot, head)?;
    let verdict = handshake::authenticate(gate, head, host, Kind::Plain, judged, who).await?;
    if let Some(reason) = verdict.judged.leniency.first {
        gate.recorder.would_refuse(reason);
    }
    forward::send(gate, &worker.pools, head, body, host, verdict, who).await
}

fn record_request(recorder: &Recorder, head: &Parts, who: &Who, response: &Response<Body>, started: Instant) {
    let status = response.status();
    recorder.metrics.http_request(head.method.as_str(), status.as_u16(), started.elapsed());
    if !recorder.log.settings().requests {
        return;
    }
    if let Some(line) = recorder.log.line(Level::Info, "request") {
        let target = who.plan.as_ref().map(|plan| plan.token.redacted(&head.uri));
        let line = line.text("method", head.method.as_str()).maybe("target", target.as_deref());
        let line = who.describe(line.number("status", status.as_u16().into()));
        shadowed(line, None).millis("duration_ms", started.elapsed()).write();
    }
}

/// Status of an answer that hyper gives without asking anybody.
pub fn hyper_told(reason: Reason) -> Told {
    match StatusCode::from_u16(reason.row().status) {
        Ok(status) => Told::Status(status.as_u16()),
        Err(_) => Told::Nothing,
    }
}
