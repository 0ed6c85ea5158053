//! Is a silent client still there? Pings of the gate's own, and the account of their pongs. The backend
//! sees neither: it pings whom it likes itself.

use std::time::Duration;

use tokio::time::Instant;

use crate::base::section::Section;
use crate::base::value::{Count, Span};
use crate::policy::frame::Tag;

/// `[heartbeat]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeartbeatSettings {
    /// A client silent for so long is pinged; `None` = nobody is.
    pub interval: Option<Duration>,
    /// An answer is waited for so long.
    pub timeout: Duration,
    /// Unanswered pings in a row that end the session.
    pub missed: u32,
}

impl Default for HeartbeatSettings {
    fn default() -> Self {
        let (interval, timeout) = (Some(Duration::from_secs(30)), Duration::from_secs(5));
        Self { interval, timeout, missed: 3 }
    }
}

impl HeartbeatSettings {
    /// Reads the section; what it does not give is inherited.
    pub fn read(section: &Section<'_>, inherited: &Self) -> Self {
        Self {
            interval: section.get("interval", inherited.interval.map(Span)).map(|span| span.0),
            timeout: section.get("timeout", Span(inherited.timeout)).0,
            missed: section.get("missed", Count(inherited.missed)).0,
        }
    }
}

/// The pings of one session; made when the first is due.
#[derive(Debug)]
pub struct Beat {
    pub tag: Tag,
    counter: u16,
    /// The ping that waits for its pong.
    sent: Option<Instant>,
    /// The last ping of all.
    last: Option<Instant>,
    missed: u32,
    /// No ping before.
    rest: Option<Instant>,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Nothing,
    Ping,
    /// Too many pings have gone unanswered.
    GiveUp,
}

impl Beat {
    pub fn new() -> Self {
        let mut tag = [0; 8];
        // A tag of zeros is still one that no client sends by chance.
        let _ = getrandom::fill(&mut tag);
        Self { tag, counter: 0, sent: None, last: None, missed: 0, rest: None }
    }

    /// When to look again, if nothing is heard until then.
    pub fn deadline(&self, settings: &HeartbeatSettings, heard: Instant) -> Option<Instant> {
        let interval = settings.interval?;
        Some(match (self.sent, self.rest) {
            (Some(sent), _) => sent + settings.timeout,
            (None, Some(rest)) => rest,
            (None, None) => heard + interval,
        })
    }

    /// Looks at the clock. `heard` = the last byte of the client; `deaf` = the gate itself has stopped
    /// reading, so that no answer can be heard.
    pub fn look(&mut self, settings: &HeartbeatSettings, heard: Instant, deaf: bool, now: Instant) -> Due {
        let Some(interval) = settings.interval else { return Due::Nothing };
        // Any byte is life.
        if self.last.is_some_and(|last| heard > last) {
            (self.sent, self.missed) = (None, 0);
        }
        if let Some(sent) = self.sent {
            if now < sent + settings.timeout {
                return Due::Nothing;
            }
            self.sent = None;
            if deaf {
                self.rest = Some(now + interval);
            } else {
                self.missed += 1;
            }
            if self.missed >= settings.missed {
                return Due::GiveUp;
            }
        }
        if self.rest.is_some_and(|rest| now < rest) {
            return Due::Nothing;
        }
        if self.missed > 0 || now >= heard + interval { Due::Ping } else { Due::Nothing }
    }

    /// How many pings in a row have gone unanswered.
    pub fn missed(&self) -> u32 {
        self.missed
    }

    /// The next ping: 8 bytes that say whose it is, 2 that say which (RFC 6455 §5.5.2).
    pub fn ping(&self) -> [u8; 12] {
        let mut frame = [0; 12];
        let (head, payload) = ([0x89, 10], self.counter.wrapping_add(1).to_be_bytes());
        for (slot, byte) in frame.iter_mut().zip(head.into_iter().chain(self.tag).chain(payload)) {
            *slot = byte;
        }
        frame
    }

