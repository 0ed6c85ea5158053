//! Adds up the lines of routes in shadow mode, in bounded memory, however long the log.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};

use super::line::{Event, Fields, Shadow, Would};
use crate::base::reject::Reason;

/// Routes, and reasons of all of them, that are told apart. A configuration has fewer; this is for what
/// is no log of ours and looks like one.
const MAX_GROUPS: usize = 500;
/// Users, origins, clients and addresses of one reason that are told apart: above, "more" is good enough.
const MAX_DISTINCT: usize = 1000;
/// Values that are shown.
const MAX_EXAMPLES: usize = 3;
/// Characters of a value that are shown.
const MAX_SHOWN: usize = 80;
/// Sessions whose other line is waited for, once more in the older half. A gate has 20,000 by default.
const MAX_HALVES: usize = 65_536;

/// A value as it may be shown: who made the request has chosen it, and it must not steer the terminal of
/// whoever reads this, nor fill it.
pub fn printable(text: &str) -> String {
    let mut shown = String::new();
    let mut length = 0;
    for c in text.chars() {
        let escaped = c.escape_debug();
        let plain = matches!(c, '"' | '\'' | '\\') || escaped.len() == 1;
        length += if plain { 1 } else { escaped.len() };
        if length > MAX_SHOWN {
            shown.push('…');
            break;
        }
        if plain {
            shown.push(c);
        } else {
            shown.extend(escaped);
        }
    }
    shown
}

/// Different values of one field.
#[derive(Debug, Default)]
pub struct Distinct {
    /// Their hashes.
    seen: HashSet<u64>,
    pub examples: Vec<String>,
    /// There are more than could be told apart.
    pub more: bool,
}

impl Distinct {
    fn add(&mut self, hash: u64, shown: &str) {
        if self.seen.len() >= MAX_DISTINCT {
            self.more |= !self.seen.contains(&hash);
        } else if self.seen.insert(hash) && self.examples.len() < MAX_EXAMPLES {
            self.examples.push(printable(shown));
        }
    }

    pub fn len(&self) -> usize {
        self.seen.len()
    }
}

/// All lines with one reason on one route.
#[derive(Debug, Default)]
pub struct Group {
    pub sessions: u64,
    pub requests: u64,
    /// Those of `sessions` that had come in and would have been closed.
    pub closed: u64,
    pub without_origin: u64,
    pub users: Distinct,
    pub clients: Distinct,
    pub origins: Distinct,
    pub addresses: Distinct,
    pub issuers: Distinct,
    pub first: Option<String>,
    pub last: Option<String>,
}

impl Group {
    pub fn count(&self) -> u64 {
        self.sessions + self.requests
    }

    fn add(&mut self, line: &Shadow<'_>, hasher: &RandomState) {
        match line.event {
            Event::Opened | Event::Closed => self.sessions += 1,
            Event::Request => self.requests += 1,
        }
        let field = |name| line.fields.text(name);
        let (sub, username) = (field("sub"), field("username"));
        if let Some(shown) = username.or(sub) {
            // A name may be given to somebody else; a subject is one of its issuer's.
            self.users.add(hasher.hash_one((field("iss"), sub.or(username))), shown);
        }
        let others = [
            (&mut self.clients, "client"),
            (&mut self.origins, "origin"),
            (&mut self.addresses, "address"),
            (&mut self.issuers, "iss"),
        ];
        for (distinct, name) in others {
            if let Some(value) = field(name) {
                distinct.add(hasher.hash_one(value), value);
            }
        }
        self.without_origin += u64::from(field("origin").is_none());
        if let Some(time) = line.fields.time() {
            if self.first.as_deref().is_none_or(|first| time < first) {
                self.first = Some(time.to_owned());
            }
            if self.last.as_deref().is_none_or(|last| time > last) {
                self.last = Some(time.to_owned());
            }
        }
    }
}

/// All lines of one route.
#[derive(Debug, Default)]
pub struct Route {
    pub sessions: u64,
    pub requests: u64,
    pub refused_sessions: u64,
    pub refused_requests: u64,
    pub groups: HashMap<Option<Reason>, Group>,
}

/// One of the two lines of a session.
#[derive(Debug)]
struct Half {
    event: Event,
    would: Would,
    /// More than one if clients choose the same request id.
    count: u32,
}

