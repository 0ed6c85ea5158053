//! What holds for a request: the checked policies of its route, and all that the routes share.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::base::section::Section;
use crate::base::value::{Count, Rate, Span, words};
use crate::io::dial::Endpoint;
use crate::io::jwks::Issuer;
use crate::io::redis::link::Shared;
use crate::io::redis::settings::RedisSettings;
use crate::io::upstream::UpstreamSettings;
use crate::policy::carrier::TokenPolicy;
use crate::policy::claims::IssuerPolicy;
use crate::policy::cors::CorsPolicy;
use crate::policy::csp::CspPolicy;
use crate::policy::frame::FrameLimits;
use crate::policy::headers::{IdentityPolicy, Owned};
use crate::policy::logout::LogoutSettings;
use crate::policy::origin::OriginPolicy;
use crate::policy::peer::{Networks, Peer};
use crate::policy::route::Routes;
use crate::policy::rule::Rule;
use crate::policy::security_headers::SecurityHeaders;
use crate::state::verified::VerifiedTokens;

use super::heartbeat::HeartbeatSettings;
use super::lifetime::SessionSettings;
use super::refuse::RefuseSettings;
use super::wire::HeadLimits;

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

words! {
    /// `[limits] on_user_limit`
    pub enum OnUserLimit { Refuse = "refuse", CloseOldest = "close_oldest" }
}

words! {
    /// `[limits] attempts_count`
    pub enum AttemptsCount { Refused = "refused", All = "all" }
}

words! {
    /// `[blacklist] on_stale`
    pub enum OnStale { RefuseNew = "refuse_new", Allow = "allow" }
}

/// A limit on sessions that share something. They are counted together by what set the limit: the
/// root's over all routes that inherit it, a route's own on that route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Common {
    pub limit: Option<u32>,
    /// The path of the route whose limit it is; empty = the root's.
    pub scope: String,
}

impl Common {
    fn read(section: &Section<'_>, key: &str, inherited: &Self, scope: &str) -> Self {
        let scope = if section.has(key) { scope.to_owned() } else { inherited.scope.clone() };
        let limit = section.get(key, inherited.limit.map(Count)).map(|count| count.0);
        Self { limit, scope }
    }
}

/// `[limits]` on how many sessions there are, as far as routes may have their own.
#[derive(Clone, Debug)]
pub struct SessionLimits {
    pub per_address: Common,
    pub per_user: Common,
    pub on_user_limit: OnUserLimit,
}

impl Default for SessionLimits {
    fn default() -> Self {
        let (per_address, per_user) = (Common::default(), Common::default());
        Self { per_address, per_user, on_user_limit: OnUserLimit::Refuse }
    }
}

impl SessionLimits {
    /// Reads the section of the route with this path, or with an empty one the root's.
    pub fn read(section: &Section<'_>, inherited: &Self, scope: &str) -> Self {
        Self {
            per_address: Common::read(section, "sessions_per_address", &inherited.per_address, scope),
            per_user: Common::read(section, "sessions_per_user", &inherited.per_user, scope),
            on_user_limit: section.get("on_user_limit", inherited.on_user_limit),
        }
    }
}

/// `[limits]` of the gate as a whole.
#[derive(Clone, Copy, Debug)]
pub struct GateLimits {
    pub attempts: Option<Rate>,
    pub attempts_count: AttemptsCount,
    pub sessions: Option<u32>,
}

impl GateLimits {
    pub fn read(section: &Section<'_>) -> Self {
        let attempts = Rate { count: 20, per: Duration::from_secs(60) };
        Self {
            attempts: section.get("attempts_per_address", Some(attempts)),
            attempts_count: section.get("attempts_count", AttemptsCount::Refused),
            sessions: section.get("sessions", Some(Count(20_000))).map(|count| count.0),
        }
    }
}

/// `[blacklist]`
#[derive(Clone, Debug)]
pub struct BlacklistSettings {
    pub retention: Duration,
    pub max_entries: u32,
    pub file: Option<String>,
    pub redis: Option<RedisSettings>,
    pub backchannel_logout: Option<LogoutSettings>,
    pub on_stale: OnStale,
    pub stale_after: Option<Duration>,
}

impl BlacklistSettings {
    pub fn read(section: &Section<'_>) -> Self {
        let (redis, logout) = (section.section("redis"), section.section("backchannel_logout"));
        let redis = redis.is_given().then(|| RedisSettings::read(&redis)).flatten();
        let backchannel_logout = logout.is_given().then(|| LogoutSettings::read(&logout)).flatten();
        if backchannel_logout.is_some() && redis.is_none() {
            section.warning("backchannel_logout", "without [blacklist] redis a logout closes the sockets of the one replica that hears of it, and is forgotten when that restarts; write redis = { url = \"redis://…\" }");
        }
        Self {
            redis,
            backchannel_logout,
            retention: section.get("retention", Span(Duration::from_secs(86_400))).0,
            max_entries: section.get("max_entries", Count(1_000_000)).0,
            file: section.optional("file"),
            on_stale: section.get("on_stale", OnStale::RefuseNew),
            stale_after: section.get("stale_after", Some(Span(Duration::from_secs(60)))).map(|span| span.0),
        }
    }
}

