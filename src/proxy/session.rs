//! The life of one socket after its handshake: one task, one poll in fixed order, one timer. Whatever
//! ends it, the cause that is recorded is the first, and both sides get the Close that fits.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Sleep, timeout};

use super::closing::{FOREVER, Farewell, discard, say_goodbye};
use super::lifetime::Lifetime;
use super::plan::Plan;
use super::relay::{Ended, Relay};
use super::splice::Event;
use super::watch::Watch;
use crate::base::clock::Unix;
use crate::base::reject::Reason;
use crate::policy::close::close_frame;
use crate::policy::frame::{Sender, Stop};
use crate::state::permits::Slot;
use crate::state::sessions::{Counters, Entry, Registration, Subject};
use crate::telemetry::record::{Describe, SessionRecord, Traffic};

/// A timer that fires so much too late says that the gate itself was held up: stopped, or without a CPU.
/// The kernel wakes it empty-handed then, and what its peers have said meanwhile is read only later.
const HELD_UP: Duration = Duration::from_millis(100);
/// Time to read that, of all sessions, before the silence of any is judged.
const GRACE: Duration = Duration::from_millis(500);

/// What a session holds; all of it lets go when dropped.
#[derive(Debug)]
pub struct Session<T: Describe> {
    /// Its limits and timers are those that it began with, whatever is reloaded.
    pub plan: Arc<Plan>,
    pub record: SessionRecord<Arc<Entry<T>>>,
    /// Its place in the registry and under the limits: released when the Close is written.
    pub registration: Option<Registration<T>>,
    pub lifetime: Lifetime,
}

/// Bytes that came along with the heads. Copies: a slice would keep a whole read buffer alive.
#[derive(Debug)]
pub struct Early {
    pub client: Vec<u8>,
    pub backend: Vec<u8>,
}

/// A session and its two sockets.
struct Live<T: Describe, C, B> {
    session: Session<T>,
    relay: Relay,
    client: C,
    backend: B,
}

impl<T: Subject, C, B> Live<T, C, B>
where
    C: Farewell,
    B: Farewell,
{
    fn poll(&mut self, cx: &mut Context<'_>, timer: std::pin::Pin<&mut Sleep>) -> Poll<Ended> {
        self.session.poll(cx, timer, &mut self.relay, &mut self.client, &mut self.backend)
    }

    async fn end(self, ended: Ended) {
        self.session.end(ended, self.relay, self.client, self.backend).await;
    }
}

impl<T: Subject> Session<T> {
    /// Relays until something ends it, then closes both sides. The future holds no more than what an idle
    /// session needs: what an `async fn` is given it would hold twice.
    pub fn run<C, B>(
        self,
        client: C,
        early: &Early,
        backend: B,
        slot: Slot,
    ) -> impl Future<Output = ()> + use<T, C, B>
    where
        C: Farewell,
        B: Farewell,
    {
        let mut relay = Relay::new(self.record.opened(), slot);
        let watch = self.watch(relay.began);
        relay.received.begin_with(&early.client, watch);
        relay.sent.begin_with(&early.backend, watch);
        let mut live = Live { session: self, relay, client, backend };
        async move {
            let ended = {
                let mut timer = pin!(tokio::time::sleep_until(live.session.deadline(&live.relay)));
                std::future::poll_fn(|cx| live.poll(cx, timer.as_mut())).await
            };
            // Boxed: what only the end needs should not lie around in every idle session.
            Box::pin(live.end(ended)).await;
        }
    }

