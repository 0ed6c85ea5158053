//! The end of the process: not ready, still serving for a while, sessions closed, bounded in time.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::base::clock::Unix;
use crate::base::effective::Effective;
use crate::base::reject::Reason;
use crate::base::section::Section;
use crate::base::value::{Grace, Span};
use crate::proxy::gate::Gate;
use crate::proxy::lifetime::jitter;
use crate::state::lifecycle::Phase;
use crate::telemetry::logging::Level;

/// `[drain]`
#[derive(Clone, Copy, Debug)]
pub struct DrainSettings {
    /// Not ready, but serving: endpoints propagate.
    pub delay: Duration,
    /// Sessions are closed over this time.
    pub spread: Duration,
    /// In all.
    pub deadline: Option<Duration>,
}

impl DrainSettings {
    pub fn read(section: &Section<'_>) -> Self {
        let delay = section.get("delay", Grace(Duration::from_secs(5))).0;
        let deadline = section.get("deadline", Some(Span(Duration::from_secs(25)))).map(|span| span.0);
        // The last ones need some time to answer.
        let rest = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_sub(delay) * 3 / 4);
        let spread = section.get("spread", Grace(Duration::from_secs(15).min(rest))).0;
        if deadline.is_some_and(|deadline| delay >= deadline) {
            section.problem(
                "delay",
                "accepted: less than [drain] deadline, or no time is left to close sessions",
            );
        } else if deadline.is_some_and(|deadline| delay + spread > deadline) {
            section.problem(
                "spread",
                "accepted: with delay no more than [drain] deadline, at which the rest is cut without a Close",
            );
        }
        Self { delay, spread, deadline }
    }
}

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Drained,
    /// A second signal: everything was cut.
    Cut,
}

/// Time for the answers to those that wait for `/drained`.
const ANSWER: Duration = Duration::from_millis(100);
/// How often the drain looks whether the last session has gone.
const LOOK: Duration = Duration::from_millis(10);

/// The switches of a running gate.
#[derive(Debug)]
pub struct Control {
    gate: Arc<Gate>,
    settings: Mutex<(DrainSettings, Arc<[Effective]>)>,
    reload: Notify,
    taken_over: Notify,
    begin: Notify,
    /// Exit once drained; without it a drained gate goes on to say so.
    leave: watch::Sender<bool>,
    cut: Notify,
    closing: watch::Sender<bool>,
    drained: watch::Sender<bool>,
    stop: watch::Sender<bool>,
}

impl Control {
    pub fn new(gate: Arc<Gate>, settings: DrainSettings, effective: Vec<Effective>) -> Self {
        Self {
            gate,
            settings: Mutex::new((settings, effective.into())),
            reload: Notify::new(),
            taken_over: Notify::new(),
            begin: Notify::new(),
            leave: watch::Sender::new(false),
            cut: Notify::new(),
            closing: watch::Sender::new(false),
            drained: watch::Sender::new(false),
            stop: watch::Sender::new(false),
        }
    }

    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Takes over what has changed.
    pub fn set(&self, settings: DrainSettings, effective: Vec<Effective>) {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = (settings, effective.into());
    }

    /// The configuration in force, key by key.
    pub fn effective(&self) -> Arc<[Effective]> {
        Arc::clone(&self.settings.lock().unwrap_or_else(PoisonError::into_inner).1)
    }

    /// Asks for a reload, as SIGHUP does.
    pub fn reload(&self) {
        self.reload.notify_one();
    }

    /// Waits for [`Self::reload`].
    pub async fn reload_asked(&self) {
        self.reload.notified().await;
    }

    /// Another configuration is in force.
    pub fn tell_taken_over(&self) {
        self.taken_over.notify_one();
    }

    /// Waits for [`Self::tell_taken_over`].
    pub async fn taken_over(&self) {
        self.taken_over.notified().await;
    }

    /// Asks for a drain; the process stays until a signal.
    pub fn drain(&self) {
        self.gate.lifecycle.advance(Phase::NotReady);
        self.begin.notify_one();
    }

    /// Asks for a drain and for the exit after it.
    pub fn drain_and_leave(&self) {
        self.leave.send_replace(true);
        self.drain();
    }

