//! Plain HTTP to the backend, over a pool of kept connections.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, Uri};
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
        self.client.request(request).await
    }
}

#[derive(Clone, Debug)]
struct Connector {
    endpoint: Endpoint,
    connect_timeout: Option<Duration>,
}

/// A connection as the client library wants it.
#[derive(Debug)]
struct Pooled(Stream);

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
            endpoint.dial(connect_timeout, &[]).await.map(|stream| TokioIo::new(Pooled(stream)))
        })
    }
}

impl Connection for Pooled {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Pooled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pooled {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Whether the backend could not even be connected to.
pub fn is_connect(error: &Error) -> bool {
    error.is_connect()
}
