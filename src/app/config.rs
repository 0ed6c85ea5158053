//! The configuration file as a whole: which sections there are, what routes inherit, and what has to
//! agree with each other. Each section is read in its own feature's file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::admin::AdminSettings;
use super::drain::DrainSettings;
use crate::base::section::{Document, Effective, Problem, Section};
use crate::base::value::{Count, Raw, Value, quoted};
use crate::io::dial::Endpoint;
use crate::io::jwks::Issuer;
use crate::io::upstream::UpstreamSettings;
use crate::policy::carrier::TokenPolicy;
use crate::policy::claims::IssuerPolicy;
use crate::policy::frame::{FrameLimits, GivenLimits};
use crate::policy::headers::{IdentityPolicy, Owned};
use crate::policy::origin::{OriginPolicy, serialized};
use crate::policy::route::{Pattern, Routes};
use crate::policy::rule::Rule;
use crate::proxy::connection::ListenSettings;
use crate::proxy::plan::{Auth, HttpAuth, HttpSettings, Mode, Plan, PublicUrl, Snapshot, Upstream};
use crate::proxy::refuse::RefuseSettings;
use crate::proxy::session::SessionSettings;
use crate::telemetry::logging::LogSettings;
use crate::telemetry::metrics::MetricsSettings;

/// Where the configuration is looked for without `--config`.
pub const DEFAULT_PATH: &str = "/etc/sidegate/sidegate.toml";
/// Names another place.
pub const PATH_VARIABLE: &str = "SIDEGATE_CONFIG";

/// A configuration that is right.
#[derive(Debug)]
pub struct Config {
    pub listen: ListenSettings,
    pub workers: usize,
    pub admin: AdminSettings,
    pub token_cache: Option<u32>,
    pub max_sessions: Option<u32>,
    pub drain: DrainSettings,
    pub log: LogSettings,
    pub metrics: MetricsSettings,
    pub snapshot: Snapshot,
}

/// What reading a file gives.
#[derive(Debug)]
pub struct Loaded {
    /// `None` if there are problems.
    pub config: Option<Config>,
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
    pub effective: Vec<Effective>,
}

/// The path that a command uses.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
pub fn path_or_default(given: Option<PathBuf>) -> PathBuf {
    given
        .or_else(|| std::env::var(PATH_VARIABLE).ok().map(PathBuf::from))
        .unwrap_or_else(|| DEFAULT_PATH.into())
}

/// Reads a file, with the environment's overrides.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
pub fn load(path: &Path) -> Loaded {
    match std::fs::read_to_string(path) {
        Ok(text) => read(&text, std::env::vars()),
        Err(error) => {
            let problem = Problem {
                path: String::new(),
                line: None,
                value: String::new(),
                message: format!(
                    "{error}; accepted: a readable TOML file, by --config, ${PATH_VARIABLE} or at {DEFAULT_PATH}"
                ),
            };
            Loaded { config: None, problems: vec![problem], warnings: Vec::new(), effective: Vec::new() }
        }
    }
}

/// Reads the text of a configuration.
pub fn read(text: &str, environment: impl Iterator<Item = (String, String)>) -> Loaded {
    let document = Document::parse(text, environment);
    let config = document.root().and_then(|root| read_root(&root));
    let (problems, warnings, effective) = document.finish();
    let config = config.filter(|_| problems.is_empty());
    Loaded { config, problems, warnings, effective }
}

/// Every key that has a default, with it, in the order in which they are read.
/// For the test that holds documentation and code together.
pub fn reference() -> Vec<Effective> {
    let minimal = "[[issuer]]\nurl = 'https://sso.example.com/realms/demo'\naudiences = ['chat']\n[[route]]\npath = '/*'\n";
    read(minimal, std::iter::empty()).effective
}

/// `[runtime] workers`
#[derive(Clone, Copy, Debug)]
enum Workers {
    Auto,
    These(u32),
}

impl Value for Workers {
    fn accepts() -> String {
        "\"auto\" or a whole number from 1 to 256".into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        if String::read(raw).as_deref() == Some("auto") {
            return Some(Self::Auto);
        }
        Count::read(raw).filter(|count| count.0 <= 256).map(|count| Self::These(count.0))
    }
    fn show(&self) -> String {
        match self {
            Self::Auto => quoted("auto"),
            Self::These(count) => count.to_string(),
        }
    }
}

