//! The admin listener, for operators and kubelet, and the probes listener, which has no more than four
//! harmless pages. Neither is ever reachable through the public listener, and both have a thread apart from
//! the workers'.

use std::fs::Permissions;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::header::{self, HeaderValue};
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::Instant;

use super::answer::{Answer, Asker, answer, json_answer, problem};
use super::drain::Control;
use super::operator;
use crate::base::section::Section;
use crate::base::value::Rate;
use crate::policy::request::{host, host_name};
use crate::state::attempts::Attempts;
use crate::state::lifecycle::Phase;
use crate::telemetry::metrics::CONTENT_TYPE;

/// Where a listener of this section is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// `[admin]`
#[derive(Clone, Debug)]
pub struct AdminSettings {
    pub address: Address,
    pub probes: Option<SocketAddr>,
    /// What the token file holds.
    pub token: Option<Secret>,
    pub token_file: Option<String>,
}

/// Text that no Debug output shows.
#[derive(Clone)]
pub struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl AdminSettings {
    pub fn read(section: &Section<'_>) -> Self {
        let written: String = section.get("address", "127.0.0.1:9090".into());
        let address = match (written.strip_prefix("unix:"), written.parse()) {
            (Some(path), _) if path.starts_with('/') => Address::Unix(path.into()),
            (None, Ok(address)) => Address::Tcp(address),
            _ => {
                section
                    .problem("address", "accepted: \"127.0.0.1:9090\" or \"unix:/run/sidegate/admin.sock\"");
                Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 9090)))
            }
        };
        let probes = section.optional::<String>("probes").and_then(|text| {
            let parsed = text.parse().ok();
            if parsed.is_none() {
                section.problem("probes", "accepted: an address with a port, such as \"0.0.0.0:9091\"");
            }
            parsed
        });
        let token_file = section.optional::<String>("token_file");
        let token = token_file.as_deref().and_then(|path| match std::fs::read_to_string(path) {
            Ok(token) if !token.trim().is_empty() => Some(Secret(token.trim().to_owned())),
            Ok(_) => {
                section.problem("token_file", "the file is empty; accepted: a file with a token in it");
                None
            }
            Err(error) => {
                section
                    .problem("token_file", format!("{error}; accepted: a readable file with a token in it"));
                None
            }
        });
        Self { address, probes, token, token_file }
    }

    /// The token for a request of our own.
    pub fn bearer(&self) -> Option<String> {
        self.token.as_ref().map(|token| format!("Bearer {}", token.0))
    }
}

/// The two listeners.
#[derive(Debug)]
pub struct Listeners {
    main: Main,
    probes: Option<std::net::TcpListener>,
    token: Option<Secret>,
}

#[derive(Debug)]
enum Main {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

fn tcp(address: SocketAddr, key: &str) -> Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)
        .with_context(|| format!("cannot listen on {address} ([admin] {key})"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Listeners {
    pub fn bind(settings: &AdminSettings) -> Result<Self> {
        let main = match &settings.address {
            Address::Tcp(address) => Main::Tcp(tcp(*address, "address")?),
            Address::Unix(path) => {
                let told = || format!("cannot listen on {} ([admin] address)", path.display());
                // A socket that nobody answers is what a killed gate has left behind.
                if std::os::unix::net::UnixStream::connect(path).is_err() && path.exists() {
                    std::fs::remove_file(path).with_context(told)?;
                }
                let listener = std::os::unix::net::UnixListener::bind(path).with_context(told)?;
                std::fs::set_permissions(path, Permissions::from_mode(0o600)).with_context(told)?;
                listener.set_nonblocking(true)?;
                Main::Unix(listener)
            }
        };
        let probes = settings.probes.map(|address| tcp(address, "probes")).transpose()?;
        Ok(Self { main, probes, token: settings.token.clone() })
    }

    pub fn addresses(&self) -> (Option<SocketAddr>, Option<SocketAddr>) {
        let main = match &self.main {
            Main::Tcp(listener) => listener.local_addr().ok(),
            Main::Unix(_) => None,
        };
        (main, self.probes.as_ref().and_then(|listener| listener.local_addr().ok()))
    }

    /// Serves both, on the thread of the caller's runtime.
    pub fn serve(self, control: &Arc<Control>) -> Result<()> {
        let admin =
            |access| Arc::new(Admin { control: Arc::clone(control), access, attempts: Attempts::default() });
        match self.main {
            Main::Tcp(listener) => {
                let access = self.token.map_or(Access::Closed, Access::Token);
                serve_tcp(TcpListener::from_std(listener)?, admin(access));
            }
            Main::Unix(listener) => serve_unix(UnixListener::from_std(listener)?, admin(Access::Open)),
        }
        if let Some(listener) = self.probes {
            serve_tcp(TcpListener::from_std(listener)?, admin(Access::ProbesOnly));
        }
        Ok(())
    }
}

/// Who may do more than probe.
#[derive(Debug)]
enum Access {
    /// A unix socket: its permissions decide.
    Open,
    Token(Secret),
    /// No token is configured.
    Closed,
    ProbesOnly,
}

#[derive(Debug)]
struct Admin {
    control: Arc<Control>,
    access: Access,
    /// Wrong tokens, by address.
    attempts: Attempts,
}

/// Wrong tokens of one address; beyond that none is looked at any more, the right one neither.
const WRONG_TOKENS: Rate = Rate { count: 20, per: std::time::Duration::from_secs(60) };

fn serve_tcp(listener: TcpListener, admin: Arc<Admin>) {
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    serve_connection(stream, &admin, Asker::Address(peer.ip().to_canonical()));
                }
                Err(_) => tokio::time::sleep(crate::io::listener::REST).await,
            }
        }
    });
}

