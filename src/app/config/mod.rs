//! The configuration file as a whole: which sections there are, what routes inherit, and what has to
//! agree with each other. Each section is read in its own feature's file.

mod route;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::route::{Inherited, given, refuse_any_with_cookie, refuse_any_with_credentials, routes, upstream};
use super::admin::AdminSettings;
use super::drain::DrainSettings;
use crate::base::effective::Effective;
use crate::base::section::{Document, Problem, Section};
use crate::base::value::{Count, Raw, Value, quoted};
use crate::io::upstream::UpstreamSettings;
use crate::policy::carrier::TokenPolicy;
use crate::policy::claims::IssuerPolicy;
use crate::policy::cors::CorsPolicy;
use crate::policy::csp::CspPolicy;
use crate::policy::frame::{FrameLimits, GivenLimits};
use crate::policy::headers::{IdentityPolicy, Owned};
use crate::policy::origin::{OriginPolicy, serialized};
use crate::policy::route::Routes;
use crate::policy::security_headers::SecurityHeaders;
use crate::proxy::connection::ListenSettings;
use crate::proxy::heartbeat::HeartbeatSettings;
use crate::proxy::lifetime::SessionSettings;
use crate::proxy::plan::{
    Auth, BlacklistSettings, GateLimits, HttpAuth, HttpSettings, PublicUrl, SessionLimits, Settings,
};
use crate::proxy::refuse::RefuseSettings;
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
    pub drain: DrainSettings,
    pub log: LogSettings,
    pub metrics: MetricsSettings,
    pub settings: Settings,
    pub effective: Vec<Effective>,
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

/// Whether a gate is to be started, or runs already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    First,
    Again,
}

/// Reads a file, with the environment's overrides.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
pub fn load(path: &Path, boot: Boot) -> Loaded {
    match std::fs::read_to_string(path) {
        Ok(text) => read_for(&text, std::env::vars(), boot),
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
    read_for(text, environment, Boot::First)
}

fn read_for(text: &str, environment: impl Iterator<Item = (String, String)>, boot: Boot) -> Loaded {
    let document = Document::parse(text, environment);
    let config = document.root().and_then(|root| read_root(&root, boot));
    let (problems, warnings, effective) = document.finish();
    let config = config.filter(|_| problems.is_empty());
    let config = config.map(|config| Config { effective: effective.clone(), ..config });
    Loaded { config, problems, warnings, effective }
}

/// Every key that has a default, with it, in the order in which they are read.
/// For the test that holds documentation and code together.
pub fn reference() -> Vec<Effective> {
    let minimal = "[[issuer]]\nurl = 'https://sso.example.com/realms/demo'\naudiences = ['chat']\n[[route]]\npath = '/*'\n";
    read(minimal, std::iter::empty()).effective
}

/// The entry that decides a key for a route, by what is written: the route's own override beats the root.
/// The key is a dotted path as in the table of reasons; there `route.` is this route, which is named by
/// its path, and `issuer.` the first issuer.
pub fn deciding<'e>(effective: &'e [Effective], route: &str, key: &str) -> Option<&'e Effective> {
    let (section, key) = key.rsplit_once('.')?;
    let find = |section: &str| effective.iter().find(|entry| entry.section == section && entry.key == key);
    let is_own = |entry: &&Effective| {
        entry.section.starts_with("route[") && entry.key == "path" && entry.value == quoted(route)
    };
    let own = effective.iter().find(is_own).map(|entry| entry.section.as_str());
    match section {
        "route" => own.and_then(find),
        // The only key of another section that stands in the route itself.
        "listen" if key == "allow_addresses" => {
            own.and_then(find).filter(|entry| entry.given).or_else(|| find(section))
        }
        "issuer" => find("issuer[1]"),
        _ => {
            let inner = own.and_then(|own| find(&format!("{own}.{section}")));
            let root = find(section);
            // A default may be the route's own too: that of its backend's profile.
            let written = [inner, root].into_iter().flatten().find(|entry| entry.given);
            written.or(inner).or(root)
        }
    }
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

