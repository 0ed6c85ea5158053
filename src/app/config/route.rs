//! What routes inherit from the root, and what each of them overrides.

use std::path::PathBuf;
use std::sync::Arc;

use crate::base::section::Section;
use crate::io::dial::Endpoint;
use crate::io::upstream::UpstreamSettings;
use crate::policy::carrier::TokenPolicy;
use crate::policy::cors::CorsPolicy;
use crate::policy::csp::CspPolicy;
use crate::policy::frame::{FrameLimits, GivenLimits};
use crate::policy::headers::IdentityPolicy;
use crate::policy::origin::OriginPolicy;
use crate::policy::peer::Networks;
use crate::policy::route::Pattern;
use crate::policy::rule::Rule;
use crate::policy::security_headers::SecurityHeaders;
use crate::proxy::heartbeat::HeartbeatSettings;
use crate::proxy::lifetime::SessionSettings;
use crate::proxy::plan::{Auth, HttpAuth, HttpSettings, Mode, Plan, SessionLimits, Upstream};
use crate::proxy::refuse::RefuseSettings;

/// What a route inherits from the root.
pub struct Inherited {
    pub http: HttpSettings,
    pub token: Arc<TokenPolicy>,
    pub identity: Arc<IdentityPolicy>,
    pub allow_addresses: Arc<Networks>,
    pub origin: Arc<OriginPolicy>,
    pub cors: Option<Arc<CorsPolicy>>,
    pub csp: Option<Arc<CspPolicy>>,
    pub security_headers: Option<Arc<SecurityHeaders>>,
    pub limits: Arc<SessionLimits>,
    pub frames: Arc<FrameLimits>,
    /// Which keys of `[limits]` the profile's defaults must not touch.
    pub given: GivenLimits,
    pub session: Arc<SessionSettings>,
    pub heartbeat: Arc<HeartbeatSettings>,
    pub refuse: Arc<RefuseSettings>,
    pub upstream: Arc<Upstream>,
}

/// A backend; where its place is wrong, any place, so that the rest of the file is checked all the same.
pub fn upstream(section: &Section<'_>, inherited: &UpstreamSettings) -> Arc<Upstream> {
    let settings = UpstreamSettings::read(section, inherited);
    let endpoint = match (settings.endpoint(), &settings.ca_file) {
        (Ok(endpoint), _) => endpoint,
        (Err(error), Some(_)) if section.has("ca_file") => {
            section.problem("ca_file", format!("{error}; accepted: a PEM file with certificates"));
            Endpoint::Unix(PathBuf::new())
        }
        (Err(error), _) => {
            section.problem("url", error);
            Endpoint::Unix(PathBuf::new())
        }
    };
    Upstream::new(settings, endpoint)
}