fn serve_unix(listener: UnixListener, admin: Arc<Admin>) {
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => serve_connection(stream, &admin, Asker::Unix),
                Err(_) => tokio::time::sleep(crate::io::listener::REST).await,
            }
        }
    });
}

fn serve_connection<S>(stream: S, admin: &Arc<Admin>, asker: Asker)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let admin = Arc::clone(admin);
    tokio::spawn(async move {
        let service = service_fn(move |request| {
            let admin = Arc::clone(&admin);
            async move { Ok::<_, std::convert::Infallible>(admin.answer(request, asker).await) }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(std::time::Duration::from_secs(30));
        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
    });
}

impl Admin {
    async fn answer(&self, request: Request<Incoming>, asker: Asker) -> Answer {
        let for_operators = !matches!(self.access, Access::ProbesOnly);
        if for_operators && let Err(refusal) = is_from_an_operator(&request) {
            return *refusal;
        }
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/livez") => json_answer(StatusCode::OK, &json!({"live": true})),
            (&Method::GET, "/readyz") => self.ready(),
            (&Method::GET, "/metrics") => {
                let gate = self.control.gate();
                let tracked = i64::try_from(gate.attempts.tracked()).unwrap_or(i64::MAX);
                gate.recorder.metrics.tracked_addresses.set(tracked);
                answer(StatusCode::OK, CONTENT_TYPE, gate.recorder.metrics.encode())
            }
            (&Method::GET, "/drained") => {
                self.control.drained().await;
                json_answer(StatusCode::OK, &json!({"drained": true}))
            }
            (_, path) if for_operators && operator::has(path) => match self.authorize(&request, asker) {
                Ok(()) => operator::answer(&self.control, asker, request).await,
                Err(refusal) => *refusal,
            },
            (_, "/livez" | "/readyz" | "/metrics" | "/drained") => {
                problem(StatusCode::METHOD_NOT_ALLOWED, "GET /livez /readyz /metrics /drained")
            }
            _ if for_operators => problem(StatusCode::NOT_FOUND, operator::ALL),
            _ => problem(StatusCode::NOT_FOUND, "GET /livez /readyz /metrics /drained"),
        }
    }

    /// Whether clients should be sent here; names what is missing. The backend is none of it.
    fn ready(&self) -> Answer {
        let gate = self.control.gate();
        let mut missing = Vec::new();
        let snapshot = gate.snapshot.load_full();
        let issuers = &snapshot.issuers;
        if !issuers.is_empty() && !issuers.iter().any(|issuer| issuer.has_had_keys()) {
            missing.extend(
                issuers.iter().map(|issuer| format!("no keys yet of the issuer {}", issuer.policy.url)),
            );
        }
        for feed in gate.blacklist.stale() {
            let word = feed.word();
            missing.push(format!(
                "[blacklist] {word} is out of touch, a feed of the blacklist, and on_stale is refuse_new"
            ));
        }
        if gate.lifecycle.phase() > Phase::Serving {
            missing.push("draining".to_owned());
        }
        let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        json_answer(status, &json!({"ready": missing.is_empty(), "missing": missing}))
    }

    fn authorize(&self, request: &Request<Incoming>, asker: Asker) -> Result<(), Box<Answer>> {
        match &self.access {
            Access::Open => Ok(()),
            Access::Closed | Access::ProbesOnly => Err(Box::new(problem(
                StatusCode::FORBIDDEN,
                "set [admin] token_file, or listen on a unix socket: [admin] address = \"unix:/run/sidegate/admin.sock\"",
            ))),
            Access::Token(Secret(token)) => {
                let now = Instant::now();
                if let Asker::Address(address) = asker
                    && self.attempts.is_over(address, WRONG_TOKENS, now)
                {
                    let mut refusal =
                        problem(StatusCode::TOO_MANY_REQUESTS, "too many wrong tokens: wait a minute");
                    refusal.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("60"));
                    return Err(Box::new(refusal));
                }
                let given = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
                let wanted = format!("Bearer {token}");
                if verify_slices_are_equal(given.unwrap_or_default(), wanted.as_bytes()).is_ok() {
                    return Ok(());
                }
                // A token that was forgotten is no guess.
                if let (Asker::Address(address), Some(_)) = (asker, given) {
                    self.attempts.count(address, WRONG_TOKENS, now);
                }
                let detail = "send the token of [admin] token_file as Authorization: Bearer";
                let mut refusal = problem(StatusCode::UNAUTHORIZED, detail);
                let challenge = HeaderValue::from_static("Bearer");
                refusal.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
                Err(Box::new(refusal))
            }
        }
    }
}

/// Keeps web pages out: a page can reach loopback, but not without an Origin or by rebinding a name.
fn is_from_an_operator(request: &Request<Incoming>) -> Result<(), Box<Answer>> {
    let name = host(request.headers()).and_then(host_name).unwrap_or_default();
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let named = bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok();
    if request.headers().contains_key(header::ORIGIN) || !named {
        return Err(Box::new(problem(
            StatusCode::FORBIDDEN,
            "the admin listener answers no web page: use localhost or an address as Host, and no Origin",
        )));
    }
    Ok(())
}
