//! Both directions of a live socket, and what ended them.

use std::mem::take;

use tokio::time::Instant;

use super::splice::{Came, Half};
use crate::base::clock::Unix;
use crate::base::reject::Reason;
use crate::policy::close::Closed;
use crate::policy::frame::Sender;
use crate::state::permits::Slot;

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
    /// When it began, by the wall's clock in microseconds since the epoch.
    pub began: u64,
    /// When a byte of the client last came.
    pub heard: Instant,
    /// When a byte of a message last came, from either side.
    pub data: Instant,
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
    /// Of a session that was opened then.
    pub fn new(opened: Instant, slot: Slot) -> Self {
        let now = Instant::now();
        let wall = Unix::now().0.saturating_sub(now.duration_since(opened));
        Self {
            received: Half::new(Sender::Client),
            sent: Half::new(Sender::Backend),
            began: u64::try_from(wall.as_micros()).unwrap_or_default(),
            heard: now,
            data: now,
            watched: false,
            closed: None,
            give_up: None,
            held_up: false,
            slot,
        }
    }

    /// Notes what has come until now.
    pub fn note(&mut self, now: Instant) {
        let (received, sent) = (take(&mut self.received.came), take(&mut self.sent.came));
        if received > Came::Nothing {
            self.heard = now;
        }
        if received.max(sent) == Came::Message {
            self.data = now;
        }
    }

    /// Something waits, so that the timer may be due sooner than it was.
    pub fn is_waiting(&self) -> bool {
        self.received.stalled.is_some() || self.sent.stalled.is_some() || self.give_up.is_some()
    }

    /// One side has sent a Close; `None` = and the other still has to answer.
    pub fn close(&mut self, reason: Reason, closed: Closed, give_up: Instant) -> Option<Ended> {
        self.closed.get_or_insert((reason, closed));
        self.give_up.get_or_insert(give_up);
        // Then it is the gate that ends the client's connection (RFC 6455 §7.1.1).
        self.sent.is_last = self.received.is_closed();
        if self.received.is_closed() && self.sent.is_closed() { self.closed() } else { None }
    }

    /// What the first Close has ended.
    pub fn closed(&self) -> Option<Ended> {
        self.closed.map(|(reason, closed)| Ended { closed: Some(closed), ..Ended::by(reason) })
    }
}
