//! Every request enters here, and here alone a `Reject` becomes an answer.

use std::net::IpAddr;
use std::pin::Pin;
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

use super::asked::Asked;
use super::body::Body;
use super::dress::{self, Dress};
use super::extension;
use super::forward;
use super::gate::Gate;
use super::guest::{Guest, Who};
use super::handshake::{self, Agreed, Bearer, Outcome};
use super::judge;
use super::lifetime::Lifetime;
use super::logout;
use super::passing;
use super::plan::Snapshot;
use super::refuse::{self, close};
use super::revoked;
use super::session::{Early, Session};
use super::visit::Visit;
use super::wire::ClientIo;
use super::worker::{Worker, fall_in};
use crate::base::reject::{Reason, Reject};
use crate::io::dial::Stream;
use crate::policy::cors;
use crate::policy::request::{self, Kind};
use crate::policy::trace::Trace;
use crate::state::permits::Slot;
use crate::telemetry::logging::Level;
use crate::telemetry::record::{Describe, Recorder, SessionRecord, Traffic};

/// What a connection does from then on.
pub type Life = Pin<Box<dyn Future<Output = ()> + Send>>;

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
    /// Until the connection ends.
    pub fn live(self, mut client: TcpStream, client_early: Vec<u8>, slot: Slot) -> Life {
        match self {
            Self::Live { session, backend, early } => {
                let early = Early { client: client_early, backend: early };
                Box::pin(session.run(client, &early, backend, slot))
            }
            Self::Close { frame, patience } => Box::pin(async move {
                close(&mut client, &frame, patience).await;
                drop(slot);
            }),
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
    let malformed = |head, reason| {
        let snapshot = worker.gate.snapshot.load_full();
        let peer = worker.peer(&snapshot.settings, socket, head);
        Asked::new(&worker, &snapshot.settings, head, &peer, started).malformed(reason)
    };
    match (request::kind(&head), on_upgrade) {
        (Ok(Kind::Upgrade), Some(on_upgrade)) => {
            let answer = upgrade(&worker, socket, &head, started).await;
            if let Some(next) = answer.next {
                tokio::spawn(async move {
                    match into_stream(on_upgrade).await {
                        Some((client, early)) => drop(tokio::spawn(next.live(client, early, slot))),
                        None => next.lost(),
                    }
                });
            }
            Ok(answer.response)
        }
        (Ok(Kind::Plain), _) => Ok(plain(&worker, socket, &head, body, started).await),
        (Ok(Kind::Upgrade), None) => Ok(malformed(&head, Reason::Internal)),
        (Err(reason), _) => Ok(malformed(&head, reason)),
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
    let mut asked = Asked::new(worker, settings, head, &peer, started);
    let mut who = asked.who();
    let may_go_on = asked.may_go_on(&mut who);
    if let (Ok(()), Err(reason)) = (may_go_on, request::check(head, &settings.hosts)) {
        return Answer { response: asked.malformed(reason), next: None };
    }
    if logout::at(settings, head).is_some() {
        return Answer { response: logout::other_method(), next: None };
    }
    let mut pending = Pending { recorder: &gate.recorder, who: Some(who), started };
    let outcome = match (may_go_on, &mut pending.who) {
        (Ok(()), Some(who)) => {
            let line = handshake::run(gate, asked.visit, started, who);
            match settings.handshake_timeout {
                None => line.await,
                Some(timeout) => tokio::time::timeout_at(started + timeout, line)
                    .await
                    .unwrap_or(Err(Reason::UpstreamTimeout.into())),
            }
        }
        (Err(reason), _) => Err(reason.into()),
        (Ok(()), None) => Err(Reason::Internal.into()),
    };
    fall_in().await;
    match (outcome, pending.who.take()) {
        (Ok(Outcome::Agreed(agreed)), Some(_)) => open(gate, *agreed, head, started),
        (Ok(Outcome::Answered(response)), Some(who)) => {
            let status = response.status().as_u16();
            let reject = Reject { reason: Reason::UpstreamRefused, upstream_status: Some(status) };
            let mut answer = refused(&asked, reject, &who);
            if answer.next.is_none() {
                // Over HTTP the backend speaks for itself.
                let (mut parts, body) = response.into_parts();
                parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
                answer.response = Response::from_parts(parts, Body::Stream(body));
                asked.dress(&mut answer.response, &who);
            }
            answer
        }
        (Err(reject), Some(who)) => refused(&asked, reject, &who),
        (_, None) => Answer { response: refuse::plain(Reason::Internal.into()).response, next: None },
    }
}

fn refused(asked: &Asked<'_>, reject: Reject, who: &Who) -> Answer {
    let (response, close) = asked.refused(reject, who);
    let patience = asked.plan(who).session.close_timeout;
    Answer { response, next: close.map(|frame| Next::Close { frame, patience }) }
}

fn open(gate: &Gate, agreed: Agreed, head: &Parts, started: Instant) -> Answer {
    let target = agreed.plan.token.redacted(&head.uri);
    if let Some(reason) = agreed.would_refuse {
        gate.recorder.would_refuse(reason);
    }
    let recorder = Arc::clone(&gate.recorder);
    let entry = Arc::clone(&agreed.registration.entry);
    let session = Session {
        record: SessionRecord::open(recorder, entry, started.elapsed(), agreed.would_refuse, &target),
        registration: Some(agreed.registration),
        lifetime: Lifetime::new(&agreed.plan.session, agreed.expires, Instant::now()),
        plan: agreed.plan,
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
    let mut asked = Asked::new(worker, settings, head, &peer, started);
    let mut who = asked.who();
    // Neither a drain nor what others of its address have done keeps a logout away.
    if let (Some(logout), Ok(())) = (logout::at(settings, head), request::check(head, &settings.hosts)) {
        let response = logout::answer(gate, &snapshot, logout, head, body, &who).await;
        asked.record_request(&who, &response, None);
        return response;
    }
    let may_go_on = asked.may_go_on(&mut who);
    if let (Ok(()), Err(reason)) = (may_go_on, request::check(head, &settings.hosts)) {
        return asked.malformed(reason);
    }
    let mut would_refuse = None;
    let answer = match (may_go_on, dress::preflight(settings, asked.visit, &body)) {
        (Err(reason), _) => Err(reason),
        (Ok(()), Some(answer)) => Ok(answer),
        (Ok(()), None) => forwarded(worker, asked.visit, body, &mut who, &mut would_refuse).await,
    };
    let response = answer.unwrap_or_else(|reason| asked.refused_plain(reason, &who));
    asked.record_request(&who, &response, would_refuse);
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
    gate: &Arc<Gate>,
    snapshot: &Arc<Snapshot>,
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
        return Ok(handshake::Verdict::unasked(visit.head, judged));
    }
    if judge::wants_token(&judged.plan, Kind::Plain).is_none() {
        passing::look(gate, snapshot, &judged.plan, visit);
    }
    let (kind, trace) = (Kind::Plain, &mut Trace::Off);
    let mut verdict = handshake::authenticate(snapshot, visit, kind, judged, who, trace).await?;
    let revoked = revoked::check(gate, snapshot, verdict.bearer.as_ref().map(Bearer::facts)).await;
    if verdict.judged.leniency.apply(revoked)?.is_none() {
        verdict.bearer = None;
    }
    if let Some(bearer) = verdict.bearer.as_ref().filter(|_| verdict.judged.leniency.first.is_none()) {
        extension::offer(gate, snapshot, &bearer.issuer, &bearer.facts);
    }
    Ok(verdict)
}