/// A section without which nothing is touched.
pub fn given<T>(
    parent: &Section<'_>,
    key: &str,
    inherited: Option<&Arc<T>>,
    read: fn(&Section<'_>, Option<&T>) -> T,
) -> Option<Arc<T>> {
    let section = parent.section(key);
    if section.is_given() {
        return Some(Arc::new(read(&section, inherited.map(Arc::as_ref))));
    }
    inherited.cloned()
}

pub fn refuse_any_with_cookie(section: &Section<'_>, key: &str, origin: &OriginPolicy, token: &TokenPolicy) {
    if origin.allows_any() && token.has_cookie() {
        section.problem(key, "\"*\" with a cookie in [token] from would let every web page use the visitor's token; name the origins");
    }
}

pub fn refuse_any_with_credentials(section: &Section<'_>, origin: &OriginPolicy, cors: Option<&CorsPolicy>) {
    if origin.allows_any() && cors.is_some_and(CorsPolicy::allow_credentials) {
        section.problem_in("cors", "allow_credentials", "with \"*\" in [origin] allow would let every web page read answers in the visitor's name; name the origins");
    }
}

impl Inherited {
    pub fn plan(&self, name: &str, auth: Auth) -> Plan {
        Plan {
            name: name.to_owned(),
            auth,
            http: self.http.auth,
            http_token: self.http.token,
            shadow: false,
            rule: Rule::default(),
            token: Arc::clone(&self.token),
            identity: Arc::clone(&self.identity),
            allow_addresses: Arc::clone(&self.allow_addresses),
            origin: Arc::clone(&self.origin),
            cors: self.cors.clone(),
            csp: self.csp.clone(),
            security_headers: self.security_headers.clone(),
            limits: Arc::clone(&self.limits),
            frames: Arc::clone(&self.frames),
            session: Arc::clone(&self.session),
            heartbeat: Arc::clone(&self.heartbeat),
            refuse: Arc::clone(&self.refuse),
            upstream: Arc::clone(&self.upstream),
        }
    }
}

pub type RoutePlans = Vec<(Pattern, Arc<Plan>)>;

pub fn routes(sections: &[Section<'_>], inherited: &Inherited) -> RoutePlans {
    if sections.is_empty() {
        let pattern = Pattern::everything();
        let plan = inherited.plan(pattern.text(), Auth::Required);
        return vec![(pattern, Arc::new(plan))];
    }
    let mut routes: RoutePlans = Vec::new();
    for section in sections {
        let Some((pattern, plan)) = route(section, inherited) else { continue };
        if let Some((other, _)) = routes.iter().find(|(other, _)| other.ties_with(&pattern)) {
            section.problem(
                "path",
                format!("matches exactly the same paths as the route {:?}: keep one of them", other.text()),
            );
        }
        routes.push((pattern, Arc::new(plan)));
    }
    routes
}

/// One `[[route]]`: its own keys, and every section that it overrides.
fn route(section: &Section<'_>, root: &Inherited) -> Option<(Pattern, Plan)> {
    let path = section.required::<String>("path", "the paths that this route is for");
    let pattern = match path.as_deref().map(Pattern::parse) {
        Some(Ok(pattern)) => Some(pattern),
        Some(Err(error)) => {
            section.problem("path", error);
            None
        }
        None => None,
    };
    // The other keys are checked even if the path is wrong: all problems at once.
    let pattern_or_any = pattern.clone().unwrap_or_else(Pattern::everything);
    let auth = section.get("auth", Auth::Required);
    let by_auth = match auth {
        Auth::Required => HttpAuth::Required,
        Auth::Optional => HttpAuth::Optional,
        Auth::None => HttpAuth::Pass,
    };
    let http = section.get("http", by_auth);
    let shadow = section.get("mode", Mode::Enforce) == Mode::Shadow;
    let rule = if pattern.is_some() { Rule::read(section, &pattern_or_any) } else { Rule::ignore(section) };
    if auth == Auth::None && !rule.is_empty() {
        section.problem("auth", "\"none\" contradicts roles, claims and allow, which need a token; accepted: \"required\" or \"optional\"");
    }
    let allow_addresses = Arc::new(Networks::read(section, "allow_addresses", &root.allow_addresses));
    let upstream_section = section.section("upstream");
    let upstream = if upstream_section.is_given() {
        upstream(&upstream_section, &root.upstream.settings)
    } else {
        Arc::clone(&root.upstream)
    };
    let token = override_of(section, "token", &root.token, TokenPolicy::read);
    let origin = override_of(section, "origin", &root.origin, OriginPolicy::read);
    if section.has("token") || section.has("origin") {
        refuse_any_with_cookie(section, "origin", &origin, &token);
    }
    let cors = given(section, "cors", root.cors.as_ref(), CorsPolicy::read);
    if section.has("cors") || section.has("origin") {
        refuse_any_with_credentials(section, &origin, cors.as_deref());
    }
    let profile = upstream.settings.profile;
    let frames = if profile == root.upstream.settings.profile {
        Arc::clone(&root.frames)
    } else {
        Arc::new(root.frames.for_profile(profile, root.given))
    };
    let limits_section = section.section("limits");
    let (frames, limits) = if limits_section.is_given() {
        let limits = SessionLimits::read(&limits_section, &root.limits, pattern_or_any.text());
        (Arc::new(FrameLimits::read(&limits_section, &frames)), Arc::new(limits))
    } else {
        (frames, Arc::clone(&root.limits))
    };
    let plan = Plan {
        name: pattern_or_any.text().to_owned(),
        auth,
        http,
        http_token: root.http.token,
        shadow,
        rule,
        identity: override_of(section, "identity", &root.identity, IdentityPolicy::read),
        frames,
        limits,
        allow_addresses,
        cors,
        csp: given(section, "csp", root.csp.as_ref(), CspPolicy::read),
        security_headers: given(
            section,
            "security_headers",
            root.security_headers.as_ref(),
            SecurityHeaders::read,
        ),
        session: override_of(section, "session", &root.session, SessionSettings::read),
        heartbeat: override_of(section, "heartbeat", &root.heartbeat, HeartbeatSettings::read),
        refuse: override_of(section, "refuse", &root.refuse, RefuseSettings::read),
        token,
        origin,
        upstream,
    };
    Some((pattern?, plan))
}

/// A section that a route may override; shared with the root where it does not.
fn override_of<T>(route: &Section<'_>, key: &str, root: &Arc<T>, read: fn(&Section<'_>, &T) -> T) -> Arc<T> {
    let section = route.section(key);
    if section.is_given() { Arc::new(read(&section, root)) } else { Arc::clone(root) }
}