    fn watch(&self, began: u64) -> Watch<'_> {
        let entry = self.record.who();
        Watch {
            limits: &self.plan.frames,
            metrics: &self.record.recorder().metrics,
            shadow: self.plan.shadow,
            tag: self.lifetime.tag(),
            switch: &entry.switch,
            counters: &entry.counters,
            began: (self.record.opened(), began),
        }
    }

    fn close_timeout(&self) -> Duration {
        self.plan.session.close_timeout.unwrap_or(FOREVER)
    }

    /// The earliest moment at which time alone ends something.
    fn deadline(&self, relay: &Relay) -> Instant {
        let stalled = [relay.received.stalled, relay.sent.stalled].into_iter().flatten().min();
        let stall = stalled.zip(self.plan.session.write_timeout).map(|(since, timeout)| since + timeout);
        let alone = self.lifetime.deadline(&self.plan.session, &self.plan.heartbeat, relay.heard, relay.data);
        let all = [alone, stall, relay.give_up];
        all.into_iter().flatten().min().unwrap_or_else(|| Instant::now() + FOREVER)
    }

    fn poll<C, B>(
        &mut self,
        cx: &mut Context<'_>,
        mut timer: std::pin::Pin<&mut Sleep>,
        relay: &mut Relay,
        client: &mut C,
        backend: &mut B,
    ) -> Poll<Ended>
    where
        C: Farewell,
        B: Farewell,
    {
        let switch = &self.record.who().switch;
        let first = !std::mem::replace(&mut relay.watched, true);
        let end = if first { switch.ended(cx.waker()) } else { switch.end_now() };
        if let Some(end) = end {
            let ended = Ended { since: Some(end.since), ..Ended::by(end.reason) };
            return Poll::Ready(relay.closed().unwrap_or(ended));
        }
        let now = Instant::now();
        // Once asked it wakes the task by itself, and before its time has nothing to say.
        let due = first || now >= timer.deadline();
        if due && timer.as_mut().poll_elapsed(cx) {
            // Once: a gate that is always late must judge all the same.
            relay.held_up = !relay.held_up && timer.deadline().elapsed() > HELD_UP;
            if let Some(ended) = self.time_is_up(relay) {
                return Poll::Ready(ended);
            }
        }
        // The backend first: its Close is still read when it no longer takes anything.
        for sender in [Sender::Backend, Sender::Client] {
            let ended = match sender {
                Sender::Backend => self.poll_half(cx, now, sender, relay, backend, client),
                Sender::Client => self.poll_half(cx, now, sender, relay, client, backend),
            };
            if let Some(ended) = ended {
                return Poll::Ready(ended);
            }
        }
        if let Some(counter) = relay.received.pong.take()
            && let Some(took) = self.lifetime.answered(counter, now)
        {
            self.record.recorder().metrics.pong_after(took);
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            self.record.who().rtt.store(micros, Ordering::Relaxed);
        }
        for half in [&mut relay.received, &mut relay.sent] {
            for reason in std::mem::take(&mut half.would_close).into_iter().flatten() {
                self.record.would_close(reason);
            }
        }
        relay.note(now);
        // Traffic only puts a deadline off: that is found at its end.
        if due || relay.is_waiting() {
            let deadline = if relay.held_up { now + GRACE } else { self.deadline(relay) };
            if deadline < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll_elapsed(cx) {
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    }

    /// Whether its route is in shadow mode now.
    fn is_shadow(&self) -> bool {
        self.record.who().subject.is_shadow()
    }

    /// One direction; `Some` = the relay is over.
    fn poll_half<S, D>(
        &self,
        cx: &mut Context<'_>,
        now: Instant,
        sender: Sender,
        relay: &mut Relay,
        source: &mut S,
        sink: &mut D,
    ) -> Option<Ended>
    where
        S: Farewell,
        D: Farewell,
    {
        let (half, lost, sink_lost, by_close) = match sender {
            Sender::Client => {
                (&mut relay.received, Reason::ClientLost, Reason::UpstreamLost, Reason::ClientClosed)
            }
            Sender::Backend => {
                (&mut relay.sent, Reason::UpstreamLost, Reason::ClientLost, Reason::UpstreamClosed)
            }
        };
        let Poll::Ready(event) = half.poll(cx, now, source, sink, self.watch(relay.began)) else {
            return None;
        };
        let ended = |reason| Some(relay.closed().unwrap_or(Ended::by(reason)));
        match event {
            Event::Stopped(Stop::Closed(closed)) => relay.close(by_close, closed, now + self.close_timeout()),
            Event::Stopped(stop) => ended(stop.reason(sender).unwrap_or(Reason::Internal)),
            Event::SourceEnded => ended(lost),
            Event::SinkFailed => ended(sink_lost),
        }
    }

    /// Until when a newer token has prolonged it.
    fn prolonged_to(&self) -> Option<Unix> {
        let millis = self.record.who().expires.load(Ordering::Relaxed);
        (millis > 0).then(|| Unix(Duration::from_millis(millis)))
    }

    /// Pings a silent client; `Some` = it has been silent for too long.
    fn beat(&mut self, relay: &mut Relay, now: Instant) -> Option<Reason> {
        // Once a Close has gone by nobody is asked whether he lives.
        if relay.closed().is_some() {
            return None;
        }
        let (heard, deaf) = (relay.heard, relay.received.is_stalled());
        let metrics = &self.record.recorder().metrics;
        let place = |ping: &[u8]| relay.sent.place(ping);
        self.lifetime.beat(&self.plan.heartbeat, heard, deaf, now, metrics, place)
    }

    fn time_is_up(&mut self, relay: &mut Relay) -> Option<Ended> {
        let (now, judged) = (Instant::now(), !relay.held_up);
        if judged && relay.give_up.is_some_and(|at| now >= at) {
            return relay.closed();
        }
        let late = |since: Option<Instant>| {
            let timeout = self.plan.session.write_timeout.filter(|_| judged);
            since.zip(timeout).is_some_and(|(since, timeout)| now >= since + timeout)
        };
        let data = if judged { relay.data } else { now };
        let reason = if late(relay.received.stalled) || late(relay.sent.stalled) {
            Some(Reason::WriteTimeout)
        } else {
            self.lifetime.is_over(&self.plan.session, data, now, self.prolonged_to())
        };
        let reason = match reason {
            // It tells, and lets it live on.
            Some(reason) if reason != Reason::WriteTimeout && self.is_shadow() => {
                self.lifetime.forgive(reason);
                self.record.would_close(reason);
                None
            }
            None if !judged => None,
            reason => reason.or_else(|| self.beat(relay, now)),
        };
        reason.map(|reason| relay.closed().unwrap_or(Ended::by(reason)))
    }

    /// Both sides get the Close that fits, FIN, and time to read it.
    async fn end<C, B>(mut self, ended: Ended, mut relay: Relay, mut client: C, mut backend: B)
    where
        C: Farewell,
        B: Farewell,
    {
        let patience = self.close_timeout();
        let code = self.plan.refuse.close_code(ended.reason);
        let told = self.tell_first(ended, code, &relay, &mut client).await;
        // Nothing of the client reaches the backend any more. What it has got ends at a boundary, or
        // its connection just ends.
        let to_backend = if relay.received.is_closed() || !relay.received.may_follow() {
            Vec::new()
        } else if let Some(closed) = ended.closed {
            close_frame(closed.answer(), "", Some(mask()))
        } else {
            close_frame(Some(1001), ended.reason.label(), Some(mask()))
        };
        // After both Closes it is the server that ends the connection (RFC 6455 §7.1.1).
        let orderly = relay.received.is_closed() && relay.sent.is_closed();
        let backend_told = orderly
            || timeout(patience, say_goodbye(&mut backend, &to_backend)).await.is_ok_and(|told| told.is_ok());

        if ended.reason != Reason::ClientLost {
            // What the client has sent before its fault is still answered.
            if is_fault_of_client(ended.reason) && !to_backend.is_empty() && backend_told {
                let watch = self.watch(relay.began);
                let rest =
                    std::future::poll_fn(|cx| relay.sent.poll_rest(cx, &mut backend, &mut client, watch));
                let _ = timeout(patience, rest).await;
            }
            let passed = &self.record.who().counters.sent;
            let at_boundary =
                std::future::poll_fn(|cx| relay.sent.poll_boundary(cx, &mut backend, &mut client, passed));
            let at_boundary = timeout(patience, at_boundary).await.unwrap_or(false);
            let may = at_boundary && !relay.sent.is_closed() && !told;
            let to_client = match (ended.closed, code) {
                (Some(closed), _) if may => close_frame(closed.answer(), "", None),
                (None, Some(_)) if may => close_frame(code, ended.reason.label(), None),
                _ => Vec::new(),
            };
            let _ = timeout(patience, say_goodbye(&mut client, &to_client)).await;
        }
        if !told {
            self.count_revoked(ended);
        }
        if let Some(reason) = self.record.who().subject.noted() {
            self.record.note(reason);
        }
        self.registration = None;
        let Counters { received, sent, .. } = &self.record.who().counters;
        let traffic = Traffic {
            received_messages: received.messages(),
            received_bytes: received.bytes(),
            sent_messages: sent.messages(),
            sent_bytes: sent.bytes(),
        };
        let code = code.or(ended.closed.and_then(|closed| closed.code));
        self.record.finish(ended.reason, code, traffic);
        let client_end = async {
            if ended.reason != Reason::ClientLost {
                discard(&mut client).await;
            }
        };
        let backend_end = async {
            if backend_told && ended.reason != Reason::UpstreamLost {
                discard(&mut backend).await;
            }
        };
        let _ = timeout(patience, async { tokio::join!(client_end, backend_end) }).await;
    }

    /// Writes the Close of a session that was ended from outside, if it can be written at once. Many may be
    /// ended by one word: all of them hear of it before the first is cleared away.
    async fn tell_first<C>(&self, ended: Ended, code: Option<u16>, relay: &Relay, client: &mut C) -> bool
    where
        C: AsyncWrite + Unpin,
    {
        let may = ended.since.is_some() && relay.sent.may_follow() && !relay.sent.is_closed();
        if code.is_none() || !may {
            return false;
        }
        let frame = close_frame(code, ended.reason.label(), None);
        // Whatever became of it, it is not written twice.
        let _ = timeout(self.close_timeout(), client.write_all(&frame)).await;
        self.count_revoked(ended);
        tokio::task::yield_now().await;
        true
    }

    fn count_revoked(&self, ended: Ended) {
        if let (Some(since), Reason::TokenRevoked | Reason::UserRevoked) = (ended.since, ended.reason) {
            let took = Unix::now().0.saturating_sub(since.0);
            self.record.recorder().metrics.revoked_after(took);
        }
    }
}

/// Its frames are not such as may be forwarded.
fn is_fault_of_client(reason: Reason) -> bool {
    matches!(reason, Reason::FrameMalformed | Reason::MessageTooBig | Reason::MessageRateExceeded)
}

fn mask() -> [u8; 4] {
    let mut mask = [0; 4];
    // A mask of zeros is still a mask (RFC 6455 §5.3 wants it unpredictable against caching proxies,
    // of which there is none between a sidecar and its backend).
    let _ = getrandom::fill(&mut mask);
    mask
}

/// A timer that can be asked without a future's fuss.
trait PollElapsed {
    fn poll_elapsed(self, cx: &mut Context<'_>) -> bool;
}

impl PollElapsed for std::pin::Pin<&mut Sleep> {
    fn poll_elapsed(self, cx: &mut Context<'_>) -> bool {
        std::future::Future::poll(self, cx).is_ready()
    }
}
