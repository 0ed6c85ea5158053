//! A backend that keeps every byte it hears and answers as scripted.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::client::take_frame;
use super::{PATIENCE, eventually};

/// How an upgrade is answered. `{accept}` in bytes stands for the right `Sec-WebSocket-Accept`.
#[derive(Clone, Debug)]
pub enum Script {
    /// A proper 101 with these header lines too; frames come back unmasked, a Close ends it.
    Echo(Vec<String>),
    /// A proper 101 with these header lines too; then it only listens.
    Listen(Vec<String>),
    /// A proper 101; then it reads nothing.
    Stall,
    /// These bytes; then it only listens.
    Bytes(Vec<u8>),
    /// These bytes and FIN.
    BytesThenClose(Vec<u8>),
    /// It listens and says nothing.
    Silence,
    /// The connection ends at once.
    Close,
}

/// One request and all that came after it on its connection.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// Request line and headers with the empty line, as they came.
    pub head: Vec<u8>,
    /// Every byte after that.
    pub after: Vec<u8>,
    /// The gate has ended the connection.
    pub ended: bool,
}

impl Heard {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.head).into_owned()
    }

    /// `GET /path HTTP/1.1`
    pub fn line(&self) -> String {
        self.text().lines().next().unwrap_or_default().to_owned()
    }

    /// All values of a header, by its name in any case.
    pub fn all(&self, name: &str) -> Vec<String> {
        let text = self.text();
        let pairs = text.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        pairs.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim().to_owned()).collect()
    }

    /// Its only value.
    pub fn header(&self, name: &str) -> Option<String> {
        let mut all = self.all(name);
        assert!(all.len() <= 1, "{name} more than once in {}", self.text());
        all.pop()
    }
}

struct Shared {
    upgrade: Mutex<Script>,
    plain: Mutex<Vec<u8>>,
    /// Requests by arrival, with the writing half of their connection.
    heard: Mutex<Vec<(Heard, TcpStream)>>,
    connections: AtomicUsize,
    /// Connections made to find out whether all others have been seen.
    markers: AtomicUsize,
    held: Mutex<bool>,
    released: Condvar,
    gone: AtomicBool,
}

/// The backend; it echoes upgrades and answers plain requests with 200 `plain`.
pub struct Backend {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl Backend {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            upgrade: Mutex::new(Script::Echo(Vec::new())),
            plain: Mutex::new(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain".to_vec()),
            heard: Mutex::default(),
            connections: AtomicUsize::new(0),
            markers: AtomicUsize::new(0),
            held: Mutex::new(false),
            released: Condvar::new(),
            gone: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.gone.load(Ordering::SeqCst) {
                    return;
                }
                serving.connections.fetch_add(1, Ordering::SeqCst);
                let serving = Arc::clone(&serving);
                std::thread::spawn(move || serve(stream.unwrap(), &serving));
            }
        });
        Self { address, shared }
    }

    pub fn scripted(script: Script) -> Self {
        let backend = Self::start();
        backend.script(script);
        backend
    }

    /// How upgrades are answered from now on.
    pub fn script(&self, script: Script) {
        *self.shared.upgrade.lock().unwrap() = script;
    }

    /// How plain requests are answered from now on, byte by byte.
    pub fn plain(&self, answer: &str) {
        *self.shared.plain.lock().unwrap() = answer.as_bytes().to_vec();
    }

    /// Upgrades wait for [`Self::release`] before they are answered.
    pub fn hold(&self) {
        *self.shared.held.lock().unwrap() = true;
    }

    pub fn release(&self) {
        *self.shared.held.lock().unwrap() = false;
        self.shared.released.notify_all();
    }

    /// All requests so far.
    pub fn heard(&self) -> Vec<Heard> {
        self.shared.heard.lock().unwrap().iter().map(|(heard, _)| heard.clone()).collect()
    }

    /// The request number `n`, as soon as it is there.
    pub fn request(&self, n: usize) -> Heard {
        eventually("a request at the backend", || self.heard().get(n).cloned())
    }

    /// The last request there was.
    pub fn last(&self) -> Heard {
        self.heard().pop().unwrap()
    }

    /// Waits until the request number `n` is as `look` wants it.
    pub fn until(&self, n: usize, what: &str, look: impl Fn(&Heard) -> bool) -> Heard {
        eventually(what, || self.heard().get(n).filter(|heard| look(heard)).cloned())
    }

    /// Says something on the connection of request number `n`, bytes as they are.
    pub fn say(&self, n: usize, bytes: &[u8]) {
        self.request(n);
        self.shared.heard.lock().unwrap()[n].1.write_all(bytes).unwrap();
    }

    /// Ends the connection of request number `n` by FIN.
    pub fn end(&self, n: usize) {
        self.request(n);
        self.shared.heard.lock().unwrap()[n].1.shutdown(Shutdown::Write).unwrap();
    }

    /// How many connections the gate has made, those included that have just been made.
    pub fn connections(&self) -> usize {
        // Connections are accepted in their order: when this one has been, so have all before it.
        let markers = self.shared.markers.fetch_add(1, Ordering::SeqCst) + 1;
        let before = self.shared.connections.load(Ordering::SeqCst);
        drop(TcpStream::connect(self.address).unwrap());
        eventually("the backend to accept", || {
            (self.shared.connections.load(Ordering::SeqCst) > before).then_some(())
        });
        self.shared.connections.load(Ordering::SeqCst) - markers
    }

    /// Not even a connection was made.
    pub fn assert_never_heard(&self) {
        assert_eq!(self.connections(), 0, "the backend heard of it: {:?}", self.heard());
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.release();
        self.shared.gone.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        for (_, stream) in self.shared.heard.lock().unwrap().iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// What RFC 6455 §4.2.2 computes.
pub fn accept_of(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

fn serve(mut stream: TcpStream, shared: &Shared) {
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if !fill(&mut stream, &mut buffer) {
                return;
            }
        };
        let heard = Heard { head: buffer.drain(..end).collect(), ..Heard::default() };
        let upgrade = heard.header("upgrade").is_some();
        let n = {
            let mut all = shared.heard.lock().unwrap();
            all.push((heard.clone(), stream.try_clone().unwrap()));
            all.len() - 1
        };
        if upgrade {
            serve_upgrade(&mut stream, shared, n, &heard, &buffer);
            return;
        }
        if !serve_plain(&mut stream, shared, n, &heard, &mut buffer) {
            shared.heard.lock().unwrap()[n].0.ended = true;
            return;
        }
    }
}

fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> bool {
    let mut chunk = [0; 65536];
    match stream.read(&mut chunk) {
        Ok(n) if n > 0 => {
            buffer.extend_from_slice(&chunk[..n]);
            true
        }
        _ => false,
    }
}

/// Reads the body and answers; false = the connection is over.
fn serve_plain(
    stream: &mut TcpStream,
    shared: &Shared,
    n: usize,
    heard: &Heard,
    buffer: &mut Vec<u8>,
) -> bool {
    let length = heard.header("content-length").map(|length| length.parse::<usize>().unwrap());
    let chunked = heard.header("transfer-encoding").is_some();
    let end = loop {
        let end = if chunked {
            buffer.windows(5).position(|five| five == b"0\r\n\r\n").map(|at| at + 5)
        } else {
            Some(length.unwrap_or(0)).filter(|length| buffer.len() >= *length)
        };
        match end {
            Some(end) => break end,
            None if !fill(stream, buffer) => return false,
            None => {}
        }
    };
    let body: Vec<u8> = buffer.drain(..end).collect();
    shared.heard.lock().unwrap()[n].0.after = body;
    let answer = shared.plain.lock().unwrap().clone();
    stream.write_all(&answer).is_ok()
}

fn serve_upgrade(stream: &mut TcpStream, shared: &Shared, n: usize, heard: &Heard, early: &[u8]) {
    let script = shared.upgrade.lock().unwrap().clone();
    shared.heard.lock().unwrap()[n].0.after.extend_from_slice(early);
    let accept = accept_of(&heard.header("sec-websocket-key").unwrap_or_default());
    let switching = |lines: &[String]| {
        let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n{lines}\r\n"
        )
        .into_bytes()
    };
    let bytes = match &script {
        Script::Echo(lines) | Script::Listen(lines) => switching(lines),
        Script::Stall => switching(&[]),
        Script::Bytes(bytes) | Script::BytesThenClose(bytes) => {
            let text: Vec<u8> = bytes.clone();
            match std::str::from_utf8(&text) {
                Ok(text) => text.replace("{accept}", &accept).into_bytes(),
                Err(_) => text,
            }
        }
        Script::Silence | Script::Close => Vec::new(),
    };
    // The answer may have to wait, and what comes meanwhile is to be heard.
    let mut writer = stream.try_clone().unwrap();
    let answered = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let held = shared.held.lock().unwrap();
            drop(shared.released.wait_timeout_while(held, PATIENCE, |held| *held).unwrap());
            let _ = writer.write_all(&bytes);
            match script {
                Script::BytesThenClose(_) => drop(writer.shutdown(Shutdown::Write)),
                Script::Close => drop(writer.shutdown(Shutdown::Both)),
                Script::Echo(_) | Script::Listen(_) | Script::Stall | Script::Bytes(_) | Script::Silence => {}
            }
            answered.store(true, Ordering::SeqCst);
        });
        let mut frames = early.to_vec();
        if matches!(script, Script::Stall) {
            return;
        }
        loop {
            if matches!(script, Script::Echo(_)) && !frames.is_empty() {
                eventually("the answer to the upgrade", || answered.load(Ordering::SeqCst).then_some(()));
                if !echo(stream, &mut frames) {
                    return;
                }
            }
            let mut chunk = Vec::new();
            if !fill(stream, &mut chunk) {
                break;
            }
            frames.extend_from_slice(&chunk);
            shared.heard.lock().unwrap()[n].0.after.extend_from_slice(&chunk);
        }
        shared.heard.lock().unwrap()[n].0.ended = true;
    });
}

/// Sends whole frames back; false = that was a Close.
fn echo(stream: &mut TcpStream, frames: &mut Vec<u8>) -> bool {
    while let Some(frame) = take_frame(frames) {
        let opcode = frame.opcode();
        let answer = unmasked(if opcode == 9 { 0x8a } else { frame.first }, &frame.payload);
        if stream.write_all(&answer).is_err() {
            return false;
        }
        if opcode == 8 {
            let _ = stream.shutdown(Shutdown::Write);
            return false;
        }
    }
    true
}

/// A frame of a server.
pub fn unmasked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        n @ 0..126 => frame.push(u8::try_from(n).unwrap()),
        n @ 126..65536 => {
            frame.push(126);
            frame.extend(u16::try_from(n).unwrap().to_be_bytes());
        }
        n => {
            frame.push(127);
            frame.extend(u64::try_from(n).unwrap().to_be_bytes());
        }
    }
    frame.extend(payload);
    frame
}
