//! A backend in the hands of the test itself: it accepts when told to, and reads and says single bytes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::SockRef;

pub use super::super::harness::unmasked;
use super::super::harness::{Client, Config, Gate, Handshake, Issuer, PATIENCE, eventually};

/// A listener that nobody accepts from but the test.
pub struct Upstream {
    listener: TcpListener,
    pub address: SocketAddr,
}

impl Upstream {
    pub fn start() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap())
    }

    pub fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        Self { listener, address }
    }

    /// What [`Config::new`] gives, for this backend.
    pub fn config(&self, issuer: &Issuer) -> Config {
        bare_config(&format!("http://{}", self.address)).issuer(issuer, "")
    }

    /// The next connection of the gate.
    pub fn accept(&self) -> Wire {
        super::super::harness::eventually("a connection to the backend", || self.try_accept())
    }

    pub fn try_accept(&self) -> Option<Wire> {
        let (stream, _) = self.listener.accept().ok()?;
        stream.set_nonblocking(false).unwrap();
        Some(Wire::new(stream))
    }

    /// The next connection, after its upgrade has been answered with 101.
    pub fn upgrade(&self) -> Wire {
        let mut wire = self.accept();
        wire.head();
        wire.send(switching().as_bytes());
        wire
    }

    /// A session with both of its ends.
    pub fn pair(&self, gate: &Gate, handshake: &Handshake) -> (Client, Wire) {
        let mut client = gate.send(&handshake.bytes());
        let wire = self.upgrade();
        let answer = client.head();
        assert_eq!(answer.status, 101, "{}", answer.text);
        (client, wire)
    }

    /// No connection of the gate waits to be accepted.
    pub fn assert_quiet(&self) {
        assert!(self.try_accept().is_none(), "one connection too many");
    }
}

/// As [`Config::without_issuer`], for a backend that is no [`super::super::harness::Backend`].
pub fn bare_config(url: &str) -> Config {
    Config::default()
        .set("listen.address", "'127.0.0.1:0'")
        .set("admin.address", "'127.0.0.1:0'")
        .set("runtime.workers", "1")
        .set("drain.delay", "'0s'")
        .set("drain.spread", "'0s'")
        .set("drain.deadline", "'1s'")
        .set("session.close_timeout", "'500ms'")
        .set("upstream.url", &format!("'{url}'"))
}

/// The answer to [`Handshake::KEY`].
pub fn switching() -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        Handshake::ACCEPT
    )
}

/// A frame as the backend sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub first: u8,
    pub masked: bool,
    pub payload: Vec<u8>,
}

impl Seen {
    /// Code and text of a masked Close.
    pub fn close(&self) -> Option<(u16, String)> {
        let code = self.payload.get(..2).filter(|_| self.first == 0x88 && self.masked)?;
        Some((u16::from_be_bytes([code[0], code[1]]), String::from_utf8_lossy(&self.payload[2..]).into()))
    }
}

/// One connection of the gate to the backend.
pub struct Wire<S = TcpStream> {
    pub stream: S,
    buffer: Vec<u8>,
}

impl Wire<TcpStream> {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    /// FIN.
    pub fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// RST.
    pub fn reset(self) {
        reset(&self.stream);
    }

    /// Whether the gate ends the connection within this time.
    pub fn has_ended(&mut self, time: Duration) -> bool {
        self.stream.set_read_timeout(Some(time)).unwrap();
        let ended = match self.stream.read(&mut [0]) {
            Ok(n) => n == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        };
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        ended
    }

    /// Waits a moment for a request, and ends the connection whether one came or not.
    pub fn stays_open_until_a_request(&mut self) -> bool {
        self.stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        matches!(self.stream.read(&mut [0; 4096]), Ok(1..))
    }

    pub fn stays_silent(&mut self, time: Duration) {
        assert!(self.buffer.is_empty(), "not silent: {:?}", self.buffer);
        self.stream.set_read_timeout(Some(time)).unwrap();
        let mut chunk = [0; 1024];
        match self.stream.read(&mut chunk) {
            Ok(n) => panic!("not silent: {:?}", String::from_utf8_lossy(&chunk[..n])),
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
            }
        }
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
}

