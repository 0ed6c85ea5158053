//! One client connection, from accept to its last request: hyper reads the heads, within time and size.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::closing::FOREVER;
use super::entry::{self, Life, Next, serve};
use super::first::{self, First};
use super::guest::Who;
use super::wire::{ClientIo, HeadLimits, HeadTimer, MAX_HEADERS, Wire};
use super::worker::Worker;
use crate::base::reject::Reason;
use crate::base::section::Section;
use crate::base::value::{Count, OneOrMany, Size, Span};
use crate::policy::peer::{Networks, Peer};
use crate::state::permits::Permit;
use crate::telemetry::record::Told;

/// hyper keeps no smaller buffer.
const LEAST_BUFFER: u64 = 8192;
/// A head is held in memory, so even `"off"` ends here.
const MOST_BUFFER: u64 = 1 << 20;

/// `[listen]`
#[derive(Clone, Debug)]
pub struct ListenSettings {
    pub addresses: Vec<SocketAddr>,
    pub hosts: Vec<String>,
    pub public_url: String,
    pub trusted_proxies: Networks,
    pub allow_addresses: Networks,
    pub max_connections: Option<u32>,
    pub limits: HeadLimits,
    pub handshake_timeout: Option<Duration>,
}

impl ListenSettings {
    pub fn read(section: &Section<'_>) -> Self {
        let time = |key: &str, seconds| {
            section.get(key, Some(Span(Duration::from_secs(seconds)))).map(|span| span.0)
        };
        let written: OneOrMany<String> = section.get("address", OneOrMany(vec!["127.0.0.1:8080".into()]));
        let addresses = written.0.iter().filter_map(|text| {
            let parsed = text.parse().ok();
            if parsed.is_none() {
                section.problem("address", format!("{text:?} is no address with a port; accepted: \"127.0.0.1:8080\", \"[::1]:8080\" or a list of them"));
            }
            parsed
        });
        let addresses = addresses.collect();
        let hosts: Vec<String> = section.get("hosts", Vec::new());
        for host in &hosts {
            if crate::policy::request::host_name(host) != Some(host.as_str()) {
                section.problem("hosts", format!("{host:?} is no host name; accepted: names or addresses without port, such as \"chat.example.com\""));
            }
        }
        let public_url = section.get("public_url", String::new());
        let trusted_proxies = Networks::read(section, "trusted_proxies", &Networks::default());
        let allow_addresses = Networks::read(section, "allow_addresses", &Networks::default());
        let max_connections = section.get("max_connections", Some(Count(65_536))).map(|count| count.0);
        let header_timeout = time("header_timeout", 10);
        let size = section.get("header_size", Some(Size(32 * 1024))).map_or(MOST_BUFFER, |size| size.0);
        if !(LEAST_BUFFER..=MOST_BUFFER).contains(&size) {
            section.problem("header_size", "accepted: from \"8KiB\" to \"1MiB\"");
        }
        let handshake_timeout = time("handshake_timeout", 10);
        let keep_alive = time("keep_alive", 75);
        let header_size = usize::try_from(size.clamp(LEAST_BUFFER, MOST_BUFFER)).unwrap_or(32 * 1024);
        let limits = HeadLimits { header_timeout, header_size, keep_alive };
        Self {
            addresses,
            hosts,
            public_url,
            trusted_proxies,
            allow_addresses,
            max_connections,
            limits,
            handshake_timeout,
        }
    }
}

/// What a connection has begun with.
enum Begun {
    Refused,
    Upgraded {
        next: Next,
        stream: TcpStream,
        early: Vec<u8>,
    },
    /// Plain HTTP; so much of it has been read.
    Http {
        worker: Arc<Worker>,
        stream: TcpStream,
        read: Vec<u8>,
        closing: watch::Receiver<bool>,
    },
}

/// Serves a connection until it ends. Each part of its life is boxed, and gone when the next one begins:
/// what a handshake needs is large, and a session may rest for days.
pub fn run(
    worker: Arc<Worker>,
    limits: HeadLimits,
    stream: TcpStream,
    peer: IpAddr,
    slot: Permit,
    closing: watch::Receiver<bool>,
) -> impl Future<Output = ()> + Send {
    let accepted = Instant::now();
    let begun = Box::pin(begin(worker, limits, stream, peer, closing));
    async move {
        let life: Life = match begun.await {
            Begun::Refused => return,
            Begun::Upgraded { next, stream, early } => next.live(stream, early, Arc::new(slot)),
            Begun::Http { worker, stream, read, closing } => {
                Box::pin(http(worker, limits, stream, read, accepted, peer, slot, closing))
            }
        };
        life.await;
    }
}

