//! The client's side of a connection as hyper sees it: what has been read before, and how long a head
//! may take.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::closing::FOREVER;

/// More headers than this are 431.
pub const MAX_HEADERS: usize = 100;

/// Bounds on reading a head.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    pub header_timeout: Option<Duration>,
    pub header_size: usize,
    pub keep_alive: Option<Duration>,
}

/// What connection and timer know of each other.
#[derive(Debug, Default)]
pub struct Wire {
    /// Reads that brought bytes.
    reads: AtomicU32,
    /// Heads that were complete.
    requests: AtomicU32,
    /// The value of `reads` when the last head was complete.
    reads_before: AtomicU32,
}

impl Wire {
    pub fn head_is_complete(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn is_first(&self) -> bool {
        self.requests.load(Ordering::Relaxed) == 0
    }

    /// A head is awaited from now on.
    fn await_head(&self) {
        self.reads_before.store(self.reads.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Whether the awaited head has begun. The first one is due from the start.
    pub fn is_in_head(&self) -> bool {
        self.is_first() || self.reads.load(Ordering::Relaxed) != self.reads_before.load(Ordering::Relaxed)
    }
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
    pub fn new(stream: TcpStream, read: Vec<u8>, wire: Arc<Wire>) -> Self {
        Self { stream, read: read.into(), wire }
    }

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
pub struct HeadTimer {
    wire: Arc<Wire>,
    limits: HeadLimits,
    /// The first head is due from here on, whoever reads it.
    accepted: Instant,
}

impl HeadTimer {
    pub fn new(wire: Arc<Wire>, limits: HeadLimits, accepted: Instant) -> Self {
        Self { wire, limits, accepted }
    }
}

impl hyper::rt::Timer for HeadTimer {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        let first = self.wire.is_first();
        self.wire.await_head();
        let (from, patience) = if first {
            (self.accepted, self.limits.header_timeout)
        } else {
            (Instant::now(), self.limits.keep_alive)
        };
        Box::pin(HeadSleep {
            sleep: Box::pin(tokio::time::sleep_until(from + patience.unwrap_or(FOREVER))),
            in_head: first,
            timer: self.clone(),
        })
    }

    fn sleep_until(&self, _: std::time::Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep(Duration::ZERO)
    }
}

struct HeadSleep {
    sleep: Pin<Box<Sleep>>,
    in_head: bool,
    timer: HeadTimer,
}

impl Future for HeadSleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.in_head && self.timer.wire.is_in_head() {
            self.in_head = true;
            let patience = self.timer.limits.header_timeout.unwrap_or(FOREVER);
            self.sleep.as_mut().reset(Instant::now() + patience);
        }
        self.sleep.as_mut().poll(cx)
    }
}

impl hyper::rt::Sleep for HeadSleep {}