/// Sessions of which one line has been read. What has waited longest is forgotten first.
#[derive(Debug, Default)]
struct Halves {
    recent: HashMap<u64, Half>,
    older: HashMap<u64, Half>,
    forgotten: bool,
}

impl Halves {
    /// Takes the other line of this one's session out, if it was there.
    fn take_other(&mut self, key: u64, event: Event) -> Option<Would> {
        for halves in [&mut self.recent, &mut self.older] {
            if let Entry::Occupied(mut half) = halves.entry(key)
                && half.get().event != event
            {
                let would = half.get().would;
                half.get_mut().count -= 1;
                if half.get().count == 0 {
                    half.remove();
                }
                return Some(would);
            }
        }
        None
    }

    fn keep(&mut self, key: u64, event: Event, would: Would) {
        if self.recent.len() >= MAX_HALVES {
            self.forgotten |= !self.older.is_empty();
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.entry(key).or_insert(Half { event, would, count: 0 }).count += 1;
    }
}

/// What all files say together.
#[derive(Debug, Default)]
pub struct Summary {
    /// All lines but empty ones.
    pub lines: u64,
    pub foreign: u64,
    pub too_long: u64,
    /// Lines that the gate could not write.
    pub dropped: u64,
    /// Lines beyond [`MAX_GROUPS`].
    pub beyond: u64,
    pub routes: BTreeMap<String, Route>,
    groups: usize,
    halves: Halves,
    hasher: RandomState,
}

impl Summary {
    /// More sessions than could be remembered had one line only.
    pub fn has_forgotten(&self) -> bool {
        self.halves.forgotten
    }

    /// One line; `None` = it is too long.
    pub fn add(&mut self, line: Option<&str>) {
        let Some(line) = line else {
            self.lines += 1;
            self.too_long += 1;
            return;
        };
        if line.trim().is_empty() {
            return;
        }
        self.lines += 1;
        let Some(fields) = Fields::read(line) else {
            self.foreign += 1;
            return;
        };
        if fields.text("event") == Some("log_lines_dropped") {
            self.dropped = self.dropped.saturating_add(fields.number("count").unwrap_or_default());
        }
        if let Some(line) = Shadow::of(&fields) {
            self.add_shadow(&line);
        }
    }

    fn add_shadow(&mut self, line: &Shadow<'_>) {
        if !self.routes.contains_key(line.route) {
            if self.groups >= MAX_GROUPS {
                self.beyond += 1;
                return;
            }
            self.groups += 1;
        }
        let route = self.routes.entry(line.route.to_owned()).or_default();
        // Both lines of a session agree in all of these. The id alone may be the client's choice.
        let same = ["request_id", "address", "sub", "jti", "origin"].map(|name| line.fields.text(name));
        let key = self.hasher.hash_one((line.route, same));
        let other = match line.event {
            Event::Request => None,
            event => self.halves.take_other(key, event),
        };
        match (line.event, other) {
            (Event::Request, _) => route.requests += 1,
            (event, None) => {
                route.sessions += 1;
                self.halves.keep(key, event, line.would);
            }
            // It came in, and something happened later: the one line that has news.
            (Event::Closed, Some(Would::Pass)) if line.would != Would::Pass => {}
            // The same, in files read in the wrong order: it is counted already.
            (Event::Opened, Some(Would::Refuse(reason))) if line.would == Would::Pass => {
                if let Some(group) = route.groups.get_mut(&reason) {
                    group.closed += 1;
                }
                return;
            }
            (Event::Opened | Event::Closed, Some(_)) => return,
        }
        let Would::Refuse(reason) = line.would else { return };
        match line.event {
            Event::Request => route.refused_requests += 1,
            Event::Opened | Event::Closed => route.refused_sessions += 1,
        }
        let groups = route.groups.len();
        let group = match route.groups.entry(reason) {
            Entry::Occupied(group) => group.into_mut(),
            Entry::Vacant(_) if self.groups >= MAX_GROUPS => {
                self.beyond += 1;
                return;
            }
            Entry::Vacant(group) => group.insert(Group::default()),
        };
        group.add(line, &self.hasher);
        group.closed += u64::from(other.is_some());
        self.groups += route.groups.len() - groups;
    }
}