/// What a route inherits from the root.
struct Inherited {
    http: HttpSettings,
    token: Arc<TokenPolicy>,
    identity: Arc<IdentityPolicy>,
    origin: Arc<OriginPolicy>,
    frames: Arc<FrameLimits>,
    /// Which keys of `[limits]` the profile's defaults must not touch.
    given: GivenLimits,
    session: Arc<SessionSettings>,
    refuse: Arc<RefuseSettings>,
    upstream: Arc<Upstream>,
}

fn read_root(root: &Section<'_>) -> Option<Config> {
    let listen_section = root.section("listen");
    let listen = ListenSettings::read(&listen_section);
    let public_url = public_url(&listen_section, &listen.public_url);
    let workers = match root.section("runtime").get("workers", Workers::Auto) {
        // As many CPUs as the cgroup grants.
        Workers::Auto => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        Workers::These(count) => usize::try_from(count).unwrap_or(1),
    };
    let admin = AdminSettings::read(&root.section("admin"));
    let upstream_section = root.section("upstream");
    let upstream = upstream(&upstream_section, &UpstreamSettings::default(), 0);
    let http = HttpSettings::read(&root.section("http"));
    let issuers = issuers(&root.sections("issuer"));
    let token_section = root.section("token");
    let token = TokenPolicy::read(&token_section, &TokenPolicy::default());
    let token_cache = token_section.get("cache", Some(Count(10_000))).map(|count| count.0);
    let identity = IdentityPolicy::read(&root.section("identity"), &IdentityPolicy::default());
    let origin_section = root.section("origin");
    let origin = OriginPolicy::read(&origin_section, &OriginPolicy::default());
    refuse_any_with_cookie(&origin_section, "allow", &origin, &token);
    let limits = root.section("limits");
    let profile = upstream.settings.profile;
    let max_sessions = limits.get("sessions", Some(Count(20_000))).map(|count| count.0);
    let frames = FrameLimits::read(&limits, &FrameLimits::of(profile));
    let session = SessionSettings::read(&root.section("session"), &SessionSettings::default());
    let refuse = RefuseSettings::read(&root.section("refuse"), &RefuseSettings::default());
    let sections = root.sections("route");
    let drain = DrainSettings::read(&root.section("drain"));
    let log = LogSettings::read(&root.section("log"));
    let metrics = MetricsSettings::read(&root.section("metrics"));

    let inherited = Inherited {
        http,
        token: Arc::new(token),
        identity: Arc::new(identity),
        origin: Arc::new(origin),
        frames: Arc::new(frames),
        given: GivenLimits { message: limits.has("message"), compression: limits.has("compression") },
        session: Arc::new(session),
        refuse: Arc::new(refuse),
        upstream: Arc::new(upstream),
    };
    let mut upstreams = vec![Arc::clone(&inherited.upstream)];
    let routes = routes(&sections, &inherited, &mut upstreams);
    let needs_issuer = routes.iter().any(|(_, plan)| plan.auth != Auth::None || plan.http != HttpAuth::Pass)
        || http.auth != HttpAuth::Pass;
    if root.has_none("issuer") && needs_issuer {
        root.problem("issuer", "is missing: write at least one [[issuer]] with url and audiences, or auth = \"none\" on every [[route]]");
    }
    let owned =
        Owned::of(routes.iter().map(|(_, plan)| plan.identity.as_ref()).chain([inherited.identity.as_ref()]));
    let snapshot = Snapshot {
        routes: Routes::new(routes),
        unmatched: Arc::new(inherited.plan("-", Auth::Required)),
        unmatched_http: http.unmatched,
        issuers: issuers.into_iter().map(Issuer::new).collect(),
        hosts: listen.hosts.clone(),
        public_url: public_url?,
        owned,
        handshake_timeout: listen.handshake_timeout,
        upstreams,
    };
    Some(Config { listen, workers, admin, token_cache, max_sessions, drain, log, metrics, snapshot })
}