/// Reads the first head, and carries it out if it is an upgrade.
async fn begin(
    worker: Arc<Worker>,
    limits: HeadLimits,
    mut stream: TcpStream,
    peer: IpAddr,
    mut closing: watch::Receiver<bool>,
) -> Begun {
    let late = *closing.borrow();
    let first = tokio::select! {
        biased;
        first = first::read(&mut stream, limits) => first,
        // Who came before the drain and has said nothing to the end by now is owed nothing.
        () = begun(&mut closing), if !late => return Begun::Refused,
    };
    let (head, early) = match first {
        First::Upgrade(head, early) => (head, early),
        First::Other(read) => return Begun::Http { worker, stream, read, closing },
        First::TooSlow => {
            refused(&worker, peer, Reason::HeaderTimeout);
            return Begun::Refused;
        }
        // Browsers connect before they know what for: no attempt at anything.
        First::Silent => {
            record(&worker, peer, Reason::HeaderTimeout);
            return Begun::Refused;
        }
    };
    let started = Instant::now();
    let answer = tokio::select! {
        biased;
        answer = entry::upgrade(&worker, peer, &head, started) => answer,
        () = first::gone(&stream) => return Begun::Refused,
    };
    let settings = Arc::clone(&worker.gate.snapshot.load().settings.unmatched.session);
    match first::answer(stream, answer, &settings).await {
        Some((next, stream)) => Begun::Upgraded { next, stream, early },
        None => Begun::Refused,
    }
}

/// Plain HTTP, and upgrades that come later on a connection.
#[expect(clippy::too_many_arguments, reason = "all that `run` has, handed on once")]
async fn http(
    worker: Arc<Worker>,
    limits: HeadLimits,
    stream: TcpStream,
    read: Vec<u8>,
    accepted: Instant,
    peer: IpAddr,
    slot: Permit,
    mut closing: watch::Receiver<bool>,
) {
    // Once the drain has begun a connection gets its answer and ends.
    let late = *closing.borrow();
    let wire = Arc::new(Wire::default());
    let slot = Arc::new(slot);
    let service = {
        let (worker, wire) = (Arc::clone(&worker), Arc::clone(&wire));
        service_fn(move |request| {
            wire.head_is_complete();
            serve(Arc::clone(&worker), peer, Arc::clone(&slot), request)
        })
    };
    let io = TokioIo::new(ClientIo::new(stream, read, Arc::clone(&wire)));
    let mut builder = http1::Builder::new();
    builder
        .timer(HeadTimer::new(Arc::clone(&wire), limits, accepted))
        .header_read_timeout(limits.header_timeout.unwrap_or(FOREVER))
        .max_buf_size(limits.header_size)
        .max_header_size(limits.header_size)
        .max_headers(MAX_HEADERS)
        .keep_alive(!late);
    let mut connection = std::pin::pin!(builder.serve_connection(io, service).with_upgrades());
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = begun(&mut closing), if !late => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result
        && let Some(reason) = reason_of(&error, &wire)
    {
        refused(&worker, peer, reason);
    }
}

/// Waits until nothing new is accepted any more.
async fn begun(closing: &mut watch::Receiver<bool>) {
    drop(closing.wait_for(|closing| *closing).await);
}

/// Counts and records what was refused before there was a request.
fn refused(worker: &Worker, peer: IpAddr, reason: Reason) {
    let snapshot = worker.gate.snapshot.load_full();
    let from = Peer::of(peer, &HeaderMap::new(), &snapshot.settings.trusted_proxies);
    worker.count_refusal(&snapshot.settings, &from, reason, false);
    record(worker, peer, reason);
}

fn record(worker: &Worker, peer: IpAddr, reason: Reason) {
    let who = Who { address: peer, request_id: "-".into(), origin: None, plan: None, facts: None };
    let told = match reason.row().status {
        0 => Told::Nothing,
        status => Told::Status(status),
    };
    worker.gate.recorder.refused(reason, &who, false, None, told, Duration::ZERO);
}

/// The label of what hyper has refused by itself.
fn reason_of(error: &hyper::Error, wire: &Wire) -> Option<Reason> {
    if error.is_parse_too_large() {
        Some(Reason::RequestTooLarge)
    } else if error.is_parse() {
        Some(Reason::RequestMalformed)
    } else {
        // An idle connection that has rested long enough is no refusal.
        (error.is_timeout() && wire.is_in_head()).then_some(Reason::HeaderTimeout)
    }
}