    /// A signal: the first drains, the next one cuts.
    fn signalled(&self) {
        if self.leave.send_replace(true) {
            self.cut.notify_one();
        }
        self.drain();
    }

    /// Becomes true when nothing new is accepted any more.
    pub fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    /// Waits until a drain has ended.
    pub async fn drained(&self) {
        let _ = self.drained.subscribe().wait_for(|drained| *drained).await;
    }

    /// Ends the workers.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits for [`Self::stop`].
    pub async fn stopped(&self) {
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }

    /// Waits for the drain, carries it out, and returns when the process should leave.
    pub async fn run(&self) -> Ending {
        self.begin.notified().await;
        let drain = async {
            self.carry_out().await;
            let _ = self.leave.subscribe().wait_for(|leave| *leave).await;
        };
        tokio::select! {
            () = drain => Ending::Drained,
            () = self.cut.notified() => {
                self.gate.recorder.log.say(Level::Warn, "drain_cut", "second signal: everything is cut");
                Ending::Cut
            }
        }
    }

    /// Closes all sessions over `spread`, the idle ones first: who is in the middle of something may finish.
    async fn close_all(&self, spread: Duration) {
        let gate = &self.gate;
        let mut sessions = gate.sessions.matching(|_| true);
        sessions.sort_by_cached_key(|entry| entry.counters.last_data.load(Ordering::Relaxed));
        let began = Instant::now();
        for (entry, at) in sessions.iter().zip(schedule(sessions.len(), spread, jitter)) {
            let due = began + at;
            if due > Instant::now() && gate.sessions.count() > 0 {
                tokio::time::sleep_until(due).await;
            }
            entry.switch.end(Reason::Draining, Unix::now());
        }
        // Handshakes that were past their verdict when it began.
        gate.sessions.end_where(Reason::Draining, |_| true);
    }

    async fn carry_out(&self) {
        let (gate, log) = (&self.gate, &self.gate.recorder.log);
        let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner).0;
        let deadline = settings.deadline.map(|deadline| Instant::now() + deadline);
        if let Some(line) = log.line(Level::Info, "drain_started") {
            line.number("sessions", gate.sessions.count() as u64).write();
        }
        tokio::time::sleep(settings.delay).await;
        gate.lifecycle.advance(Phase::Closing);
        self.closing.send_replace(true);
        self.close_all(settings.spread).await;
        while gate.sessions.count() > 0 || gate.connections.taken() > 0 {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                if let Some(line) = log.line(Level::Warn, "drain_deadline") {
                    line.number("sessions", gate.sessions.count() as u64)
                        .number("connections", gate.connections.taken().into())
                        .write();
                }
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        gate.lifecycle.advance(Phase::Drained);
        self.drained.send_replace(true);
        // Whoever waits for this moment has to be answered before the process may leave.
        tokio::time::sleep(ANSWER).await;
        log.say(Level::Info, "drained", "the last session has ended");
    }
}

/// When each of `count` sessions is closed, evenly over `spread` but for a jitter of one step: the crowd
/// that comes back is as thin as the time allows.
fn schedule(count: usize, spread: Duration, jitter: impl Fn() -> f64) -> Vec<Duration> {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let step = spread.as_secs_f64() / f64::from(count.max(1));
    (0..count).map(|n| Duration::from_secs_f64(step * (f64::from(n) + jitter()))).collect()
}

/// SIGTERM and SIGINT drain; a second one cuts.
pub fn obey_signals(control: &Arc<Control>) -> Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind)?;
        let control = Arc::clone(control);
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                control.signalled();
            }
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_more_than_a_third_is_closed_in_a_tenth_of_the_time() {
        let spread = Duration::from_secs(10);
        for count in [0, 1, 2, 9, 10, 100, 9000] {
            let at = schedule(count, spread, jitter);
            assert_eq!(at.len(), count);
            assert!(at.iter().all(|at| *at <= spread), "{count}");
            assert!(at.is_sorted(), "{count}");
            let most = at
                .iter()
                .map(|from| at.iter().filter(|at| *at >= from && **at < *from + spread / 10).count());
            let most = most.max().unwrap_or(0);
            assert!(count < 9 || most * 3 <= count, "{most} of {count}");
        }
        assert_eq!(schedule(3, Duration::ZERO, jitter), [Duration::ZERO; 3]);
    }
}