/// A backend and how to reach it.
#[derive(Debug)]
pub struct Upstream {
    pub settings: UpstreamSettings,
    pub endpoint: Endpoint,
    /// Names its pool in each worker; no two ever have the same.
    pub id: u64,
}

impl Upstream {
    pub fn new(settings: UpstreamSettings, endpoint: Endpoint) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self { settings, endpoint, id: NEXT.fetch_add(1, Ordering::Relaxed) })
    }
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
    pub allow_addresses: Arc<Networks>,
    pub token: Arc<TokenPolicy>,
    pub identity: Arc<IdentityPolicy>,
    pub origin: Arc<OriginPolicy>,
    pub cors: Option<Arc<CorsPolicy>>,
    pub csp: Option<Arc<CspPolicy>>,
    pub security_headers: Option<Arc<SecurityHeaders>>,
    pub limits: Arc<SessionLimits>,
    pub frames: Arc<FrameLimits>,
    pub session: Arc<SessionSettings>,
    pub heartbeat: Arc<HeartbeatSettings>,
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

/// What the configuration says about requests.
#[derive(Debug)]
pub struct Settings {
    pub routes: Routes<Arc<Plan>>,
    /// For what no route names.
    pub unmatched: Arc<Plan>,
    pub unmatched_http: Unmatched,
    pub hosts: Vec<String>,
    pub public_url: Option<PublicUrl>,
    pub trusted_proxies: Networks,
    pub owned: Owned,
    pub heads: HeadLimits,
    pub handshake_timeout: Option<Duration>,
    pub limits: GateLimits,
    pub blacklist: BlacklistSettings,
    pub token_cache: Option<u32>,
    pub issuers: Vec<IssuerPolicy>,
}

impl Settings {
    /// The address that limits count. A trusted proxy that names no client is nobody's.
    pub fn counted(&self, peer: &Peer) -> Option<IpAddr> {
        let is_proxy = peer.trusted && self.trusted_proxies.contains(peer.address);
        (!is_proxy).then_some(peer.address)
    }

    /// Whether tokens have to be remembered as they are.
    pub fn needs_token(&self) -> bool {
        self.blacklist.redis.as_ref().is_some_and(RedisSettings::needs_token)
    }

    /// The backends that it names.
    pub fn upstream_ids(&self) -> Vec<u64> {
        self.routes.values().chain([&self.unmatched]).map(|plan| plan.upstream.id).collect()
    }
}

/// All that a handshake looks at: made whole, replaced whole.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts the reloads.
    pub generation: u64,
    pub settings: Settings,
    pub issuers: Vec<Arc<Issuer>>,
    pub verified: Arc<VerifiedTokens>,
    /// What the replicas share; `None` = there is one alone.
    pub shared: Option<Arc<Shared>>,
}

impl Snapshot {
    /// `secret` is of this process.
    pub fn first(settings: Settings, secret: [u8; 16]) -> Self {
        let issuers = settings.issuers.iter().cloned().map(Issuer::new).collect();
        let verified = Arc::new(VerifiedTokens::new(settings.token_cache, secret));
        let shared = settings.blacklist.redis.as_ref().and_then(Shared::new);
        Self { generation: 0, settings, issuers, verified, shared }
    }

    /// What takes its place; keys and verified tokens are kept.
    pub fn succeeded_by(&self, settings: Settings) -> Self {
        let issuer = |policy: &IssuerPolicy| match self.issuer(&policy.url) {
            Some(known) => known.succeeded_by(policy.clone()),
            None => Issuer::new(policy.clone()),
        };
        let issuers = settings.issuers.iter().map(issuer).collect();
        let redis = settings.blacklist.redis.as_ref();
        let shared = match &self.shared {
            Some(shared) => redis.and_then(|redis| shared.succeeded_by(redis)),
            None => redis.and_then(Shared::new),
        };
        // What was verified before may lack the token that a key is made of.
        let same = settings.token_cache == self.settings.token_cache
            && settings.needs_token() == self.settings.needs_token();
        let verified = if same {
            Arc::clone(&self.verified)
        } else {
            Arc::new(self.verified.emptied(settings.token_cache))
        };
        Self { generation: self.generation + 1, settings, issuers, verified, shared }
    }

    /// The issuer that `iss` names.
    pub fn issuer(&self, iss: &str) -> Option<&Arc<Issuer>> {
        self.issuers.iter().find(|issuer| issuer.policy.url == iss)
    }
}
