//! Log lines on standard output, JSON or text. A line never blocks the thread that writes it: lines
//! are gathered in a bounded buffer that one thread of its own writes out, and what does not fit
//! because nobody reads is dropped, counted and told.

use std::cell::Cell;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use crate::base::clock::Unix;
use crate::base::section::Section;
use crate::base::value::{quoted, words};

words! {
    /// `[log] format`
    pub enum Format { Json = "json", Text = "text" }
}

words! {
    /// `[log] level`: lines below it are not written.
    #[derive(PartialOrd, Ord)]
    pub enum Level { Debug = "debug", Info = "info", Warn = "warn", Error = "error" }
}

/// `[log]`
#[derive(Clone, Copy, Debug)]
pub struct LogSettings {
    pub format: Format,
    pub level: Level,
    /// A line for each plain HTTP request too.
    pub requests: bool,
}

impl LogSettings {
    pub fn read(section: &Section<'_>) -> Self {
        Self {
            format: section.get("format", Format::Json),
            level: section.get("level", Level::Info),
            requests: section.get("requests", false),
        }
    }
}

/// Unwritten bytes beyond this are dropped: it trades memory for lines while standard output stalls.
const MAX_BUFFER: usize = 4 << 20;
/// Lines are gathered so long before they are written.
const GATHER: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    dropped: u64,
    writing: bool,
}

#[derive(Debug, Default)]
struct Shared {
    buffer: Mutex<Buffer>,
    filled: Condvar,
    emptied: Condvar,
}

fn lock(shared: &Shared) -> MutexGuard<'_, Buffer> {
    shared.buffer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where lines go.
#[derive(Clone, Debug)]
pub struct Log {
    settings: Arc<RwLock<LogSettings>>,
    shared: Arc<Shared>,
    /// Somebody writes the lines out.
    has_writer: bool,
}

impl Log {
    /// Writes to standard output, from a thread of its own.
    pub fn to_stdout(settings: LogSettings) -> Self {
        let log = Self { has_writer: true, ..Self::to_memory(settings) };
        let shared = Arc::clone(&log.shared);
        let writer = std::thread::Builder::new().name("log".into()).spawn(move || write_out(&shared));
        if let Err(error) = writer {
            eprintln!("no thread for the log: {error}");
        }
        log
    }

    /// Keeps the lines, for tests.
    pub fn to_memory(settings: LogSettings) -> Self {
        Self { settings: Arc::new(RwLock::new(settings)), shared: Arc::default(), has_writer: false }
    }

    /// What [`Self::to_memory`] has kept, and no more than once.
    pub fn take(&self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut lock(&self.shared).bytes)).into_owned()
    }

    pub fn settings(&self) -> LogSettings {
        *self.settings.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the lines that begin from now on.
    pub fn set(&self, settings: LogSettings) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    /// Begins a line; `None` if its level is silenced.
    pub fn line(&self, level: Level, event: &str) -> Option<Line<'_>> {
        let settings = self.settings();
        (level >= settings.level).then(|| Line::new(self, settings.format, level, event))
    }

    /// A line with one text.
    pub fn say(&self, level: Level, event: &str, message: &str) {
        if let Some(line) = self.line(level, event) {
            line.text("message", message).write();
        }
    }

    /// Waits, at most two seconds, until all lines are written.
    pub fn flush(&self) {
        if !self.has_writer {
            return;
        }
        let buffer = lock(&self.shared);
        let unwritten = |buffer: &mut Buffer| !buffer.bytes.is_empty() || buffer.writing;
        drop(self.shared.emptied.wait_timeout_while(buffer, Duration::from_secs(2), unwritten));
    }

    fn push(&self, line: &str) {
        let mut buffer = lock(&self.shared);
        if buffer.bytes.len() + line.len() > MAX_BUFFER {
            buffer.dropped += 1;
            return;
        }
        let wake = buffer.bytes.is_empty() && !buffer.writing;
        buffer.bytes.extend_from_slice(line.as_bytes());
        drop(buffer);
        if wake {
            self.shared.filled.notify_one();
        }
    }
}

fn write_out(shared: &Shared) {
    let mut chunk = Vec::new();
    loop {
        let mut buffer = lock(shared);
        while buffer.bytes.is_empty() {
            buffer.writing = false;
            shared.emptied.notify_all();
            buffer = shared.filled.wait(buffer).unwrap_or_else(PoisonError::into_inner);
        }
        buffer.writing = true;
        drop(buffer);
        std::thread::sleep(GATHER);
        let mut buffer = lock(shared);
        chunk.clear();
        std::mem::swap(&mut chunk, &mut buffer.bytes);
        let dropped = std::mem::take(&mut buffer.dropped);
        drop(buffer);
        if dropped > 0 {
            let line =
                format!("{{\"level\":\"warn\",\"event\":\"log_lines_dropped\",\"count\":{dropped}}}\n");
            chunk.extend_from_slice(line.as_bytes());
        }
        let mut stdout = std::io::stdout().lock();
        // Nobody is left to be told when standard output itself is gone.
        let _ = stdout.write_all(&chunk).and_then(|()| stdout.flush());
    }
}

