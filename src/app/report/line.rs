//! What one line of a log says: JSON or text as the gate writes them, bare or as a container runtime or
//! journald hands them on.

use std::io::{self, BufRead, Read as _};

use serde_json::{Map, Value};

use crate::base::reject::Reason;

/// Longer lines are skipped: a file that is no log must not fill the memory.
pub const MAX_LINE: usize = 64 * 1024;
/// So many words may stand before a line of text: journald has five, CRI three.
const MAX_PREFIX_WORDS: usize = 10;

/// The next line goes into `line`, without its end. `Some(false)` = it is too long, and skipped.
pub fn next(source: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<bool>> {
    line.clear();
    source.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', line)?;
    if line.pop_if(|last| *last == b'\n').is_some() {
        return Ok(Some(true));
    }
    if line.len() > MAX_LINE {
        source.skip_until(b'\n')?;
        return Ok(Some(false));
    }
    Ok((!line.is_empty()).then_some(true))
}

/// The fields of a line of ours, whatever was put before or around it on its way.
#[derive(Debug)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// `None` = no log line of this program.
    pub fn read(line: &str) -> Option<Self> {
        let line = line.trim();
        let Some(fields) = json(line) else { return text(line).map(Self) };
        if is_own(&fields) {
            return Some(Self(fields));
        }
        // Docker's json-file, and `journalctl -o json`.
        let wrapped = ["log", "MESSAGE"].iter().find_map(|name| fields.get(*name)?.as_str());
        let Some(inner) = wrapped.map(str::trim) else { return text(line).map(Self) };
        json(inner).filter(is_own).or_else(|| text(inner)).map(Self)
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        self.0.get(name)?.as_u64()
    }

    /// When it was written. All times have one width, so they compare as texts.
    pub fn time(&self) -> Option<&str> {
        self.text("time").filter(|time| is_time(time))
    }
}

fn is_time(text: &str) -> bool {
    text.len() == "2026-03-01T09:30:16.995Z".len() && humantime::parse_rfc3339(text).is_ok()
}

/// The object that ends a line.
fn json(line: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(line.get(line.find('{')?..)?).ok()
}

/// Other programs write JSON too.
fn is_own(fields: &Map<String, Value>) -> bool {
    let level = fields.get("level").and_then(Value::as_str);
    level.is_some_and(is_level) && fields.get("event").is_some_and(Value::is_string)
}

fn is_level(word: &str) -> bool {
    ["debug", "info", "warn", "error"].contains(&word)
}

fn is_name(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

/// `TIME LEVEL event name=value name="quoted value"`
fn text(line: &str) -> Option<Map<String, Value>> {
    let words = std::iter::once(0).chain(line.match_indices(' ').map(|(at, _)| at + 1));
    let (time, event) = words.take(MAX_PREFIX_WORDS).find_map(|at| {
        let (time, rest) = line.get(at..)?.split_once(' ')?;
        let (level, rest) = rest.split_once(' ')?;
        (is_time(time) && is_level(&level.to_lowercase())).then_some((time, rest))
    })?;
    let (event, mut rest) = event.split_once(' ').unwrap_or((event, ""));
    if !is_name(event) {
        return None;
    }
    let mut fields = Map::new();
    fields.insert("time".into(), time.into());
    fields.insert("event".into(), event.into());
    while !rest.is_empty() {
        let (name, value) = rest.split_once('=').filter(|(name, _)| is_name(name))?;
        let (value, after) = if value.starts_with('"') {
            let mut strings = serde_json::Deserializer::from_str(value).into_iter::<String>();
            (strings.next()?.ok()?, value.get(strings.byte_offset()..)?)
        } else {
            let end = value.find(' ').unwrap_or(value.len());
            (value.get(..end)?.to_owned(), value.get(end..)?)
        };
        fields.insert(name.to_owned(), value.into());
        rest = match after.strip_prefix(' ') {
            Some(rest) => rest,
            None if after.is_empty() => after,
            None => return None,
        };
    }
    Some(fields)
}

/// What kind of line it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Opened,
    Closed,
    Request,
}

/// What shadow mode has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Would {
    Pass,
    /// `None` = a reason that this version does not know.
    Refuse(Option<Reason>),
}

/// A line of a route in shadow mode.
#[derive(Debug)]
pub struct Shadow<'f> {
    pub event: Event,
    pub route: &'f str,
    pub would: Would,
    pub fields: &'f Fields,
}

impl<'f> Shadow<'f> {
    pub fn of(fields: &'f Fields) -> Option<Self> {
        fields.text("mode").filter(|mode| *mode == "shadow")?;
        let event = match fields.text("event")? {
            "session_opened" => Event::Opened,
            "session_closed" => Event::Closed,
            "request" => Event::Request,
            // What was refused all the same is no shadow.
            _ => return None,
        };
        let would = fields.text("would_refuse").map_or(Would::Pass, |label| {
            Would::Refuse(Reason::ALL.iter().find(|reason| reason.label() == label).copied())
        });
        Some(Self { event, route: fields.text("route")?, would, fields })
    }
}