    /// The ping is on its way; or it could not be placed, in the middle of a message, and is tried again.
    pub fn placed(&mut self, placed: bool, settings: &HeartbeatSettings, now: Instant) {
        if placed {
            self.counter = self.counter.wrapping_add(1);
            (self.sent, self.last, self.rest) = (Some(now), Some(now), None);
        } else {
            self.rest = Some(now + settings.timeout);
        }
    }

    /// A pong of ours has come; how long it took, if it is the one that is waited for.
    pub fn answered(&mut self, counter: u16, now: Instant) -> Option<Duration> {
        if counter != self.counter {
            return None;
        }
        self.missed = 0;
        self.sent.take().map(|sent| now.duration_since(sent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> HeartbeatSettings {
        HeartbeatSettings::default()
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_silent_client_is_given_up_after_the_interval_and_the_pings() {
        let (start, mut beat) = (Instant::now(), Beat::new());
        let mut told = Vec::new();
        for second in 0..=60 {
            let now = start + seconds(second);
            let due = beat.look(&settings(), start, false, now);
            if due != Due::Nothing {
                told.push((second, due));
            }
            match due {
                Due::Ping => beat.placed(true, &settings(), now),
                Due::GiveUp => break,
                Due::Nothing => {}
            }
        }
        assert_eq!(told, [(30, Due::Ping), (35, Due::Ping), (40, Due::Ping), (45, Due::GiveUp)]);
    }

    #[test]
    fn any_byte_is_life() {
        let (start, mut beat) = (Instant::now(), Beat::new());
        let at = |second| start + seconds(second);
        for (second, heard, due) in [
            (30, 0, Due::Ping),
            (35, 0, Due::Ping),
            (40, 38, Due::Nothing),
            (67, 38, Due::Nothing),
            (68, 38, Due::Ping),
            (73, 38, Due::Ping),
            (78, 38, Due::Ping),
            (83, 38, Due::GiveUp),
        ] {
            assert_eq!(beat.look(&settings(), at(heard), false, at(second)), due, "{second}");
            if due == Due::Ping {
                beat.placed(true, &settings(), at(second));
            }
        }
    }

    #[test]
    fn what_cannot_be_placed_or_heard_is_not_missed() {
        let (start, mut beat) = (Instant::now(), Beat::new());
        let at = |second| start + seconds(second);
        for second in (30..300).step_by(5) {
            assert_eq!(beat.look(&settings(), start, false, at(second)), Due::Ping, "{second}");
            beat.placed(false, &settings(), at(second));
        }
        let mut beat = Beat::new();
        beat.placed(true, &settings(), at(30));
        assert_eq!(beat.look(&settings(), start, true, at(35)), Due::Nothing);
        assert_eq!(beat.look(&settings(), start, true, at(65)), Due::Ping);
        assert_eq!(beat.missed(), 0);
    }

    #[test]
    fn only_the_pong_that_is_waited_for_tells_the_time() {
        let (start, mut beat) = (Instant::now(), Beat::new());
        beat.placed(true, &settings(), start);
        beat.placed(true, &settings(), start + seconds(5));
        assert_eq!(beat.answered(1, start + seconds(6)), None, "late");
        assert_eq!(beat.answered(2, start + seconds(7)), Some(seconds(2)));
        assert_eq!(beat.answered(2, start + seconds(8)), None, "twice");
        assert_eq!(beat.ping()[..2], [0x89, 10]);
        assert_eq!(beat.ping()[10..], [0, 3]);
    }

    #[test]
    fn off_is_off() {
        let off = HeartbeatSettings { interval: None, ..settings() };
        let (start, mut beat) = (Instant::now(), Beat::new());
        assert_eq!(beat.look(&off, start, false, start + seconds(100_000)), Due::Nothing);
        assert_eq!(beat.deadline(&off, start), None);
    }
}