/// `None` = wrong, `Some(None)` = not given.
fn public_url(section: &Section<'_>, url: &str) -> Option<Option<PublicUrl>> {
    if url.is_empty() {
        return Some(None);
    }
    let origin = serialized(url.trim_end_matches('/'))
        .filter(|origin| origin.starts_with("http://") || origin.starts_with("https://"));
    let Some(origin) = origin else {
        section.problem(
            "public_url",
            "accepted: \"https://chat.example.com\" or \"http://HOST:PORT\", without a path",
        );
        return None;
    };
    let (scheme, host) = origin.split_once("://")?;
    let port = host.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let port = port.unwrap_or(if scheme == "https" { 443 } else { 80 });
    let (scheme, host) = (scheme.to_owned(), host.to_owned());
    Some(Some(PublicUrl { origin, scheme, host, port }))
}

/// A backend; where its place is wrong, any place, so that the rest of the file is checked all the same.
fn upstream(section: &Section<'_>, inherited: &UpstreamSettings, index: usize) -> Upstream {
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
    Upstream { settings, endpoint, index }
}

fn issuers(sections: &[Section<'_>]) -> Vec<IssuerPolicy> {
    let mut issuers: Vec<IssuerPolicy> = Vec::new();
    for section in sections {
        let Some(issuer) = IssuerPolicy::read(section) else { continue };
        if issuers.iter().any(|known| known.url == issuer.url) {
            section.problem("url", "occurs twice: the issuer of a token must be one");
        }
        if let Some(path) = &issuer.ca_file
            && let Err(error) = crate::io::dial::tls_config(Some(path))
        {
            section.problem("ca_file", format!("{error}; accepted: a PEM file with certificates"));
        }
        issuers.push(issuer);
    }
    issuers
}

fn refuse_any_with_cookie(section: &Section<'_>, key: &str, origin: &OriginPolicy, token: &TokenPolicy) {
    if origin.allows_any() && token.has_cookie() {
        section.problem(key, "\"*\" with a cookie in [token] from would let every web page use the visitor's token; name the origins");
    }
}

impl Inherited {
    fn plan(&self, name: &str, auth: Auth) -> Plan {
        Plan {
            name: name.to_owned(),
            auth,
            http: self.http.auth,
            http_token: self.http.token,
            shadow: false,
            rule: Rule::default(),
            token: Arc::clone(&self.token),
            identity: Arc::clone(&self.identity),
            origin: Arc::clone(&self.origin),
            frames: Arc::clone(&self.frames),
            session: Arc::clone(&self.session),
            refuse: Arc::clone(&self.refuse),
            upstream: Arc::clone(&self.upstream),
        }
    }
}

type RoutePlans = Vec<(Pattern, Arc<Plan>)>;

fn routes(sections: &[Section<'_>], inherited: &Inherited, upstreams: &mut Vec<Arc<Upstream>>) -> RoutePlans {
    if sections.is_empty() {
        let pattern = Pattern::everything();
        let plan = inherited.plan(pattern.text(), Auth::Required);
        return vec![(pattern, Arc::new(plan))];
    }
    let mut routes: RoutePlans = Vec::new();
    for section in sections {
        let Some((pattern, plan)) = route(section, inherited, upstreams) else { continue };
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
fn route(
    section: &Section<'_>,
    root: &Inherited,
    upstreams: &mut Vec<Arc<Upstream>>,
) -> Option<(Pattern, Plan)> {
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
        section.problem("auth", "\"none\" contradicts roles and claims, which need a token; accepted: \"required\" or \"optional\"");
    }
    let upstream_section = section.section("upstream");
    let upstream = if upstream_section.is_given() {
        let upstream = Arc::new(upstream(&upstream_section, &root.upstream.settings, upstreams.len()));
        upstreams.push(Arc::clone(&upstream));
        upstream
    } else {
        Arc::clone(&root.upstream)
    };
    let token = override_of(section, "token", &root.token, TokenPolicy::read);
    let origin = override_of(section, "origin", &root.origin, OriginPolicy::read);
    if section.has("token") || section.has("origin") {
        refuse_any_with_cookie(section, "origin", &origin, &token);
    }
    let profile = upstream.settings.profile;
    let frames = if profile == root.upstream.settings.profile {
        Arc::clone(&root.frames)
    } else {
        Arc::new(root.frames.for_profile(profile, root.given))
    };
    let plan = Plan {
        name: pattern_or_any.text().to_owned(),
        auth,
        http,
        http_token: root.http.token,
        shadow,
        rule,
        identity: override_of(section, "identity", &root.identity, IdentityPolicy::read),
        frames: override_of(section, "limits", &frames, FrameLimits::read),
        session: override_of(section, "session", &root.session, SessionSettings::read),
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
