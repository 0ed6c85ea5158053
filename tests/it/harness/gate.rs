//! The gate under test.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::Value;
use sidegate::app::drain::Control;
use sidegate::app::reload::Reloader;
use sidegate::app::{self, Log};
use socket2::{Domain, Socket, Type};

use super::client::Answered;
use super::{Answer, Backend, Client, Frame, Handshake, Issuer, eventually};

/// A configuration in the making: one key a time, each as it stands in TOML.
#[derive(Clone, Default)]
pub struct Config {
    /// Section → key → value.
    sections: BTreeMap<String, BTreeMap<String, String>>,
    tables: String,
}

impl Config {
    /// One worker, port 0, a quick drain, this backend, this issuer (ES256 and RS256), and no `[[route]]`.
    pub fn new(issuer: &Issuer, backend: &Backend) -> Self {
        Self::without_issuer(backend).issuer(issuer, "")
    }

    pub fn without_issuer(backend: &Backend) -> Self {
        Self::default()
            .set("listen.address", "'127.0.0.1:0'")
            .set("admin.address", "'127.0.0.1:0'")
            .set("runtime.workers", "1")
            .set("drain.delay", "'0s'")
            .set("drain.spread", "'0s'")
            .set("drain.deadline", "'1s'")
            .set("session.close_timeout", "'500ms'")
            .set("limits.attempts_per_address", "'off'")
            .set("upstream.url", &format!("'http://{}'", backend.address))
    }

    /// One key, such as `listen.header_timeout`, and its value, quotes included.
    pub fn set(mut self, path: &str, value: &str) -> Self {
        let (section, key) = path.rsplit_once('.').unwrap();
        self.sections.entry(section.into()).or_default().insert(key.into(), value.into());
        self
    }

    /// One `[[issuer]]`, with these lines too.
    pub fn issuer(mut self, issuer: &Issuer, lines: &str) -> Self {
        let mut given = format!("url = '{}'\njwks_uri = '{}'\n", issuer.url(), issuer.jwks_uri());
        for (key, value) in [("audiences", "['chat']"), ("algorithms", "['ES256', 'RS256']")] {
            if !lines.contains(key) {
                let _ = writeln!(given, "{key} = {value}");
            }
        }
        let _ = writeln!(self.tables, "[[issuer]]\n{given}{lines}");
        self
    }

    /// One `[[route]]` of these lines.
    pub fn route(mut self, lines: &str) -> Self {
        let _ = writeln!(self.tables, "[[route]]\n{lines}");
        self
    }

    /// Whatever else may stand at the end.
    pub fn tables(mut self, text: &str) -> Self {
        self.tables.push_str(text);
        self
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        for (section, keys) in &self.sections {
            let _ = writeln!(text, "[{section}]");
            for (key, value) in keys {
                let _ = writeln!(text, "{key} = {value}");
            }
        }
        text + &self.tables
    }
}

/// A running gate. When it is dropped it drains, and no answer, log line or metric may have shown a token.
pub struct Gate {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub control: Arc<Control>,
    log: Log,
    /// All that the log has said so far.
    said: Mutex<String>,
    answered: Answered,
    thread: Option<JoinHandle<()>>,
}

impl Gate {
    /// Serves, and has fetched the keys of every issuer.
    pub fn start(config: &Config) -> Self {
        let gate = Self::start_without_keys(config);
        gate.await_keys();
        gate
    }

    /// Waits for the keys of every issuer.
    pub fn await_keys(&self) {
        eventually("the keys of every issuer", || {
            let snapshot = self.control.gate().snapshot.load_full();
            let issuers = &snapshot.issuers;
            issuers.iter().all(|issuer| issuer.has_had_keys()).then_some(())
        });
    }

    /// Serves, whether its issuers answer or not.
    pub fn start_without_keys(config: &Config) -> Self {
        Self::serve(&config.text(), None)
    }

