//! Who is on a request or on a session.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use http::HeaderMap;

use super::plan::{Mode, Plan};
use crate::base::reject::Reason;
use crate::policy::claims::Facts;
use crate::policy::peer::Peer;
use crate::state::sessions::Subject;
use crate::telemetry::logging::Line;
use crate::telemetry::record::Describe;

/// Who a request is from and where it goes, as far as it is known: the fields of every log line.
#[derive(Clone, Debug)]
pub struct Who {
    pub address: IpAddr,
    pub request_id: Box<str>,
    pub origin: Option<Box<str>>,
    pub plan: Option<Arc<Plan>>,
    pub facts: Option<Arc<Facts>>,
}

impl Describe for Who {
    fn describe<'l>(&self, line: Line<'l>) -> Line<'l> {
        let facts = self.facts.as_deref();
        let plan = self.plan.as_deref();
        let mode = plan.map(|plan| if plan.shadow { Mode::Shadow } else { Mode::Enforce });
        line.maybe("route", plan.map(|plan| plan.name.as_str()))
            .address("address", self.address)
            .maybe("sub", facts.and_then(Facts::sub))
            .maybe("username", facts.and_then(Facts::username))
            .maybe("sid", facts.and_then(Facts::sid))
            .maybe("jti", facts.and_then(Facts::jti))
            .maybe("iss", facts.map(Facts::iss))
            .maybe("client", facts.and_then(Facts::client))
            .maybe("origin", self.origin.as_deref())
            .text("request_id", &self.request_id)
            .maybe("mode", mode.map(Mode::word))
    }
}

/// Who is on a session, and what a reload needs in order to judge it again.
#[derive(Debug)]
pub struct Guest {
    pub who: Who,
    pub path: Box<str>,
    /// As sent.
    pub host: Box<str>,
    /// What a trusted proxy has told.
    pub forwarded: Option<Box<Peer>>,
    pub from_cookie: bool,
    /// Where the route's rule reads them.
    pub headers: Option<Box<HeaderMap>>,
    /// Whether its route is in shadow mode now.
    pub shadow: AtomicBool,
    /// What would have ended it, by its number + 1.
    pub noted: AtomicU8,
    pub newer: Mutex<Newer>,
}

/// Tokens that were seen for a session after the one that opened it.
#[derive(Debug, Default)]
pub struct Newer {
    /// The one that it lives by.
    pub taken: Option<Arc<Facts>>,
    /// One that may not prolong it, so that it is looked at once.
    pub refused: Option<Weak<Facts>>,
}

impl Guest {
    pub fn newer(&self) -> MutexGuard<'_, Newer> {
        self.newer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Describe for Guest {
    fn describe<'l>(&self, line: Line<'l>) -> Line<'l> {
        self.who.describe(line)
    }
}

impl Subject for Guest {
    fn facts(&self) -> Option<Arc<Facts>> {
        self.newer().taken.clone().or_else(|| self.who.facts.clone())
    }

    fn is_shadow(&self) -> bool {
        self.shadow.load(Ordering::Relaxed)
    }

    fn note(&self, reason: Reason) {
        self.noted.store(reason as u8 + 1, Ordering::Relaxed);
    }

    fn noted(&self) -> Option<Reason> {
        let number = self.noted.load(Ordering::Relaxed).checked_sub(1)?;
        Reason::ALL.get(usize::from(number)).copied()
    }
}
