//! What every response but a 101 wears, the backend's as well as our own refusals: CORS, CSP, security
//! headers.

use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use hyper::body::{Body as _, Incoming};

use super::body::Body;
use super::plan::{Plan, Settings};
use super::visit::Visit;
use crate::policy::claims::Facts;
use crate::policy::cors::is_preflight;
use crate::policy::csp;

/// All that decides what a response wears.
#[derive(Clone, Copy, Debug)]
pub struct Dress<'a> {
    pub settings: &'a Settings,
    pub plan: &'a Plan,
    pub visit: Visit<'a>,
    pub facts: Option<&'a Facts>,
    /// What the backend was told to use.
    pub nonce: Option<&'a str>,
}

impl Dress<'_> {
    pub fn apply(&self, response: &mut Response<Body>) {
        let status = response.status();
        let plan = self.plan;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        let (request, headers) = (&self.visit.head.headers, response.headers_mut());
        let seen = self.visit.seen(self.settings);
        if let Some(cors) = &plan.cors {
            let by_token = self.facts.map(Facts::allowed_origins).unwrap_or_default();
            let shares = plan.origin.shares_with(request, seen.own(), Some(&by_token));
            let origin = request.get(header::ORIGIN).filter(|_| shares);
            cors.apply(origin, plan.origin.allows_any(), headers);
        }
        if let Some(csp) = &plan.csp {
            let made;
            let nonce = match self.nonce {
                None => {
                    made = fresh_nonce(plan);
                    made.as_deref()
                }
                told => told,
            };
            let websocket = csp::websocket_origin(seen.secure, &seen.host);
            csp.apply(websocket.as_deref(), nonce, status, headers);
        }
        if let Some(security) = &plan.security_headers {
            security.apply(seen.secure, headers);
        }
    }
}

/// A nonce for one response, if the route's policy has use for it. `None` too where there is no
/// randomness: then nothing inline runs.
pub fn fresh_nonce(plan: &Plan) -> Option<String> {
    plan.csp.as_ref().filter(|csp| csp.uses_nonce())?;
    let mut random = [0; 16];
    getrandom::fill(&mut random).ok()?;
    Some(csp::nonce(random))
}

/// The answer to a preflight, where CORS is ours: before any route or token is looked at (Fetch §4.8).
pub fn preflight(settings: &Settings, visit: Visit<'_>, body: &Incoming) -> Option<Response<Body>> {
    if !is_preflight(visit.head) {
        return None;
    }
    let found = settings.routes.find(visit.head.uri.path());
    let plan = found.map_or(&settings.unmatched, |(plan, _)| plan);
    let cors = plan.cors.as_ref()?;
    let request = &visit.head.headers;
    let shares = plan.origin.shares_with(request, visit.seen(settings).own(), None);
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::NO_CONTENT;
    if !body.is_end_stream() {
        // Nobody reads it, so it must not become the next request.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let dress = Dress { settings, plan, visit, facts: None, nonce: None };
    dress.apply(&mut response);
    let origin = request.get(header::ORIGIN).filter(|_| shares);
    cors.preflight(origin, plan.origin.allows_any(), response.headers_mut());
    Some(response)
}