fn read_root(root: &Section<'_>, boot: Boot) -> Option<Config> {
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
    let upstream = upstream(&upstream_section, &UpstreamSettings::default());
    let http = HttpSettings::read(&root.section("http"));
    let issuers = issuers(&root.sections("issuer"));
    let token_section = root.section("token");
    let token = TokenPolicy::read(&token_section, &TokenPolicy::default());
    let token_cache = token_section.get("cache", Some(Count(10_000))).map(|count| count.0);
    let identity = IdentityPolicy::read(&root.section("identity"), &IdentityPolicy::default());
    let origin_section = root.section("origin");
    let origin = OriginPolicy::read(&origin_section, &OriginPolicy::default());
    refuse_any_with_cookie(&origin_section, "allow", &origin, &token);
    let cors = given(root, "cors", None, CorsPolicy::read);
    refuse_any_with_credentials(root, &origin, cors.as_deref());
    let csp = given(root, "csp", None, CspPolicy::read);
    let security_headers = given(root, "security_headers", None, SecurityHeaders::read);
    let limits = root.section("limits");
    let profile = upstream.settings.profile;
    let gate_limits = GateLimits::read(&limits);
    let session_limits = SessionLimits::read(&limits, &SessionLimits::default(), "");
    let frames = FrameLimits::read(&limits, &FrameLimits::of(profile));
    let session = SessionSettings::read(&root.section("session"), &SessionSettings::default());
    let heartbeat = HeartbeatSettings::read(&root.section("heartbeat"), &HeartbeatSettings::default());
    let refuse = RefuseSettings::read(&root.section("refuse"), &RefuseSettings::default());
    let blacklist = blacklist(&root.section("blacklist"), boot);
    let sections = root.sections("route");
    let drain = DrainSettings::read(&root.section("drain"));
    let log = LogSettings::read(&root.section("log"));
    let metrics = MetricsSettings::read(&root.section("metrics"));

    let inherited = Inherited {
        http,
        token: Arc::new(token),
        identity: Arc::new(identity),
        allow_addresses: Arc::new(listen.allow_addresses.clone()),
        origin: Arc::new(origin),
        cors,
        csp,
        security_headers,
        limits: Arc::new(session_limits),
        frames: Arc::new(frames),
        given: GivenLimits { message: limits.has("message"), compression: limits.has("compression") },
        session: Arc::new(session),
        heartbeat: Arc::new(heartbeat),
        refuse: Arc::new(refuse),
        upstream,
    };
    let routes = routes(&sections, &inherited);
    let counts_addresses = gate_limits.attempts.is_some()
        || routes.iter().any(|(_, plan)| plan.limits.per_address.limit.is_some());
    if counts_addresses && !listen_section.has("trusted_proxies") {
        listen_section.warning("trusted_proxies", "is missing, and [limits] count per address: behind a proxy all clients share one; name the proxy's addresses, or write trusted_proxies = [] if clients connect directly");
    }
    let needs_issuer = routes.iter().any(|(_, plan)| plan.auth != Auth::None || plan.http != HttpAuth::Pass)
        || http.auth != HttpAuth::Pass;
    if root.has_none("issuer") && needs_issuer {
        root.problem("issuer", "is missing: write at least one [[issuer]] with url and audiences, or auth = \"none\" on every [[route]]");
    }
    let owned =
        Owned::of(routes.iter().map(|(_, plan)| plan.identity.as_ref()).chain([inherited.identity.as_ref()]));
    let settings = Settings {
        routes: Routes::new(routes),
        unmatched: Arc::new(inherited.plan("-", Auth::Required)),
        unmatched_http: http.unmatched,
        hosts: listen.hosts.clone(),
        public_url: public_url?,
        trusted_proxies: listen.trusted_proxies.clone(),
        owned,
        heads: listen.limits,
        handshake_timeout: listen.handshake_timeout,
        limits: gate_limits,
        blacklist,
        token_cache,
        issuers,
    };
    Some(Config { listen, workers, admin, drain, log, metrics, settings, effective: Vec::new() })
}

/// The section, and that its file is there. While the gate runs its loss is no reason to refuse a change:
/// `on_stale` says what it means.
fn blacklist(section: &Section<'_>, boot: Boot) -> BlacklistSettings {
    let settings = BlacklistSettings::read(section);
    if let Some(file) = &settings.file
        && let Err(error) = std::fs::File::open(file)
    {
        let message = format!("{error}; accepted: a readable file, one entry a line");
        match boot {
            Boot::First => section.problem("file", message),
            Boot::Again => section.warning("file", message),
        }
    }
    settings
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deciding_entry_is_found_by_route_and_key() {
        let text = "[limits]\nmessage = '1KiB'\n[[issuer]]\nurl = 'https://sso.example.com/realms/demo'\naudiences = ['chat']\n[[route]]\npath = '/a/'\n[[route]]\npath = '/b/'\nauth = 'optional'\n[route.limits]\nfragments = 7\n[route.upstream]\nprofile = 'daphne'\n";
        let effective = read(text, std::iter::empty()).effective;
        let found = |route: &str, key: &str| {
            deciding(&effective, route, key)
                .map(|e| (format!("{}.{} = {}", e.section, e.key, e.value), e.line))
        };
        for (route, key, expected, line) in [
            ("/a/", "route.auth", "route[1].auth = \"required\"", None),
            ("/b/", "route.auth", "route[2].auth = \"optional\"", Some(10)),
            ("/a/", "limits.message", "limits.message = \"1KiB\"", Some(2)),
            ("/b/", "limits.message", "limits.message = \"1KiB\"", Some(2)),
            ("/a/", "limits.fragments", "limits.fragments = 65536", None),
            ("/b/", "limits.fragments", "route[2].limits.fragments = 7", Some(12)),
            // The default is the route's, by its profile.
            ("/b/", "limits.compression", "route[2].limits.compression = \"strip\"", None),
            ("/c/", "limits.fragments", "limits.fragments = 65536", None),
            ("/a/", "issuer.audiences", "issuer[1].audiences = [\"chat\"]", Some(5)),
            ("/a/", "listen.hosts", "listen.hosts = []", None),
            ("/a/", "refuse.codes.timeout", "refuse.codes.timeout = 4008", None),
        ] {
            assert_eq!(found(route, key), Some((expected.into(), line)), "{route} {key}");
        }
        for (route, key) in
            [("/c/", "route.auth"), ("/a/", "route.colour"), ("/a/", "issuer.jwks_uri"), ("/a/", "")]
        {
            assert_eq!(found(route, key), None, "{route} {key}");
        }
    }
}
