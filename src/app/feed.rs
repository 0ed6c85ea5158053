//! `[blacklist] file`: read at the start, and again when its content changes. And what has to be swept up
//! now and then.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::beat::Beat;
use super::drain::Control;
use crate::base::clock::Unix;
use crate::io::files::{LOOK, Watched};
use crate::policy::revocation::{Kind, Selector};
use crate::proxy::gate::Gate;
use crate::proxy::plan::{BlacklistSettings, OnStale, Snapshot};
use crate::state::blacklist::Feed;
use crate::state::revocation::replace_file;
use crate::telemetry::logging::Level;

/// How often what has expired is forgotten: it holds no more in any case.
const SWEEP: Duration = Duration::from_millis(5 * 1024);
/// Broken lines that are named one by one.
const NAMED: usize = 20;

/// The file of one gate.
#[derive(Debug)]
pub struct FileFeed {
    gate: Arc<Gate>,
    file: Option<Watched>,
    /// The configuration by whose issuers the file was read.
    generation: u64,
    /// When it was last in touch.
    contact: Option<Instant>,
    /// The trouble that has been told.
    told: Option<String>,
}

impl FileFeed {
    /// Reads the file for the first time: nobody is let in before.
    pub fn open(gate: Arc<Gate>) -> Self {
        let generation = gate.snapshot.load().generation;
        let mut feed = Self { gate, file: None, generation, contact: None, told: None };
        feed.look();
        update_staleness(&feed.gate);
        feed
    }

    /// Goes on for ever.
    pub async fn keep(mut self, control: Arc<Control>, beat: Beat) {
        let gate = Arc::clone(&self.gate);
        loop {
            let snapshot = gate.snapshot.load_full();
            let has_file = snapshot.settings.blacklist.file.is_some() || self.file.is_some();
            if !has_file && snapshot.shared.is_none() {
                gate.blacklist.set_stale(Feed::File, false);
                control.taken_over().await;
                continue;
            }
            beat.next(self.file.as_ref().map_or(LOOK, Watched::pause)).await;
            update_staleness(&gate);
            if !has_file {
                continue;
            }
            let contact = self.contact;
            // A long file must not hold up the admin listener, nor one that hangs the account of it.
            let mut looked = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            self = loop {
                tokio::select! {
                    looked = &mut looked => match looked {
                        Ok(feed) => break feed,
                        Err(_) => return,
                    },
                    () = tokio::time::sleep(LOOK) => {
                        let snapshot = gate.snapshot.load_full();
                        gate.blacklist.set_stale(Feed::File, is_stale(&snapshot.settings.blacklist, contact));
                        update_staleness(&gate);
                    }
                }
            };
        }
    }

    fn look(&mut self) {
        let snapshot = self.gate.snapshot.load_full();
        let settings = &snapshot.settings.blacklist;
        let blacklist = &self.gate.blacklist;
        let Some(path) = &settings.file else {
            if self.file.take().is_some() {
                let nothing = std::iter::empty;
                drop(replace_file(
                    blacklist,
                    &self.gate.sessions,
                    nothing,
                    || io::Result::Ok(()),
                    Unix::now(),
                ));
            }
            blacklist.set_stale(Feed::File, false);
            return;
        };
        let is_other = self.file.as_ref().is_none_or(|file| file.path() != path.as_str());
        if is_other || self.generation != snapshot.generation {
            // Another file, or lines that another issuer may be meant by.
            self.file = Some(Watched::new(path));
            self.generation = snapshot.generation;
        }
        let Some(file) = &mut self.file else { return };
        let looked = file.look().and_then(|changed| {
            if !changed {
                return Ok(());
            }
            let taken = take_over(&self.gate, &snapshot, file);
            if taken.is_err() {
                file.forget();
            }
            taken
        });
        match looked {
            Ok(()) => {
                self.contact = Some(Instant::now());
                self.told = None;
                self.gate.recorder.metrics.feed_in_touch(Feed::File.word(), Unix::now().seconds());
            }
            Err(error) => {
                let trouble = format!("{path}: {error}; its last content holds");
                if self.told.as_ref() != Some(&trouble) {
                    self.gate.recorder.log.say(Level::Warn, "blacklist_file_lost", &trouble);
                    self.told = Some(trouble);
                }
            }
        }
        blacklist.set_stale(Feed::File, is_stale(settings, self.contact));
    }
}