impl<S: Read + Write> Wire<S> {
    /// Over a stream that has its timeouts already.
    pub fn over(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
        self.stream.flush().unwrap();
    }

    fn fill(&mut self, what: &str) -> bool {
        let mut chunk = vec![0; 65536];
        match self.stream.read(&mut chunk) {
            Ok(n) => {
                self.buffer.extend_from_slice(&chunk[..n]);
                n > 0
            }
            Err(error) => panic!("{what}: {error}; so far {:?}", String::from_utf8_lossy(&self.buffer)),
        }
    }

    /// The head of a request.
    pub fn head(&mut self) -> String {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.fill("the head of a request"), "the gate left");
        };
        String::from_utf8(self.buffer.drain(..end).collect()).unwrap()
    }

    pub fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.buffer.len() < length {
            assert!(self.fill("bytes"), "the gate left after {} of {length} bytes", self.buffer.len());
        }
        self.buffer.drain(..length).collect()
    }

    /// Everything until these bytes, them included.
    pub fn until(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|bytes| bytes == end) {
                return self.buffer.drain(..at + end.len()).collect();
            }
            assert!(self.fill("bytes"), "the gate left");
        }
    }

    /// The next frame, which is a short one.
    pub fn frame(&mut self) -> Seen {
        let head = self.exactly(2);
        let (masked, length) = (head[1] & 0x80 != 0, usize::from(head[1] & 0x7f));
        assert!(length < 126);
        let mask = if masked { self.exactly(4) } else { vec![0; 4] };
        let payload = self.exactly(length);
        let payload = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        Seen { first: head[0], masked, payload }
    }

    /// Code and text of the masked Close that must come next.
    pub fn close(&mut self) -> (u16, String) {
        let frame = self.frame();
        frame.close().unwrap_or_else(|| panic!("no masked Close, but {frame:?}"))
    }

    /// Everything until the gate ends the connection by FIN.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill("the end of the connection") {}
        std::mem::take(&mut self.buffer)
    }

    /// The gate ends the connection, by FIN or reset, and says nothing more.
    pub fn ends(&mut self) {
        let mut chunk = [0; 1024];
        match self.stream.read(&mut chunk) {
            Ok(n) => assert_eq!(n, 0, "said {:?}", String::from_utf8_lossy(&chunk[..n])),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
        }
        assert!(self.buffer.is_empty(), "{:?}", String::from_utf8_lossy(&self.buffer));
    }
}

/// Makes the end of this socket a reset.
pub fn reset(stream: &TcpStream) {
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// A server's Close.
pub fn goodbye(code: u16, text: &str) -> Vec<u8> {
    unmasked(0x88, &close_payload(code, text))
}

pub fn close_payload(code: u16, text: &str) -> Vec<u8> {
    [&code.to_be_bytes(), text.as_bytes()].concat()
}

/// Bytes in which a shift by one would show.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| u8::try_from((n + n / 251) % 256).unwrap()).collect()
}

/// Writes from a thread of its own, while the caller reads.
pub fn while_writing<T>(writer: &TcpStream, bytes: &[u8], read: impl FnOnce() -> T) -> T {
    let mut writer = writer.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || writer.write_all(bytes).unwrap());
        read()
    })
}

/// Reads so many bytes without keeping them for the search for tokens, which is slow for megabytes.
pub fn read_exactly(mut stream: &TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// A good handshake.
pub fn good(issuer: &Issuer) -> Handshake {
    Handshake::to("/ws/").bearer(&issuer.good_token())
}

/// Waits until whoever counts its writes here gets rid of no more; how many bytes that were.
pub fn stalled(sent: &AtomicUsize) -> usize {
    let mut before = 0;
    eventually("the writes to stall", || {
        std::thread::sleep(Duration::from_millis(150));
        let now = sent.load(Ordering::SeqCst);
        (now > 0 && now == std::mem::replace(&mut before, now)).then_some(())
    });
    before
}
