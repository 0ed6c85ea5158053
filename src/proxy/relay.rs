//! Both directions of a live socket, and what ended them.

use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::splice::Half;
use crate::base::clock::Unix;
use crate::base::reject::Reason;
use crate::policy::close::Closed;
use crate::policy::frame::Sender;
use crate::state::permits::Slot;
use crate::state::sessions::Counters;

/// Why a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub reason: Reason,
    /// The Close that one side sent.
    pub closed: Option<Closed>,
    /// When it was ended from outside.
    pub since: Option<Unix>,
}

impl Ended {
    pub fn by(reason: Reason) -> Self {
        Self { reason, closed: None, since: None }
    }
}

/// Both directions.
#[derive(Debug)]
pub struct Relay {
    pub received: Half,
    pub sent: Half,
    /// When it began, by both clocks; the wall's in microseconds since the epoch.
    began: (Instant, u64),
    /// When a message last moved, in either direction.
    pub last_data: Instant,
    /// The switch knows the task, which is one and the same for life.
    pub watched: bool,
    /// The first Close that went by, and what it makes of the session.
    closed: Option<(Reason, Closed)>,
    /// When the answer to it is no longer waited for.
    pub give_up: Option<Instant>,
    /// Nobody's silence is judged before the next timer.
    pub held_up: bool,
    #[expect(dead_code, reason = "the connection's place under `max_connections`: held until all is over")]
    slot: Slot,
}

impl Relay {
    pub fn new(now: Instant, slot: Slot) -> Self {
        Self {
            received: Half::new(Sender::Client, now),
            sent: Half::new(Sender::Backend, now),
            began: (now, u64::try_from(Unix::now().0.as_micros()).unwrap_or_default()),
            last_data: now,
            watched: false,
            closed: None,
            give_up: None,
            held_up: false,
            slot,
        }
    }

    /// One side has sent a Close; `None` = and the other still has to answer.
    pub fn close(&mut self, reason: Reason, closed: Closed, give_up: Instant) -> Option<Ended> {
        self.closed.get_or_insert((reason, closed));
        self.give_up.get_or_insert(give_up);
        if self.received.is_closed() && self.sent.is_closed() { self.closed() } else { None }
    }

    /// What the first Close has ended.
    pub fn closed(&self) -> Option<Ended> {
        self.closed.map(|(reason, closed)| Ended { closed: Some(closed), ..Ended::by(reason) })
    }

    /// Notes when a message has moved.
    pub fn note_data(&mut self, now: Instant) {
        if std::mem::take(&mut self.received.moved_data) | std::mem::take(&mut self.sent.moved_data) {
            self.last_data = now;
        }
    }

    /// Lets others see what went by until now.
    pub fn publish(&self, now: Instant, counters: &Counters) {
        let Self { received, sent, .. } = self;
        let was = |one: &std::sync::atomic::AtomicU64| one.load(Ordering::Relaxed);
        if received.bytes == was(&counters.received_bytes) && sent.bytes == was(&counters.sent_bytes) {
            return;
        }
        let messages = was(&counters.received_messages) + was(&counters.sent_messages);
        if received.messages + sent.messages != messages {
            let (instant, wall) = self.began;
            let since = u64::try_from(now.duration_since(instant).as_micros()).unwrap_or_default();
            counters.last_data.store((wall + since) / 1000, Ordering::Relaxed);
        }
        for (counter, now) in [
            (&counters.received_messages, received.messages),
            (&counters.received_bytes, received.bytes),
            (&counters.sent_messages, sent.messages),
            (&counters.sent_bytes, sent.bytes),
        ] {
            counter.store(now, Ordering::Relaxed);
        }
    }
}
