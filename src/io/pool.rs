//! Plain HTTP to the backend, over kept connections. Whoever asks drives the connection himself until the
//! head of the answer is there, and mostly its body is too: no task stands between.

use std::fmt;
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::dial::{Endpoint, Stream};

/// Idle connections are kept so long, which is less than backends keep theirs.
const IDLE: Duration = Duration::from_secs(30);
/// Idle connections kept per worker and backend.
const MAX_IDLE: usize = 64;

/// Bodies of requests.
pub trait Upload:
    Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static
{
}

impl<B> Upload for B where
    B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static
{
}

/// Kept connections to one backend, of one worker.
#[derive(Debug)]
pub struct Pool<B: Upload> {
    endpoint: Endpoint,
    connect_timeout: Option<Duration>,
    idle: Arc<Idle<B>>,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failed {
    /// The backend could not even be connected to.
    Connect(io::Error),
    /// `reused`: on a connection that had served another request before. The backend may have ended it
    /// meanwhile, without having seen this one.
    Lost { error: hyper::Error, reused: bool },
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => error.fmt(f),
            Self::Lost { error, .. } => {
                let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
                write!(f, "{error}: {cause}")
            }
        }
    }
}

/// What the backend has answered. Unless it is taken for good its connection ends with it.
#[derive(Debug)]
pub struct Answer<B: Upload> {
    response: Response<Incoming>,
    /// `None` = it has ended already.
    open: Option<Box<Open<B>>>,
    idle: Arc<Idle<B>>,
}

impl<B: Upload> Pool<B> {
    pub fn new(endpoint: Endpoint, connect_timeout: Option<Duration>) -> Self {
        Self { endpoint, connect_timeout, idle: Arc::default() }
    }

    /// Sends a request, whose URI is a path. If nothing of it could be sent over a kept connection it goes
    /// over another one.
    pub async fn send(&self, mut request: Request<B>) -> Result<Answer<B>, Failed> {
        loop {
            let (open, reused) = match self.idle.take() {
                Some(open) => (open, true),
                None => (self.connect().await?, false),
            };
            match open.ask(request).await {
                Ok((response, open)) => return Ok(Answer { response, open, idle: Arc::clone(&self.idle) }),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if reused => request = unsent,
                    _ => return Err(Failed::Lost { error: error.into_error(), reused }),
                },
            }
        }
    }

    async fn connect(&self) -> Result<Box<Open<B>>, Failed> {
        let stream = self.endpoint.dial(self.connect_timeout, &[]).await.map_err(Failed::Connect)?;
        let opened = handshake(TokioIo::new(stream)).await;
        let (sender, connection) = opened.map_err(|error| Failed::Lost { error, reused: false })?;
        Ok(Box::new(Open { sender, connection, since: Instant::now() }))
    }
}

impl<B: Upload> Answer<B> {
    pub fn response(&self) -> &Response<Incoming> {
        &self.response
    }

    /// Takes the answer for good, and its connection may serve others after it.
    pub fn accept(self) -> Response<Incoming> {
        match self.open {
            Some(open) if open.sender.is_ready() => Idle::put(&self.idle, open),
            Some(open) => drop(tokio::spawn(open.finish(self.idle))),
            None => {}
        }
        self.response
    }
}

/// A connection.
#[derive(Debug)]
struct Open<B: Upload> {
    /// Ready for another request exactly while there is none on the connection.
    sender: SendRequest<B>,
    connection: Connection<TokioIo<Stream>, B>,
    /// When it became idle.
    since: Instant,
}

type Unsent<B> = hyper::client::conn::TrySendError<Request<B>>;

impl<B: Upload> Open<B> {
    /// Whether the connection has ended. Once it has it must not be asked again.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> bool {
        Pin::new(&mut self.connection).poll(cx).is_ready()
    }

    /// Waits for the head of the answer; the connection comes back unless it has ended.
    async fn ask(
        mut self: Box<Self>,
        request: Request<B>,
    ) -> Result<(Response<Incoming>, Option<Box<Self>>), Unsent<B>> {
        let mut answer = pin!(self.sender.try_send_request(request));
        let mut open = Some(self);
        let response = poll_fn(|cx| {
            open.take_if(|open| open.poll_end(cx));
            // It comes from nowhere else.
            answer.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        });
        Ok((response.await?, open))
    }

    /// Goes on until the answer is complete, and the request too.
    async fn finish(mut self: Box<Self>, idle: Arc<Idle<B>>) {
        let ended = poll_fn(|cx| match self.poll_end(cx) {
            true => Poll::Ready(true),
            false if self.sender.is_ready() => Poll::Ready(false),
            false => Poll::Pending,
        });
        if !ended.await {
            Idle::put(&idle, self);
        }
    }
}

/// Idle connections, the newest last.
#[derive(Debug)]
struct Idle<B: Upload>(Mutex<Shelf<B>>);

#[derive(Debug)]
struct Shelf<B: Upload> {
    #[expect(clippy::vec_box, reason = "large, and taken and put back for each request")]
    kept: Vec<Box<Open<B>>>,
    /// Of the task that looks after them, if there is one.
    keeper: Option<Waker>,
}

impl<B: Upload> Default for Idle<B> {
    fn default() -> Self {
        Self(Mutex::new(Shelf { kept: Vec::new(), keeper: None }))
    }
}

impl<B: Upload> Idle<B> {
    fn locked(&self) -> MutexGuard<'_, Shelf<B>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that has not ended. The keeper hears no more of it: a request would wake it, too.
    fn take(&self) -> Option<Box<Open<B>>> {
        let mut held = self.locked();
        std::iter::from_fn(|| held.kept.pop())
            .find_map(|mut open| (!open.poll_end(&mut Context::from_waker(Waker::noop()))).then_some(open))
    }

    fn put(self: &Arc<Self>, mut open: Box<Open<B>>) {
        open.since = Instant::now();
        let mut held = self.locked();
        if held.kept.len() >= MAX_IDLE {
            return;
        }
        match &held.keeper {
            // From now on what the backend does to it wakes the keeper.
            Some(keeper) if open.poll_end(&mut Context::from_waker(keeper)) => return,
            Some(_) => {}
            None => {
                held.keeper = Some(Waker::noop().clone());
                tokio::spawn(keep(Arc::downgrade(self)));
            }
        }
        held.kept.push(open);
    }
}

/// Ends idle connections in time, and at once those that the backend ends or speaks on unasked; until none
/// is left.
async fn keep<B: Upload>(idle: Weak<Idle<B>>) {
    let mut timer = pin!(tokio::time::sleep(IDLE));
    poll_fn(|cx| {
        while let Some(oldest) = look_after(&idle, cx) {
            timer.as_mut().reset(oldest + IDLE);
            ready!(timer.as_mut().poll(cx));
        }
        Poll::Ready(())
    })
    .await;
}

/// Since when the oldest one is idle.
fn look_after<B: Upload>(idle: &Weak<Idle<B>>, cx: &mut Context<'_>) -> Option<Instant> {
    let idle = idle.upgrade()?;
    let mut held = idle.locked();
    held.kept.retain_mut(|open| open.since.elapsed() < IDLE && !open.poll_end(cx));
    let oldest = held.kept.first().map(|open| open.since);
    held.keeper = oldest.map(|_| cx.waker().clone());
    oldest
}
