//! What time alone ends: the token, silence, idleness, age.

use std::time::Duration;

use tokio::time::Instant;

use super::heartbeat::{Beat, Due, HeartbeatSettings};
use crate::base::clock::Unix;
use crate::base::reject::Reason;
use crate::base::section::Section;
use crate::base::value::{Grace, Span, words};
use crate::policy::claims::{Facts, IssuerPolicy};
use crate::policy::frame::Tag;
use crate::telemetry::metrics::Metrics;

words! {
    /// `[session] on_expiry`
    pub enum OnExpiry { Close = "close", Keep = "keep" }
}

/// `[session]`
#[derive(Clone, Debug)]
pub struct SessionSettings {
    pub on_expiry: OnExpiry,
    pub expiry_grace: Duration,
    /// Whether a newer token of the same login prolongs a session.
    pub extend: bool,
    pub idle_timeout: Option<Duration>,
    pub max_age: Option<Duration>,
    pub write_timeout: Option<Duration>,
    pub close_timeout: Option<Duration>,
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self {
            on_expiry: OnExpiry::Close,
            expiry_grace: Duration::ZERO,
            extend: true,
            idle_timeout: None,
            max_age: None,
            write_timeout: Some(Duration::from_secs(30)),
            close_timeout: Some(Duration::from_secs(2)),
        }
    }
}

impl SessionSettings {
    /// Until when a session may live by a token, since the epoch; `None` = the token does not end it.
    pub fn good_until(&self, issuer: &IssuerPolicy, token: &Facts) -> Option<Duration> {
        let exp = token.exp.filter(|_| self.on_expiry == OnExpiry::Close)?;
        Some(Duration::try_from_secs_f64(exp).ok()? + issuer.leeway.max(self.expiry_grace))
    }

    /// Reads the section; what it does not give is inherited.
    pub fn read(section: &Section<'_>, inherited: &Self) -> Self {
        let time =
            |key: &str, inherited: Option<Duration>| section.get(key, inherited.map(Span)).map(|span| span.0);
        Self {
            on_expiry: section.get("on_expiry", inherited.on_expiry),
            expiry_grace: section.get("expiry_grace", Grace(inherited.expiry_grace)).0,
            extend: section.get("extend", inherited.extend),
            idle_timeout: time("idle_timeout", inherited.idle_timeout),
            max_age: time("max_age", inherited.max_age),
            write_timeout: time("write_timeout", inherited.write_timeout),
            close_timeout: time("close_timeout", inherited.close_timeout),
        }
    }
}

/// The clocks of one session.
#[derive(Debug, Default)]
pub struct Lifetime {
    /// When the token is no longer good.
    expires: Option<Instant>,
    /// When it is too old, however lively.
    ends: Option<Instant>,
    /// Shadow mode has told of its idleness.
    forgiven: bool,
    beat: Option<Box<Beat>>,
}

impl Lifetime {
    pub fn new(settings: &SessionSettings, expires: Option<Instant>, now: Instant) -> Self {
        let ends = settings.max_age.map(|age| now + jittered(age));
        Self { expires, ends, forgiven: false, beat: None }
    }

    pub fn tag(&self) -> Option<&Tag> {
        self.beat.as_deref().map(|beat| &beat.tag)
    }

    /// The earliest moment at which time alone has something to say.
    pub fn deadline(
        &self,
        settings: &SessionSettings,
        heartbeat: &HeartbeatSettings,
        heard: Instant,
        data: Instant,
    ) -> Option<Instant> {
        let idle = settings.idle_timeout.filter(|_| !self.forgiven).map(|timeout| data + timeout);
        let beat = match &self.beat {
            Some(beat) => beat.deadline(heartbeat, heard),
            None => heartbeat.interval.map(|interval| heard + interval),
        };
        [self.expires, self.ends, idle, beat].into_iter().flatten().min()
    }

    /// What is over by now. `prolonged` = until when the token may have been prolonged.
    pub fn is_over(
        &mut self,
        settings: &SessionSettings,
        data: Instant,
        now: Instant,
        prolonged: Option<Unix>,
    ) -> Option<Reason> {
        if self.expires.is_some_and(|at| now >= at) {
            let more = prolonged.map_or(Duration::ZERO, |until| until.0.saturating_sub(Unix::now().0));
            if more.is_zero() {
                return Some(Reason::TokenExpired);
            }
            self.expires = Some(now + more);
        }
        if self.ends.is_some_and(|at| now >= at) {
            return Some(Reason::SessionTooLong);
        }
        let idle = settings.idle_timeout.filter(|_| !self.forgiven);
        idle.filter(|timeout| now >= data + *timeout).map(|_| Reason::IdleTimeout)
    }

    /// In shadow mode each is told once.
    pub fn forgive(&mut self, reason: Reason) {
        if reason == Reason::TokenExpired {
            self.expires = None;
        } else if reason == Reason::SessionTooLong {
            self.ends = None;
        } else {
            self.forgiven = true;
        }
    }

    /// Pings if it is time to; `Some` = the client no longer answers.
    pub fn beat(
        &mut self,
        settings: &HeartbeatSettings,
        heard: Instant,
        deaf: bool,
        now: Instant,
        metrics: &Metrics,
        place: impl FnOnce(&[u8]) -> bool,
    ) -> Option<Reason> {
        let interval = settings.interval?;
        if self.beat.is_none() && now < heard + interval {
            return None;
        }
        let beat = self.beat.get_or_insert_with(|| Box::new(Beat::new()));
        let missed = beat.missed();
        let due = beat.look(settings, heard, deaf, now);
        metrics.missed_pongs.inc_by(beat.missed().saturating_sub(missed).into());
        match due {
            Due::Nothing => None,
            Due::GiveUp => Some(Reason::PongTimeout),
            Due::Ping => {
                let placed = place(&beat.ping());
                beat.placed(placed, settings, now);
                None
            }
        }
    }

    /// A pong of the gate's own has come; how long it took.
    pub fn answered(&mut self, counter: u16, now: Instant) -> Option<Duration> {
        self.beat.as_mut()?.answered(counter, now)
    }
}

/// 10 % more or less: what was opened together should not end together.
fn jittered(span: Duration) -> Duration {
    span.mul_f64(0.9 + 0.2 * jitter())
}

/// From 0 to 1, at random: what began together should not end together.
pub fn jitter() -> f64 {
    let mut random = [0; 2];
    let _ = getrandom::fill(&mut random);
    f64::from(u16::from_ne_bytes(random)) / f64::from(u16::MAX)
}
