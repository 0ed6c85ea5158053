//! A request under the configuration that was in force when it came, and its refusals: told, counted,
//! recorded.

use std::sync::Arc;

use http::Response;
use http::header::{self, HeaderValue};
use http::request::Parts;
use tokio::time::Instant;

use super::body::Body;
use super::dress::Dress;
use super::guest::Who;
use super::plan::{Plan, Settings};
use super::refuse;
use super::visit::Visit;
use super::worker::Worker;
use crate::base::reject::{Reason, Reject};
use crate::policy::peer::Peer;
use crate::policy::request;
use crate::telemetry::logging::Level;
use crate::telemetry::record::{Describe as _, Told, shadowed};

/// A request that is being answered.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    worker: &'a Worker,
    settings: &'a Settings,
    pub visit: Visit<'a>,
    started: Instant,
    /// A WebSocket was asked for, in whatever form.
    upgrade: bool,
    /// Its address has been refused too often.
    is_over: bool,
}

impl<'a> Asked<'a> {
    pub fn new(
        worker: &'a Worker,
        settings: &'a Settings,
        head: &'a Parts,
        peer: &'a Peer,
        started: Instant,
    ) -> Self {
        let upgrade = request::wants_websocket(&head.headers);
        let is_over = worker.is_over_attempts(settings, peer);
        if !is_over {
            worker.count_arrival(settings, peer, upgrade);
        }
        let host = request::host(&head.headers).unwrap_or_default();
        let visit = Visit { head, host, peer, noted: None };
        Self { worker, settings, visit, started, upgrade, is_over }
    }

    pub fn who(&self) -> Who {
        let head = self.visit.head;
        let origin = head.headers.get(header::ORIGIN).map(|o| String::from_utf8_lossy(o.as_bytes()).into());
        let request_id = self.worker.request_id(head);
        Who { address: self.visit.peer.address, request_id, origin, plan: None, facts: None }
    }

    /// What is asked before anything of the request is looked at: is the gate still open, and is this
    /// address one that may still try?
    pub fn may_go_on(&mut self, who: &mut Who) -> Result<(), Reason> {
        let closed = self.worker.gate.lifecycle.refuses();
        if !closed && !self.is_over {
            return Ok(());
        }
        // The route says how to tell it, and whether it is in shadow mode.
        let found = self.settings.routes.find(self.visit.head.uri.path());
        who.plan = found.map(|(plan, _)| Arc::clone(plan));
        if closed {
            return Err(Reason::Draining);
        }
        if !who.plan.as_ref().is_some_and(|plan| plan.shadow) {
            return Err(Reason::AttemptsExceeded);
        }
        self.visit.noted = Some(Reason::AttemptsExceeded);
        Ok(())
    }

    pub fn plan<'p>(&'p self, who: &'p Who) -> &'p Plan {
        who.plan.as_ref().unwrap_or(&self.settings.unmatched)
    }

    /// Records a refusal, and counts it against whoever it is from.
    fn record(&self, reason: Reason, who: &Who, told: Told) {
        let target = self.plan(who).token.redacted(&self.visit.head.uri);
        let recorder = &self.worker.gate.recorder;
        recorder.refused(reason, who, self.upgrade, Some(&target), told, self.started.elapsed());
        self.worker.count_refusal(self.settings, self.visit.peer, reason, self.upgrade);
    }

    /// Puts on what every response wears.
    pub fn dress(&self, response: &mut Response<Body>, who: &Who) {
        let facts = who.facts.as_deref();
        let (settings, plan) = (self.settings, self.plan(who));
        Dress { settings, plan, visit: self.visit, facts, nonce: None }.apply(response);
    }

    /// A refusal over HTTP.
    pub fn refused_plain(&self, reason: Reason, who: &Who) -> Response<Body> {
        let mut refusal = refuse::plain(reason.into());
        self.record(reason, who, refusal.told);
        self.dress(&mut refusal.response, who);
        refusal.response
    }

    /// A refusal as an upgrade is told it: with the Close that follows, if it is told by one.
    pub fn refused(&self, reject: Reject, who: &Who) -> (Response<Body>, Option<Vec<u8>>) {
        let plan = self.plan(who);
        let mut refusal = refuse::upgrade(reject, self.visit.head, &plan.refuse, &plan.token);
        self.record(reject.reason, who, refusal.told);
        self.dress(&mut refusal.response, who);
        (refusal.response, refusal.close)
    }

    /// The refusal of what is no request that may go on: the connection ends with it.
    pub fn malformed(&self, reason: Reason) -> Response<Body> {
        let reason = if self.is_over { Reason::AttemptsExceeded } else { reason };
        let who = self.who();
        let mut response = self.refused_plain(reason, &who);
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        if !self.upgrade {
            self.record_request(&who, &response, None);
        }
        response
    }

    /// One plain request, answered.
    pub fn record_request(&self, who: &Who, response: &Response<Body>, would_refuse: Option<Reason>) {
        let (recorder, head) = (&self.worker.gate.recorder, self.visit.head);
        let status = response.status();
        recorder.metrics.http_request(head.method.as_str(), status.as_u16(), self.started.elapsed());
        if !recorder.log.settings().requests {
            return;
        }
        if let Some(line) = recorder.log.line(Level::Info, "request") {
            let target = self.plan(who).token.redacted(&head.uri);
            let line = line.text("method", head.method.as_str()).text("target", &target);
            let line = who.describe(line.number("status", status.as_u16().into()));
            shadowed(line, would_refuse).millis("duration_ms", self.started.elapsed()).write();
        }
    }
}