/// Takes over what the file says. If it cannot be read to its end nothing is forgotten.
fn take_over(gate: &Gate, snapshot: &Snapshot, file: &Watched) -> io::Result<()> {
    let failed = Cell::new(None);
    let issuers: Vec<&str> = snapshot.issuers.iter().map(|issuer| issuer.policy.url.as_str()).collect();
    let log = &gate.recorder.log;
    let parsed = || file.lines(&failed).map(|line| parse(&line, &issuers));
    let (mut entries, mut broken) = (0, 0);
    for (i, line) in parsed().enumerate() {
        let problem = match line {
            Err(problem) => problem,
            Ok(found) => {
                entries += usize::from(found.is_some());
                continue;
            }
        };
        broken += 1;
        if broken <= NAMED
            && let Some(told) = log.line(Level::Warn, "blacklist_line_skipped")
        {
            told.number("line", i as u64 + 1).text("message", problem).write();
        }
    }
    let lines = || parsed().filter_map(|line| line.ok().flatten());
    let is_whole = || failed.take().map_or(Ok(()), Err);
    is_whole()?;
    gate.blacklist.make_room(entries);
    let read = replace_file(&gate.blacklist, &gate.sessions, lines, is_whole, Unix::now())?;
    gate.recorder.metrics.blacklist_rejected.inc_by(read.full as u64);
    for reason in &read.shadowed {
        gate.recorder.would_refuse(*reason);
    }
    let level = if read.full > 0 || broken > 0 { Level::Warn } else { Level::Info };
    if let Some(line) = log.line(level, "revocation") {
        line.text("by", Feed::File.word())
            .number("entries", read.entries as u64)
            .number("skipped", broken as u64)
            .number("full", read.full as u64)
            .number("closed", read.closed as u64)
            .number("would_close", read.shadowed.len() as u64)
            .write();
    }
    Ok(())
}

/// Whether nobody may be let in by what is known.
fn is_stale(settings: &BlacklistSettings, contact: Option<Instant>) -> bool {
    let for_too_long = |contact: Instant| settings.stale_after.is_some_and(|after| contact.elapsed() > after);
    settings.on_stale == OnStale::RefuseNew && contact.is_none_or(for_too_long)
}

/// Says whether Redis has been out of touch for too long.
pub fn update_staleness(gate: &Gate) {
    let snapshot = gate.snapshot.load();
    let stale = snapshot
        .shared
        .as_ref()
        .is_some_and(|shared| is_stale(&snapshot.settings.blacklist, shared.contact()));
    gate.blacklist.set_stale(Feed::Redis, stale);
}

/// Forgets what has expired, for ever.
pub async fn sweep(gate: Arc<Gate>, beat: Beat) {
    loop {
        beat.next(SWEEP).await;
        gate.attempts.sweep(Instant::now());
        gate.blacklist.sweep(Unix::now());
    }
}

/// One line: `jti X`, `sid X` or `sub X`, and where there are several issuers which one.
fn parse(line: &str, issuers: &[&str]) -> Result<Option<Selector>, &'static str> {
    // A user may be called `alice#2`: a comment begins with a word.
    let mut words = line.split_whitespace().take_while(|word| !word.starts_with('#'));
    let Some(kind) = words.next() else { return Ok(None) };
    let kind = match kind {
        "jti" => Kind::Jti,
        "sid" => Kind::Sid,
        "sub" => Kind::Sub,
        _ => return Err("accepted: \"jti X\", \"sid X\" or \"sub X\""),
    };
    let value = words.next().ok_or("names nothing: a value follows jti, sid or sub")?;
    let iss = match (words.next(), issuers) {
        (None, [only]) => only,
        (None, _) => return Err("there are several issuers: the third word says which is meant"),
        (Some(iss), _) => {
            issuers.iter().find(|known| **known == iss).ok_or("the third word is no [[issuer]] url")?
        }
    };
    if words.next().is_some() {
        return Err("has more than three words");
    }
    Ok(Some(Selector { kind, iss: (*iss).to_owned(), value: value.to_owned(), issued_before: None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_within_a_word_belongs_to_it() {
        let parsed = parse("sub alice#2 # the second", &["https://a"]).unwrap().unwrap();
        assert_eq!(parsed.value, "alice#2");
    }

    #[test]
    fn lines_are_read_and_broken_ones_are_told() {
        let one = &["https://a"][..];
        let two = &["https://a", "https://b"][..];
        let named = |kind, iss: &str| {
            Ok(Some(Selector { kind, iss: iss.into(), value: "x".into(), issued_before: None }))
        };
        for (line, issuers, expected) in [
            ("jti x", one, named(Kind::Jti, "https://a")),
            ("  sid\tx  # gone since May", one, named(Kind::Sid, "https://a")),
            ("sub x https://b", two, named(Kind::Sub, "https://b")),
            ("", one, Ok(None)),
            ("# jti x", one, Ok(None)),
            ("jti x #gone", one, named(Kind::Jti, "https://a")),
        ] {
            assert_eq!(parse(line, issuers), expected, "{line:?}");
        }
        for (line, issuers) in [
            ("jti", one),
            ("JTI x", one),
            ("x", one),
            ("issued_before x", one),
            ("jti x", two),
            ("jti x https://c", two),
            ("jti x https://a more", one),
            ("jti x", &[]),
        ] {
            assert!(parse(line, issuers).is_err(), "{line:?}");
        }
    }
}
