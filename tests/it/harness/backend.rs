//! A backend that keeps every byte it hears and answers as scripted.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use super::eventually;
use super::serving::serve;

/// How an upgrade is answered. `{accept}` in bytes stands for the right `Sec-WebSocket-Accept`.
#[derive(Clone, Debug)]
pub enum Script {
    /// A proper 101 with these header lines too; frames come back unmasked, a Close ends it.
    Echo(Vec<String>),
    /// A proper 101 with these header lines too; then it only listens.
    Listen(Vec<String>),
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

pub(super) struct Shared {
    pub(super) upgrade: Mutex<Script>,
    pub(super) plain: Mutex<Vec<u8>>,
    /// Requests by arrival, with the writing half of their connection.
    pub(super) heard: Mutex<Vec<(Heard, TcpStream)>>,
    pub(super) connections: AtomicUsize,
    /// Connections made to find out whether all others have been seen.
    pub(super) markers: AtomicUsize,
    pub(super) held: Mutex<bool>,
    pub(super) released: Condvar,
    pub(super) gone: AtomicBool,
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
