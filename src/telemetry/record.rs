//! One set of metrics and one line for each handshake and each session, whatever happens to them: a
//! record that is dropped unfinished still tells.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::logging::{Level, Line, Log};
use super::metrics::Metrics;
use crate::base::reject::Reason;

/// Something that knows the fields of a line which say who and where.
pub trait Describe {
    fn describe<'l>(&self, line: Line<'l>) -> Line<'l>;
}

/// Log and metrics, as every record needs them.
#[derive(Clone, Debug)]
pub struct Recorder {
    pub log: Log,
    pub metrics: Arc<Metrics>,
}

impl Recorder {
    /// A refused handshake or plain request; `target` is already redacted.
    pub fn refused(
        &self,
        reason: Reason,
        who: &impl Describe,
        upgrade: bool,
        target: Option<&str>,
        told: Told,
        took: Duration,
    ) {
        self.metrics.refused(reason, upgrade);
        if let Some(line) = self.log.line(Level::Info, "handshake_refused") {
            let line = line.text("reason", reason.label());
            let line = match told {
                Told::Status(status) => line.number("status", status.into()),
                Told::Code(code) => line.number("code", code.into()),
                Told::Nothing => line,
            };
            who.describe(line).maybe("target", target).millis("duration_ms", took).write();
        }
    }

    /// A route in shadow mode would have refused or closed.
    pub fn would_refuse(&self, reason: Reason) {
        self.metrics.would_refuse(reason);
    }
}

/// What the client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Status(u16),
    Code(u16),
    Nothing,
}

/// Traffic of a session, received = from the client.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    pub received_messages: u64,
    pub received_bytes: u64,
    pub sent_messages: u64,
    pub sent_bytes: u64,
}

/// A live session. The gauge falls and the line is written when it is finished or dropped.
#[derive(Debug)]
pub struct SessionRecord<W: Describe> {
    recorder: Arc<Recorder>,
    who: W,
    opened: Instant,
    finished: bool,
    shadow: Option<Reason>,
}

impl<W: Describe> SessionRecord<W> {
    /// A session opens; the handshake took so long.
    pub fn open(
        recorder: Arc<Recorder>,
        who: W,
        took: Duration,
        shadow: Option<Reason>,
        target: &str,
    ) -> Self {
        recorder.metrics.accepted_after(took);
        recorder.metrics.active.inc();
        if let Some(line) = recorder.log.line(Level::Info, "session_opened") {
            let line = who.describe(line).text("target", target);
            shadowed(line, shadow).millis("duration_ms", took).write();
        }
        Self { recorder, who, opened: Instant::now(), finished: false, shadow }
    }

    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    pub fn opened(&self) -> Instant {
        self.opened
    }

    pub fn who(&self) -> &W {
        &self.who
    }

    /// A session in shadow mode would have been closed.
    pub fn would_close(&mut self, reason: Reason) {
        self.recorder.would_refuse(reason);
        self.note(reason);
    }

    /// For the line: somebody else has counted it.
    pub fn note(&mut self, reason: Reason) {
        self.shadow = self.shadow.or(Some(reason));
    }

    /// The session is over, for this reason; `code` = the close code that was told or passed.
    pub fn finish(&mut self, reason: Reason, code: Option<u16>, traffic: Traffic) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let lived = self.opened.elapsed();
        self.recorder.metrics.active.dec();
        self.recorder.metrics.closed(reason, lived);
        if let Some(line) = self.recorder.log.line(Level::Info, "session_closed") {
            let line = line.text("reason", reason.label());
            let line = match code {
                Some(code) => line.number("code", code.into()),
                None => line,
            };
            shadowed(self.who.describe(line), self.shadow)
                .millis("duration_ms", lived)
                .number("received_messages", traffic.received_messages)
                .number("received_bytes", traffic.received_bytes)
                .number("sent_messages", traffic.sent_messages)
                .number("sent_bytes", traffic.sent_bytes)
                .write();
        }
    }
}

/// Adds what shadow mode would have done.
pub fn shadowed(line: Line<'_>, reason: Option<Reason>) -> Line<'_> {
    match reason {
        Some(reason) => line.text("would_refuse", reason.label()),
        None => line,
    }
}

impl<W: Describe> Drop for SessionRecord<W> {
    fn drop(&mut self) {
        self.finish(Reason::Internal, None, Traffic::default());
    }
}
