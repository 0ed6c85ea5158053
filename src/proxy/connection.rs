//! One client connection, from accept to its last request: hyper reads the heads, within time and size.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use super::closing::FOREVER;
use super::entry::{self, Worker, hyper_told, serve};
use super::first::{self, First};
use super::plan::Who;
use crate::base::reject::Reason;
use crate::base::section::Section;
use crate::base::value::{Count, OneOrMany, Size, Span};
use crate::state::permits::Permit;

/// hyper keeps no smaller buffer.
const LEAST_BUFFER: u64 = 8192;
/// More headers than this are 431.
pub const MAX_HEADERS: usize = 100;

/// `[listen]`
#[derive(Clone, Debug)]
pub struct ListenSettings {
    pub addresses: Vec<SocketAddr>,
    pub hosts: Vec<String>,
    pub public_url: String,
    pub max_connections: u32,
    pub limits: HeadLimits,
    pub handshake_timeout: Option<Duration>,
}

/// Bounds on reading a head.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    pub header_timeout: Option<Duration>,
    pub header_size: usize,
    pub keep_alive: Option<Duration>,
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
        let max_connections = section.get("max_connections", Count(65_536)).0;
        let header_timeout = time("header_timeout", 10);
        let size = section.get("header_size", Size(32 * 1024)).0;
        if !(LEAST_BUFFER..=1 << 20).contains(&size) {
            section.problem("header_size", "accepted: from \"8KiB\" to \"1MiB\"");
        }
        let handshake_timeout = time("handshake_timeout", 10);
        let keep_alive = time("keep_alive", 75);
        let header_size = usize::try_from(size.clamp(LEAST_BUFFER, 1 << 20)).unwrap_or(32 * 1024);
        let limits = HeadLimits { header_timeout, header_size, keep_alive };
        Self { addresses, hosts, public_url, max_connections, limits, handshake_timeout }
    }
}

/// What connection and timer know of each other.
#[derive(Debug, Default)]
struct Wire {
    /// Reads that brought bytes.
    reads: AtomicU32,
    /// Heads that were complete.
    requests: AtomicU32,
}

/// The client's side, watched while heads are read.
#[derive(Debug)]
pub struct ClientIo {
    stream: TcpStream,
    /// What was read before hyper came.
    read: Bytes,
    wire: Arc<Wire>,
}

impl ClientIo {
    /// After the upgrade nobody watches any more.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.read.is_empty() {
            let n = self.read.len().min(buf.remaining());
            buf.put_slice(&self.read.split_to(n));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.wire.reads.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// hyper has one timer for a head, idle time before it included. This one tells the two apart: an idle
/// connection may rest for `keep_alive`, a head that has begun must be complete within `header_timeout`.
#[derive(Clone, Debug)]
struct HeadTimer {
    wire: Arc<Wire>,
    limits: HeadLimits,
}

impl hyper::rt::Timer for HeadTimer {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        let first = self.wire.requests.load(Ordering::Relaxed) == 0;
        let patience = if first { self.limits.header_timeout } else { self.limits.keep_alive };
        Box::pin(HeadSleep {
            sleep: Box::pin(tokio::time::sleep(patience.unwrap_or(FOREVER))),
            seen: (!first).then(|| self.wire.reads.load(Ordering::Relaxed)),
            timer: self.clone(),
        })
    }

    fn sleep_until(&self, _: std::time::Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep(Duration::ZERO)
    }
}

struct HeadSleep {
    sleep: Pin<Box<Sleep>>,
    /// Reads before this head; `None` = the head has begun.
    seen: Option<u32>,
    timer: HeadTimer,
}

impl Future for HeadSleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let reads = self.timer.wire.reads.load(Ordering::Relaxed);
        if self.seen.is_some_and(|seen| seen != reads) {
            self.seen = None;
            let patience = self.timer.limits.header_timeout.unwrap_or(FOREVER);
            self.sleep.as_mut().reset(Instant::now() + patience);
        }
        self.sleep.as_mut().poll(cx)
    }
}

impl hyper::rt::Sleep for HeadSleep {}

/// Serves a connection until it ends.
pub async fn run(
    worker: Arc<Worker>,
    limits: HeadLimits,
    mut stream: TcpStream,
    peer: IpAddr,
    slot: Permit,
    closing: watch::Receiver<bool>,
) {
    let (head, early) = match first::read(&mut stream, limits).await {
        First::Upgrade(head, early) => (head, early),
        First::Other(read) => return Box::pin(http(worker, limits, stream, read, peer, slot, closing)).await,
        First::TooSlow => return refused(&worker, peer, Reason::HeaderTimeout),
    };
    let started = Instant::now();
    let answer = tokio::select! {
        biased;
        answer = entry::upgrade(&worker, peer, &head, started) => answer,
        () = first::gone(&stream) => return,
    };
    let patience = worker.gate.snapshot.unmatched.session.close_timeout;
    first::answer(stream, early, answer, Arc::new(slot), patience).await;
}

/// Plain HTTP, and upgrades that come later on a connection.
async fn http(
    worker: Arc<Worker>,
    limits: HeadLimits,
    stream: TcpStream,
    read: Vec<u8>,
    peer: IpAddr,
    slot: Permit,
    mut closing: watch::Receiver<bool>,
) {
    let wire = Arc::new(Wire::default());
    let slot = Arc::new(slot);
    let service = {
        let (worker, wire) = (Arc::clone(&worker), Arc::clone(&wire));
        service_fn(move |request| {
            wire.requests.fetch_add(1, Ordering::Relaxed);
            serve(Arc::clone(&worker), peer, Arc::clone(&slot), request)
        })
    };
    let io = TokioIo::new(ClientIo { stream, read: read.into(), wire: Arc::clone(&wire) });
    let mut builder = http1::Builder::new();
    builder
        .timer(HeadTimer { wire: Arc::clone(&wire), limits })
        .header_read_timeout(limits.header_timeout.unwrap_or(FOREVER))
        .max_buf_size(limits.header_size)
        .max_header_size(limits.header_size)
        .max_headers(MAX_HEADERS);
    let mut connection = std::pin::pin!(builder.serve_connection(io, service).with_upgrades());
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = async { drop(closing.wait_for(|closing| *closing).await) } => {
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

/// Records what was refused before there was a request.
fn refused(worker: &Worker, peer: IpAddr, reason: Reason) {
    let who = Who { address: peer, request_id: "-".into(), origin: None, plan: None, facts: None };
    worker.gate.recorder.refused(reason, &who, false, hyper_told(reason), Duration::ZERO);
}

/// The label of what hyper has refused by itself.
fn reason_of(error: &hyper::Error, wire: &Wire) -> Option<Reason> {
    if error.is_parse_too_large() {
        Some(Reason::RequestTooLarge)
    } else if error.is_parse() {
        Some(Reason::RequestMalformed)
    } else if error.is_timeout() && wire.requests.load(Ordering::Relaxed) == 0 {
        // Later ones are idle connections that have rested long enough.
        Some(Reason::HeaderTimeout)
    } else {
        None
    }
}