thread_local! {
    /// The text of the line before: its memory serves the next one.
    static SPARE: Cell<String> = const { Cell::new(String::new()) };
}

/// A line under construction.
#[derive(Debug)]
#[must_use = "a line is written by `write`"]
pub struct Line<'l> {
    log: &'l Log,
    format: Format,
    text: String,
}

impl<'l> Line<'l> {
    fn new(log: &'l Log, format: Format, level: Level, event: &str) -> Self {
        let mut text = SPARE.take();
        text.clear();
        let now = Unix::now();
        match format {
            Format::Json => {
                let _ = write!(text, "{{\"time\":\"{now}");
                for part in ["\",\"level\":\"", level.word(), "\",\"event\":\"", event, "\""] {
                    text.push_str(part);
                }
            }
            Format::Text => {
                let _ = write!(text, "{now} {} {event}", level.word().to_uppercase());
            }
        }
        Self { log, format, text }
    }

    fn name(&mut self, name: &str) {
        match self.format {
            Format::Json => {
                self.text.push_str(",\"");
                self.text.push_str(name);
                self.text.push_str("\":");
            }
            Format::Text => {
                self.text.push(' ');
                self.text.push_str(name);
                self.text.push('=');
            }
        }
    }

    pub fn text(mut self, name: &str, value: &str) -> Self {
        self.name(name);
        // Without a way out of the loop the compiler looks at many bytes at once.
        let is_plain = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\';
        let plain = !value.is_empty() & value.bytes().fold(true, |plain, b| plain & is_plain(b));
        match (plain, self.format) {
            (true, Format::Text) => self.text.push_str(value),
            (true, Format::Json) => {
                self.text.push('"');
                self.text.push_str(value);
                self.text.push('"');
            }
            (false, _) => self.text.push_str(&quoted(value)),
        }
        self
    }

    /// Nothing at all if there is no value.
    pub fn maybe(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.text(name, value),
            None => self,
        }
    }

    /// An address: digits, dots and colons need no escaping.
    pub fn address(mut self, name: &str, value: IpAddr) -> Self {
        self.name(name);
        let quote = if self.format == Format::Json { "\"" } else { "" };
        self.text.push_str(quote);
        match value {
            IpAddr::V4(value) => {
                for (n, part) in value.octets().into_iter().enumerate() {
                    self.text.push_str(if n == 0 { "" } else { "." });
                    self.digits(part.into());
                }
            }
            IpAddr::V6(value) => {
                let _ = write!(self.text, "{value}");
            }
        }
        self.text.push_str(quote);
        self
    }

    fn digits(&mut self, value: u64) {
        self.text.push_str(itoa::Buffer::new().format(value));
    }

    pub fn number(mut self, name: &str, value: u64) -> Self {
        self.name(name);
        self.digits(value);
        self
    }

    pub fn millis(mut self, name: &str, value: Duration) -> Self {
        self.name(name);
        let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        self.digits(micros / 1000);
        self.text.push('.');
        let thousandths = micros % 1000;
        self.text.push_str(match thousandths {
            0..10 => "00",
            10..100 => "0",
            _ => "",
        });
        self.digits(thousandths);
        self
    }

    pub fn write(mut self) {
        self.text.push_str(match self.format {
            Format::Json => "}\n",
            Format::Text => "\n",
        });
        self.log.push(&self.text);
        SPARE.set(self.text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(format: Format, level: Level) -> Log {
        Log::to_memory(LogSettings { format, level, requests: false })
    }

    #[test]
    fn json_lines_are_json_whatever_is_in_them() {
        let log = log(Format::Json, Level::Info);
        log.line(Level::Info, "x")
            .unwrap()
            .text("a", "q\"\n\u{1}é")
            .number("n", 7)
            .maybe("none", None)
            .write();
        let line: serde_json::Value = serde_json::from_str(&log.take()).unwrap();
        assert_eq!(line["a"], "q\"\n\u{1}é");
        assert_eq!((&line["n"], &line["event"], line.get("none")), (&7.into(), &"x".into(), None));
    }

    #[test]
    fn text_lines_stay_one_line() {
        let log = log(Format::Text, Level::Info);
        log.line(Level::Warn, "x").unwrap().text("a", "b c\nd").text("e", "f").write();
        let line = log.take();
        assert!(line.ends_with(" WARN x a=\"b c\\nd\" e=f\n"), "{line}");
    }

    #[test]
    fn a_silenced_level_writes_nothing() {
        assert!(log(Format::Json, Level::Warn).line(Level::Info, "x").is_none());
    }

    #[test]
    fn a_log_that_nobody_reads_stays_bounded() {
        let log = log(Format::Json, Level::Info);
        let text = "x".repeat(64 * 1024);
        for _ in 0..100 {
            log.say(Level::Info, "x", &text);
        }
        assert!(lock(&log.shared).dropped > 0);
        assert!(log.take().len() <= MAX_BUFFER);
    }
}
