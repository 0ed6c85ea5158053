//! What holds for a request: the checked policies of its route, and all that the routes share.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::base::section::Section;
use crate::base::value::words;
use crate::io::dial::Endpoint;
use crate::io::jwks::Issuer;
use crate::io::upstream::UpstreamSettings;
use crate::policy::carrier::TokenPolicy;
use crate::policy::claims::Facts;
use crate::policy::frame::FrameLimits;
use crate::policy::headers::{IdentityPolicy, Owned};
use crate::policy::origin::{OriginPolicy, Own};
use crate::policy::route::Routes;
use crate::policy::rule::Rule;
use crate::state::lifecycle::Lifecycle;
use crate::state::permits::Permits;
use crate::state::sessions::Sessions;
use crate::state::verified::VerifiedTokens;
use crate::telemetry::logging::Line;
use crate::telemetry::record::{Describe, Recorder};

use super::refuse::RefuseSettings;
use super::session::SessionSettings;

words! {
    /// `[[route]] auth`, for upgrades.
    pub enum Auth { Required = "required", Optional = "optional", None = "none" }
}

words! {
    /// `[http] auth` and `[[route]] http`, for plain requests.
    pub enum HttpAuth { Pass = "pass", Optional = "optional", Required = "required" }
}

words! {
    /// `[http] unmatched`: a plain request that no route names.
    pub enum Unmatched { Pass = "pass", Refuse = "refuse" }
}

words! {
    /// `[http] token`: whether a plain request keeps its token.
    pub enum HttpToken { Keep = "keep", Strip = "strip" }
}

words! {
    /// `[[route]] mode`
    pub enum Mode { Enforce = "enforce", Shadow = "shadow" }
}

/// `[http]`
#[derive(Clone, Copy, Debug)]
pub struct HttpSettings {
    pub auth: HttpAuth,
    pub unmatched: Unmatched,
    pub token: HttpToken,
}

impl HttpSettings {
    pub fn read(section: &Section<'_>) -> Self {
        Self {
            auth: section.get("auth", HttpAuth::Pass),
            unmatched: section.get("unmatched", Unmatched::Pass),
            token: section.get("token", HttpToken::Keep),
        }
    }
}

/// A backend and how to reach it.
#[derive(Debug)]
pub struct Upstream {
    pub settings: UpstreamSettings,
    pub endpoint: Endpoint,
    /// Position of its pool in each worker.
    pub index: usize,
}

/// The policies of one route.
#[derive(Debug)]
pub struct Plan {
    /// Its path pattern, as the log calls it.
    pub name: String,
    pub auth: Auth,
    pub http: HttpAuth,
    pub http_token: HttpToken,
    pub shadow: bool,
    pub rule: Rule,
    pub token: Arc<TokenPolicy>,
    pub identity: Arc<IdentityPolicy>,
    pub origin: Arc<OriginPolicy>,
    pub frames: Arc<FrameLimits>,
    pub session: Arc<SessionSettings>,
    pub refuse: Arc<RefuseSettings>,
    pub upstream: Arc<Upstream>,
}

/// `[listen] public_url`: what browsers see.
#[derive(Clone, Debug)]
pub struct PublicUrl {
    /// As serialized by RFC 6454.
    pub origin: String,
    pub scheme: String,
    pub host: String,
    pub port: u16,
}

/// All that a handshake looks at: made whole, replaced whole.
#[derive(Debug)]
pub struct Snapshot {
    pub routes: Routes<Arc<Plan>>,
    /// For what no route names.
    pub unmatched: Arc<Plan>,
    pub unmatched_http: Unmatched,
    pub issuers: Vec<Arc<Issuer>>,
    pub hosts: Vec<String>,
    pub public_url: Option<PublicUrl>,
    pub owned: Owned,
    pub handshake_timeout: Option<Duration>,
    pub upstreams: Vec<Arc<Upstream>>,
}

impl Snapshot {
    /// This gate's own address for a request with this `Host`.
    pub fn own<'a>(&'a self, host: &'a str) -> Own<'a> {
        Own { public_origin: self.public_url.as_ref().map(|url| url.origin.as_str()), host }
    }
}

/// What all workers share.
#[derive(Debug)]
pub struct Gate {
    pub snapshot: Snapshot,
    pub verified: VerifiedTokens,
    pub sessions: Arc<Sessions>,
    pub permits: Arc<Permits>,
    pub connections: Arc<Permits>,
    pub lifecycle: Lifecycle,
    pub recorder: Arc<Recorder>,
}

/// Who a request is from and where it goes, as far as it is known: the fields of every log line.
#[derive(Clone, Debug)]
pub struct Who {
    pub address: IpAddr,
    pub request_id: Box<str>,
    pub origin: Option<Box<str>>,
    pub plan: Option<Arc<Plan>>,
    pub facts: Option<Arc<Facts>>,
}

impl Describe for Who {
    fn describe<'l>(&self, line: Line<'l>) -> Line<'l> {
        let facts = self.facts.as_deref();
        let plan = self.plan.as_deref();
        let mode = plan.map(|plan| if plan.shadow { Mode::Shadow } else { Mode::Enforce });
        line.maybe("route", plan.map(|plan| plan.name.as_str()))
            .address("address", self.address)
            .maybe("sub", facts.and_then(Facts::sub))
            .maybe("username", facts.and_then(Facts::username))
            .maybe("sid", facts.and_then(Facts::sid))
            .maybe("jti", facts.and_then(Facts::jti))
            .maybe("iss", facts.map(Facts::iss))
            .maybe("client", facts.and_then(Facts::client))
            .maybe("origin", self.origin.as_deref())
            .text("request_id", &self.request_id)
            .maybe("mode", mode.map(Mode::word))
    }
}
