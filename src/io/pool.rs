//! Plain HTTP to the backend, over a pool of kept connections.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use http::{Extensions, Request, Response, Uri};
use hyper::body::{Body, Incoming};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_service::Service;

use super::dial::{Endpoint, Stream};

/// Idle connections are kept so long, which is less than backends keep theirs.
const IDLE: Duration = Duration::from_secs(30);
/// Idle connections kept per worker and backend.
const MAX_IDLE: usize = 64;

/// Kept connections to one backend, of one worker.
#[derive(Clone, Debug)]
pub struct Pool<B> {
    client: Client<Connector, B>,
}

impl<B> Pool<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    pub fn new(endpoint: Endpoint, connect_timeout: Option<Duration>) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MAX_IDLE)
            .pool_timer(TokioTimer::new())
            .set_host(false)
            // hyper gives back a request of which it has sent nothing; only such a one is tried again.
            .retry_canceled_requests(true)
            .build(Connector { endpoint, connect_timeout });
        Self { client }
    }

    /// Sends a request whose URI is absolute; its authority only names the pool.
    pub async fn send(&self, request: Request<B>) -> Result<Response<Incoming>, Error> {
        let response = self.client.request(request).await?;
        if let Some(handle) = response.extensions().get::<Handle>() {
            handle.0.uses.fetch_add(1, Ordering::Relaxed);
        }
        Ok(response)
    }
}

#[derive(Clone, Debug)]
struct Connector {
    endpoint: Endpoint,
    connect_timeout: Option<Duration>,
}

/// A connection as the client library wants it.
#[derive(Debug)]
struct Pooled {
    stream: Stream,
    shared: Arc<Shared>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Pooled>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Pooled>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { endpoint, connect_timeout } = self.clone();
        Box::pin(async move {
            endpoint
                .dial(connect_timeout, &[])
                .await
                .map(|stream| TokioIo::new(Pooled { stream, shared: Arc::default() }))
        })
    }
}

impl Connection for Pooled {
    fn connected(&self) -> Connected {
        Connected::new().extra(Handle(Arc::clone(&self.shared)))
    }
}

/// What is known of one connection, by those who send over it and by itself.
#[derive(Debug, Default)]
struct Shared {
    uses: AtomicU32,
    given_up: AtomicBool,
    reader: AtomicWaker,
}

#[derive(Clone, Debug)]
struct Handle(Arc<Shared>);

/// Whether the request failed on a connection that had served another one before: the backend may have
/// ended it meanwhile, without having seen this request.
pub fn was_reused(error: &Error) -> bool {
    let mut extensions = Extensions::new();
    if let Some(connected) = error.connect_info() {
        connected.get_extras(&mut extensions);
    }
    extensions.get::<Handle>().is_some_and(|handle| handle.0.uses.load(Ordering::Relaxed) > 0)
}

/// Ends the connection that this answer came over: what it sends next cannot be trusted.
pub fn give_up<T>(response: &Response<T>) {
    if let Some(handle) = response.extensions().get::<Handle>() {
        handle.0.given_up.store(true, Ordering::Release);
        handle.0.reader.wake();
    }
}

impl AsyncRead for Pooled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.shared.reader.register(cx.waker());
        if self.shared.given_up.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pooled {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.shared.given_up.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Whether the backend could not even be connected to.
pub fn is_connect(error: &Error) -> bool {
    error.is_connect()
}
