//! The only writer of the blacklist: first it is written, then whoever it names is thrown out. A
//! handshake registers first and looks at the blacklist then, so that one of the two sees the other.

use std::sync::Arc;

use super::blacklist::{Blacklist, Full, Listed};
use super::sessions::{Entry, Sessions, Subject};
use crate::base::clock::Unix;
use crate::policy::revocation::{Kind, Selector};

/// What a revocation has done.
#[derive(Clone, Debug)]
pub struct Revoked {
    pub listed: Listed,
    /// It held already.
    pub known: bool,
    /// Sessions of this gate that it has ended.
    pub closed: usize,
}

/// What a reading of the file has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileRead {
    pub entries: usize,
    /// Lines beyond `max_entries`.
    pub full: usize,
    pub closed: usize,
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
    Ok(Revoked { listed, known, closed: end(sessions, selector, now) })
}

/// Takes a revocation back: `None` = there is none, `Some(false)` = the file says so too.
pub fn withdraw(blacklist: &Blacklist, id: &str) -> Option<bool> {
    blacklist.withdraw(id)
}

/// Takes over a file. Entries that it no longer has hold no more, once all of it is read.
pub fn replace_file<T: Subject>(
    blacklist: &Blacklist,
    sessions: &Sessions<T>,
    selectors: impl Iterator<Item = Selector>,
    now: Unix,
) -> FileRead {
    /// Readers wait for no more lines than these.
    const AT_ONCE: usize = 1024;
    let round = blacklist.begin_round();
    let mut read = FileRead::default();
    let mut any_new = false;
    let mut chunk = Vec::with_capacity(AT_ONCE);
    let mut selectors = selectors.peekable();
    while selectors.peek().is_some() {
        chunk.clear();
        chunk.extend(selectors.by_ref().take(AT_ONCE));
        let (full, new) = blacklist.take_lines(&chunk, round);
        read.entries += chunk.len() - full;
        read.full += full;
        any_new |= new;
    }
    blacklist.end_round(round);
    if any_new {
        // One look at each session is cheaper than a search for each line.
        let revoked = |entry: &Entry<T>| {
            let facts = entry.subject.facts().filter(|_| !entry.subject.is_shadow())?;
            blacklist.check(facts, now).err()
        };
        for entry in sessions.matching(|entry| revoked(entry).is_some()) {
            if let Some(reason) = revoked(&entry) {
                read.closed += usize::from(entry.switch.end(reason, now));
            }
        }
    }
    read
}

fn end<T: Subject>(sessions: &Sessions<T>, selector: &Selector, now: Unix) -> usize {
    let named = |entry: &Entry<T>| {
        !entry.subject.is_shadow() && entry.subject.facts().is_some_and(|facts| selector.matches(facts))
    };
    let named: Vec<Arc<Entry<T>>> = match selector.kind {
        Kind::Sub | Kind::SubBefore => {
            let theirs = sessions.of_user(&selector.iss, &selector.value);
            theirs.into_iter().filter(|entry| named(entry)).collect()
        }
        Kind::Jti | Kind::Sid | Kind::Before => sessions.matching(named),
    };
    named.iter().filter(|entry| entry.switch.end(selector.kind.reason(), now)).count()
}
