//! OpenID Connect Back-Channel Logout 1.0 §2.5–2.8: the issuer tells that a user has logged out.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body as _, Incoming};

use super::body::Body;
use super::gate::Gate;
use super::guest::Who;
use super::plan::{Settings, Snapshot};
use super::revoking::revoke;
use crate::base::clock::Unix;
use crate::base::reject::Reason;
use crate::policy::claims::Facts;
use crate::policy::json::Item;
use crate::policy::jwt;
use crate::policy::logout::{self, LogoutSettings};
use crate::policy::revocation::{Kind, Selector};
use crate::state::naming;
use crate::telemetry::logging::Level;

/// Longest body.
const MAX_BODY: usize = 16 * 1024;
/// And the longest time that it may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is wrong with a logout, and how it is told.
struct Wrong(StatusCode, String);

fn bad(message: impl Into<String>) -> Wrong {
    Wrong(StatusCode::BAD_REQUEST, message.into())
}

/// The settings, if a request is for this path: then nobody else ever sees it.
pub fn at<'s>(settings: &'s Settings, head: &Parts) -> Option<&'s LogoutSettings> {
    settings.blacklist.backchannel_logout.as_ref().filter(|logout| logout.path == head.uri.path())
}

/// The answer to another method than POST.
pub fn other_method() -> Response<Body> {
    let mut response = response(StatusCode::METHOD_NOT_ALLOWED, Body::Empty);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
    response
}

fn response(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Logs out whom the token of a request names.
pub async fn answer(
    gate: &Arc<Gate>,
    snapshot: &Arc<Snapshot>,
    logout: &LogoutSettings,
    head: &Parts,
    body: Incoming,
    who: &Who,
) -> Response<Body> {
    if head.method != Method::POST {
        return other_method();
    }
    let done = async {
        let token = token(head, body).await?;
        let (selector, jti, remembered) = check(snapshot, logout, &token).await?;
        let (gate, snapshot, address) = (Arc::clone(gate), Arc::clone(snapshot), who.address);
        let logout = Logout { gate, snapshot, selector, jti, remembered, address };
        // Whether the issuer waits for the answer or not.
        let carried_out = tokio::spawn(logout.carry_out()).await;
        carried_out.unwrap_or_else(|error| Err(Wrong(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())))
    };
    let Err(Wrong(status, message)) = done.await else {
        return response(StatusCode::OK, Body::Empty);
    };
    if let Some(line) = gate.recorder.log.line(Level::Warn, "logout_refused") {
        line.number("status", status.as_u16().into())
            .text("message", &message)
            .address("address", who.address)
            .text("request_id", &who.request_id)
            .write();
    }
    let error = if status.is_server_error() { "temporarily_unavailable" } else { "invalid_request" };
    let told = serde_json::json!({"error": error, "error_description": message}).to_string();
    let mut response = response(status, Body::Whole(told.into()));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// A logout whose token is good.
struct Logout {
    gate: Arc<Gate>,
    snapshot: Arc<Snapshot>,
    selector: Selector,
    /// The token's name, and how long it could be used again.
    jti: String,
    remembered: Duration,
    address: IpAddr,
}

impl Logout {
    /// Once, on all replicas, as far as they are in touch.
    async fn carry_out(self) -> Result<(), Wrong> {
        let Self { gate, snapshot, selector, jti, address, .. } = &self;
        let (now, name) = (Unix::now(), naming::id(Kind::Jti, &selector.iss, jti));
        if !self.is_first(name, now).await {
            return Err(bad("logout_token: jti was seen before"));
        }
        let expires = Unix(now.0 + snapshot.settings.blacklist.retention);
        let done = revoke(gate, selector, expires, None, now, |line| {
            line.text("by", "backchannel_logout").address("address", *address).text("logout_jti", jti)
        });
        if done.await.is_err() {
            gate.logouts.forget(name);
            if let Some(shared) = &snapshot.shared {
                shared.forget(name).await;
            }
            let full = "[blacklist] max_entries is reached: raise it";
            return Err(Wrong(StatusCode::INSUFFICIENT_STORAGE, full.into()));
        }
        Ok(())
    }

    async fn is_first(&self, name: u128, now: Unix) -> bool {
        if !self.gate.logouts.is_first(name, Unix(now.0 + self.remembered), now) {
            return false;
        }
        match &self.snapshot.shared {
            // A logout that cannot be told from a replay is better heard than lost.
            Some(shared) => shared.is_first(name, self.remembered).await.unwrap_or(true),
            None => true,
        }
    }
}

/// The only `logout_token` of a form.
async fn token(head: &Parts, body: Incoming) -> Result<String, Wrong> {
    let kind = head.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Err(bad("Content-Type; accepted: application/x-www-form-urlencoded"));
    }
    let too_long = || bad(format!("accepted: a body of at most {MAX_BODY} bytes"));
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_long());
    }
    let body = tokio::time::timeout(PATIENCE, Limited::new(body, MAX_BODY).collect()).await;
    let body = body.map_err(|_| bad("the body does not come to an end"))?.map_err(|_| too_long())?.to_bytes();
    let mut tokens = form_urlencoded::parse(&body).filter(|(name, _)| name == "logout_token");
    match (tokens.next(), tokens.next()) {
        (Some((_, token)), None) => Ok(token.into_owned()),
        (None, _) => Err(bad("logout_token is missing")),
        (Some(_), Some(_)) => Err(bad("logout_token occurs twice")),
    }
}

/// Whom a token logs out, its name, and how long it could be used again.
async fn check(
    snapshot: &Snapshot,
    logout: &LogoutSettings,
    token: &str,
) -> Result<(Selector, String, Duration), Wrong> {
    let refused = |reason: Reason| match reason {
        Reason::KeysUnavailable => {
            Wrong(StatusCode::SERVICE_UNAVAILABLE, format!("logout_token: {}", reason.label()))
        }
        reason => bad(format!("logout_token: {}", reason.label())),
    };
    let jwt = jwt::parse_logout(token).map_err(refused)?;
    let iss = jwt.claims.get("iss").and_then(Item::as_str).unwrap_or_default();
    let issuer = snapshot.issuer(iss).ok_or(Reason::TokenIssuer).map_err(refused)?;
    issuer.verify(&jwt).await.map_err(refused)?;
    let facts = Facts::of(jwt).map_err(refused)?;
    let (now, leeway) = (Unix::now(), issuer.policy.leeway);
    let selector = logout::check(&facts, &logout.clients, leeway.as_secs_f64(), now)
        .map_err(|wrong| bad(format!("logout_token: {wrong}")))?;
    let jti = facts.jti().unwrap_or_default().to_owned();
    Ok((selector, jti, Duration::from_secs_f64(logout::OLDEST) + 2 * leeway))
}