    /// Serves; with a reloader it follows a file.
    pub fn serve(text: &str, reloader: Option<Reloader>) -> Self {
        let loaded = app::config::read(text, std::iter::empty());
        let config = loaded.config.unwrap_or_else(|| panic!("{:?}\n{text}", loaded.problems));
        let log = Log::to_memory(config.log);
        let mut bound = app::bind(config, log.clone()).unwrap();
        if let Some(reloader) = reloader {
            bound.watch(reloader);
        }
        let address = bound.addresses()[0];
        let admin = bound.admin_addresses().0.unwrap();
        let control = bound.control();
        let thread = std::thread::spawn(move || {
            bound.run(false).unwrap();
        });
        let answered = Answered::default();
        Self { address, admin, control, log, said: Mutex::default(), answered, thread: Some(thread) }
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address, Arc::clone(&self.answered))
    }

    /// A client that comes from this address of the loopback.
    pub fn client_from(&self, source: Ipv4Addr) -> Client {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
        socket.connect(&self.address.into()).unwrap();
        Client::over(socket.into(), Arc::clone(&self.answered))
    }

    /// A connection to the admin listener.
    pub fn operator(&self) -> Client {
        Client::connect(self.admin, Arc::clone(&self.answered))
    }

    /// Sends bytes on a connection of their own.
    pub fn send(&self, bytes: &[u8]) -> Client {
        let mut client = self.client();
        client.send(bytes);
        client
    }

    /// Sends an upgrade and reads the head of the answer.
    pub fn upgrade(&self, handshake: &Handshake) -> (Client, Answer) {
        let mut client = self.send(&handshake.bytes());
        let answer = client.head();
        (client, answer)
    }

    /// Sends an upgrade that must be answered with 101.
    pub fn open(&self, handshake: &Handshake) -> Client {
        let (client, answer) = self.upgrade(handshake);
        assert_eq!(answer.status, 101, "{}", answer.text);
        client
    }

    /// Sends a whole request that ends its connection; gives head and body of the answer.
    pub fn ask(&self, bytes: &[u8]) -> (Answer, Vec<u8>) {
        let mut client = self.send(bytes);
        let answer = client.head();
        let body = client.body(&answer);
        (answer, body)
    }

    /// Status and label of the refusal of an upgrade over HTTP.
    pub fn refusal(&self, handshake: &Handshake) -> (u16, String) {
        let (mut client, answer) = self.upgrade(handshake);
        assert_ne!(answer.status, 101, "let through: {:?}", handshake.lines);
        let body = client.json(&answer);
        (answer.status, body["reason"].as_str().unwrap_or_default().to_owned())
    }

    /// Code and label of the Close by which a page's upgrade is refused.
    pub fn refusal_by_close(&self, handshake: &Handshake) -> (u16, String) {
        let mut client = self.open(handshake);
        let close = client.close();
        assert_eq!(client.rest(), b"", "more after the Close");
        close
    }

    /// All lines of the log so far.
    pub fn log(&self) -> Vec<Value> {
        let text = self.log_text();
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
    }

    pub fn log_text(&self) -> String {
        let mut said = self.said.lock().unwrap();
        said.push_str(&self.log.take());
        said.clone()
    }

    /// The first line of this event, as soon as it is there.
    pub fn logged(&self, event: &str) -> Value {
        eventually(&format!("the log line {event}"), || {
            self.log().into_iter().find(|line| line["event"] == event)
        })
    }

    /// All metrics as Prometheus would get them.
    pub fn metrics(&self) -> String {
        let mut client = Client::connect(self.admin, Answered::default());
        client.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = client.head();
        assert_eq!(answer.status, 200, "{}", answer.text);
        String::from_utf8(client.body(&answer)).unwrap()
    }

    /// One counter or gauge by name (without the namespace) and labels; 0 if there is none.
    pub fn metric(&self, series: &str) -> u64 {
        let text = self.metrics();
        let series = format!("sidegate_{series} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&series));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// How many refusals had this label.
    pub fn refused(&self, reason: &str) -> u64 {
        self.metric(&format!("websocket_auth_failures_total{{reason=\"{reason}\"}}"))
    }

    /// Live sessions.
    pub fn sessions(&self) -> usize {
        self.control.gate().sessions.count()
    }

    /// An echo goes through and comes back.
    pub fn assert_echo(client: &mut Client) {
        client.send(&super::masked(0x81, b"hello"));
        assert_eq!(client.frame(), Frame { first: 0x81, payload: b"hello".to_vec() });
    }

    /// Neither answers nor log nor metrics show the beginning of a JWT: `{"` in base64url, or that once more.
    pub fn assert_no_token_was_shown(&self) {
        let answers = String::from_utf8_lossy(&self.answered.lock().unwrap()).into_owned();
        for (place, text) in [("answers", answers), ("log", self.log_text()), ("metrics", self.metrics())] {
            for sign in ["eyJ", "ZXlK"] {
                let at = text.find(sign);
                assert!(at.is_none(), "a token in {place}: {:?}", text.get(at.unwrap_or(0)..));
            }
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.assert_no_token_was_shown();
        }
        self.control.drain_and_leave();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the gate's thread panicked");
        }
    }
}
