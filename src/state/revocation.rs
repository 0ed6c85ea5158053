//! The only writer of the blacklist: first it is written, then whoever it names is thrown out. A
//! handshake registers first and looks at the blacklist then, so that one of the two sees the other.

use std::sync::Arc;

use super::blacklist::{Blacklist, Full, Listed};
use super::sessions::{Entry, Sessions, Subject};
use crate::base::clock::Unix;
use crate::base::reject::Reason;
use crate::policy::revocation::{Kind, Selector};

/// What a revocation has done.
#[derive(Clone, Debug)]
pub struct Revoked {
    pub listed: Listed,
    /// It held already.
    pub known: bool,
    /// Sessions of this gate that it has ended.
    pub closed: usize,
    /// Those that it names on routes in shadow mode.
    pub shadowed: usize,
}

/// What another replica was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Foreign<'a> {
    pub selector: &'a Selector,
    pub expires: Unix,
    pub note: Option<&'a str>,
    /// When it was asked.
    pub since: Unix,
}

/// What taking over many at once has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    pub entries: usize,
    /// Those beyond `max_entries`.
    pub full: usize,
    pub closed: usize,
    /// Why sessions on routes in shadow mode would have been closed.
    pub shadowed: Vec<Reason>,
}

/// Revokes what a selector names until `expires`.
pub fn revoke<T: Subject>(
    blacklist: &Blacklist,
    sessions: &Sessions<T>,
    selector: &Selector,
    expires: Unix,
    note: Option<&str>,
    now: Unix,
) -> Result<Revoked, Full> {
    let (listed, known) = blacklist.post(selector, expires, note, now)?;
    let (closed, shadowed) = end(sessions, selector, now);
    Ok(Revoked { listed, known, closed, shadowed })
}

/// Takes over what another replica was asked for, at `since`. `None` = it was known.
pub fn take_over<T: Subject>(
    blacklist: &Blacklist,
    sessions: &Sessions<T>,
    one: &Foreign<'_>,
    now: Unix,
) -> Result<Option<Revoked>, Full> {
    let (listed, known) = blacklist.post(one.selector, one.expires, one.note, now)?;
    if known {
        return Ok(None);
    }
    let (closed, shadowed) = end(sessions, one.selector, one.since);
    Ok(Some(Revoked { listed, known, closed, shadowed }))
}

/// As [`take_over`] for many: one look at each session is cheaper than a search for each of them. How many
/// are new, how many did not fit, and what it has done to sessions.
pub fn take_over_all<T: Subject>(
    blacklist: &Blacklist,
    sessions: &Sessions<T>,
    all: &[Foreign<'_>],
    now: Unix,
) -> Read {
    let mut read = Read::default();
    for one in all {
        match blacklist.post(one.selector, one.expires, one.note, now) {
            Ok((_, known)) => read.entries += usize::from(!known),
            Err(Full) => read.full += 1,
        }
    }
    if read.entries > 0 {
        let since = all.iter().map(|one| one.since).min().unwrap_or(now);
        end_all(blacklist, sessions, &mut read, since, now);
    }
    read
}

/// Takes a revocation back: `None` = there is none, `Some(false)` = the file says so too.
pub fn withdraw(blacklist: &Blacklist, id: &str) -> Option<bool> {
    blacklist.withdraw(id)
}

/// Takes over a file, whose lines `lines` tells as often as it is asked. Entries that it no longer has hold
/// no more, once `is_whole` says that all of it has been read; else all hold on.
pub fn replace_file<T: Subject, L: Iterator<Item = Selector>, E>(
    blacklist: &Blacklist,
    sessions: &Sessions<T>,
    lines: impl Fn() -> L,
    is_whole: impl Fn() -> Result<(), E>,
    now: Unix,
) -> Result<Read, E> {
    let round = blacklist.begin_round();
    let (mut read, mut any_new) = read_lines(blacklist, lines(), round);
    let mut whole = is_whole();
    if whole.is_ok() {
        blacklist.end_round(round);
    }
    if whole.is_ok() && read.full > 0 {
        // What the file no longer has took the room of what it has now.
        let (again, more) = read_lines(blacklist, lines(), round);
        (read, any_new) = (again, any_new || more);
        whole = is_whole();
    }
    if any_new {
        end_all(blacklist, sessions, &mut read, now, now);
    }
    whole.map(|()| read)
}

/// Ends all that are revoked by now.
fn end_all<T: Subject>(
    blacklist: &Blacklist,
    sessions: &Sessions<T>,
    read: &mut Read,
    since: Unix,
    now: Unix,
) {
    let revoked = |entry: &Entry<T>| blacklist.check(&*entry.subject.facts()?, now).err();
    for entry in sessions.matching(|entry| revoked(entry).is_some()) {
        let Some(reason) = revoked(&entry) else { continue };
        if end_one(&entry, reason, since) {
            read.closed += 1;
        } else if entry.subject.is_shadow() {
            read.shadowed.push(reason);
        }
    }
}

/// Ends a session, or notes what would have ended it: `true` = it was this.
pub fn end_one<T: Subject>(entry: &Entry<T>, reason: Reason, since: Unix) -> bool {
    if entry.subject.is_shadow() {
        entry.subject.note(reason);
        return false;
    }
    entry.switch.end(reason, since)
}

fn read_lines(blacklist: &Blacklist, lines: impl Iterator<Item = Selector>, round: u8) -> (Read, bool) {
    /// Readers wait for no more lines than these.
    const AT_ONCE: usize = 1024;
    let (mut read, mut any_new) = (Read::default(), false);
    let mut chunk = Vec::with_capacity(AT_ONCE);
    let mut lines = lines.peekable();
    while lines.peek().is_some() {
        chunk.clear();
        chunk.extend(lines.by_ref().take(AT_ONCE));
        let (full, new) = blacklist.take_lines(&chunk, round);
        read.entries += chunk.len() - full;
        read.full += full;
        any_new |= new;
    }
    (read, any_new)
}

/// Ends whoever is named; how many, and how many are only noted.
fn end<T: Subject>(sessions: &Sessions<T>, selector: &Selector, since: Unix) -> (usize, usize) {
    let named = |entry: &Entry<T>| entry.subject.facts().is_some_and(|facts| selector.matches(&facts));
    let named: Vec<Arc<Entry<T>>> = match selector.kind {
        Kind::Sub | Kind::SubBefore => sessions.of_user(&selector.iss, &selector.value, named),
        Kind::Jti | Kind::Sid | Kind::Before => sessions.matching(named),
    };
    let shadowed = named.iter().filter(|entry| entry.subject.is_shadow()).count();
    let closed = named.iter().filter(|entry| end_one(entry, selector.kind.reason(), since)).count();
    (closed, shadowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::reject::Reason;
    use crate::policy::claims::Facts;
    use crate::state::sessions::Places;
    use crate::telemetry::logging::Line;
    use crate::telemetry::record::Describe;
    use prometheus_client::metrics::gauge::Gauge;
    use serde_json::json;
    use std::task::Waker;

    #[derive(Debug)]
    struct User(Arc<Facts>);

    impl User {
        fn named(sub: &str) -> Self {
            Self(Arc::new(Facts::said(&json!({"iss": "https://a", "sub": sub}))))
        }
    }

    impl Describe for User {
        fn describe<'l>(&self, line: Line<'l>) -> Line<'l> {
            line
        }
    }

    impl Subject for User {
        fn facts(&self) -> Option<Arc<Facts>> {
            Some(Arc::clone(&self.0))
        }
        fn is_shadow(&self) -> bool {
            false
        }
        fn note(&self, _: Reason) {}
        fn noted(&self) -> Option<Reason> {
            None
        }
    }

    #[test]
    fn of_a_file_that_cannot_be_read_to_its_end_what_was_read_holds_and_nothing_is_forgotten() {
        let (blacklist, sessions) = (Blacklist::new(100, Gauge::default()), Sessions::new(Gauge::default()));
        let now = Unix::now();
        let take = |names: &[&str], whole: Result<(), ()>| {
            let line = |name: &&str| Selector {
                kind: Kind::Sub,
                iss: "https://a".into(),
                value: (*name).into(),
                issued_before: None,
            };
            replace_file(&blacklist, &sessions, || names.iter().map(line), || whole, now).is_ok()
        };
        let holds = || ["a", "b", "c"].map(|name| blacklist.check(&User::named(name).0, now).is_err());
        assert!(take(&["a", "b"], Ok(())));
        let session = sessions.register(User::named("c"), Places::default());
        assert!(!take(&["c"], Err(())));
        assert_eq!(holds(), [true, true, true]);
        let ended = session.entry.switch.ended(Waker::noop()).map(|end| end.reason);
        assert_eq!(ended, Some(Reason::UserRevoked), "the next reading would find nothing new");
        assert!(take(&["a"], Ok(())));
        assert_eq!(holds(), [true, false, false]);
    }
}
