//! A client that says exactly what it is told to, and reads what comes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use super::PATIENCE;

/// Every byte that clients of one gate were answered.
pub type Answered = Arc<Mutex<Vec<u8>>>;

/// An upgrade in the making. Starts with what RFC 6455 §4.1 wants, and no token.
#[derive(Clone)]
pub struct Handshake {
    pub line: String,
    pub lines: Vec<String>,
}

impl Handshake {
    pub const KEY: &'static str = "dGhlIHNhbXBsZSBub25jZQ==";
    /// What RFC 6455 §1.3 computes from it.
    pub const ACCEPT: &'static str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    pub fn to(target: &str) -> Self {
        let lines = [
            "Host: chat.example.com",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            &format!("Sec-WebSocket-Key: {}", Self::KEY),
        ];
        Self { line: format!("GET {target} HTTP/1.1"), lines: lines.map(str::to_owned).into() }
    }

    /// One more header line, as it stands.
    pub fn with(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    /// Without any line of this name.
    pub fn without(mut self, name: &str) -> Self {
        let is = |line: &str| line.split(':').next().is_some_and(|n| n.eq_ignore_ascii_case(name));
        self.lines.retain(|line| !is(line));
        self
    }

    /// This line in place of all lines of its name.
    pub fn instead(self, line: &str) -> Self {
        self.without(line.split(':').next().unwrap_or_default()).with(line)
    }

    pub fn bearer(self, token: &str) -> Self {
        self.with(&format!("Authorization: Bearer {token}"))
    }

    pub fn origin(self, origin: &str) -> Self {
        self.with(&format!("Origin: {origin}"))
    }

    /// The page of the gate itself: its refusals can be read as a Close.
    pub fn page(self) -> Self {
        self.origin("https://chat.example.com")
    }

    pub fn bytes(&self) -> Vec<u8> {
        format!("{}\r\n{}\r\n\r\n", self.line, self.lines.join("\r\n")).into_bytes()
    }
}

/// The head of an answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub text: String,
}

impl Answer {
    /// All values of a header.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let pairs = self.text.lines().skip(1).filter_map(|line| line.split_once(':'));
        pairs.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    /// Its only value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} more than once in {}", self.text);
        all.first().copied()
    }
}

/// A frame from the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// FIN, RSV and opcode as they came.
    pub first: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn opcode(&self) -> u8 {
        self.first & 0x0f
    }

    /// Code and text, if it is a Close.
    pub fn close(&self) -> Option<(u16, String)> {
        let code = self.payload.get(..2).filter(|_| self.opcode() == 8)?;
        Some((u16::from_be_bytes([code[0], code[1]]), String::from_utf8_lossy(&self.payload[2..]).into()))
    }
}

/// A masked frame; `first` = FIN, RSV and opcode, such as 0x81 for a text.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x11, 0x22, 0x33, 0x44];
    let mut frame = vec![first];
    match payload.len() {
        n @ 0..126 => frame.push(0x80 | u8::try_from(n).unwrap()),
        n @ 126..65536 => {
            frame.push(0xfe);
            frame.extend(u16::try_from(n).unwrap().to_be_bytes());
        }
        n => {
            frame.push(0xff);
            frame.extend(u64::try_from(n).unwrap().to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Takes a frame off the front, masked or not; `None` = there is no whole one yet.
pub fn take_frame(buffer: &mut Vec<u8>) -> Option<Frame> {
    let (first, second) = (*buffer.first()?, *buffer.get(1)?);
    let (length, mut at) = match second & 0x7f {
        126 => (usize::from(u16::from_be_bytes(buffer.get(2..4)?.try_into().ok()?)), 4),
        127 => (usize::try_from(u64::from_be_bytes(buffer.get(2..10)?.try_into().ok()?)).ok()?, 10),
        n => (usize::from(n), 2),
    };
    let mask = if second & 0x80 == 0 {
        [0; 4]
    } else {
        at += 4;
        buffer.get(at - 4..at)?.try_into().ok()?
    };
    let payload = buffer.get(at..at + length)?.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m).collect();
    buffer.drain(..at + length);
    Some(Frame { first, payload })
}

/// All whole frames.
pub fn take_frames(mut bytes: Vec<u8>) -> Vec<Frame> {
    std::iter::from_fn(|| take_frame(&mut bytes)).collect()
}

/// A connection to the gate. What it reads is kept for the search for tokens at the end.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    answered: Answered,
}

impl Client {
    pub fn connect(address: SocketAddr, answered: Answered) -> Self {
        Self::over(TcpStream::connect(address).unwrap(), answered)
    }

    /// Over a connection that has been made already.
    pub fn over(stream: TcpStream, answered: Answered) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new(), answered }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Like [`Self::send`], of somebody who may have been closed already.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// FIN.
    pub fn finish(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Reads what comes next; false = the end.
    fn fill(&mut self, what: &str) -> bool {
        let mut chunk = vec![0; 65536];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(n) => {
                self.buffer.extend_from_slice(&chunk[..n]);
                self.answered.lock().unwrap().extend_from_slice(&chunk[..n]);
                true
            }
            Err(error) => panic!("{what}: {error}; so far {:?}", String::from_utf8_lossy(&self.buffer)),
        }
    }

    /// The head of the next answer.
    pub fn head(&mut self) -> Answer {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            let so_far = String::from_utf8_lossy(&self.buffer).into_owned();
            assert!(self.fill("the head of an answer"), "closed without an answer, after {so_far:?}");
        };
        let text = String::from_utf8(self.buffer.drain(..end).collect()).unwrap();
        let status = text.get(9..12).and_then(|status| status.parse().ok());
        Answer { status: status.unwrap_or_else(|| panic!("no status in {text:?}")), text }
    }

    /// The body that belongs to it: by `Content-Length`, chunked as it came, or to the end.
    pub fn body(&mut self, answer: &Answer) -> Vec<u8> {
        if let Some(length) = answer.header("content-length") {
            let length = length.parse().unwrap();
            return self.exactly(length);
        }
        if answer.header("transfer-encoding").is_some() {
            while !self.buffer.ends_with(b"0\r\n\r\n") {
                assert!(self.fill("a chunked body"), "the body was cut short");
            }
            return std::mem::take(&mut self.buffer);
        }
        self.rest()
    }

    pub fn json(&mut self, answer: &Answer) -> Value {
        let body = self.body(answer);
        serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{:?}", String::from_utf8_lossy(&body)))
    }

    /// So many bytes.
    pub fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.buffer.len() < length {
            assert!(self.fill("bytes"), "closed after {} of {length} bytes", self.buffer.len());
        }
        self.buffer.drain(..length).collect()
    }

    /// The next frame.
    pub fn frame(&mut self) -> Frame {
        self.frame_or_end().unwrap_or_else(|| panic!("closed before a frame"))
    }

    /// The next frame, or `None` at the end of the connection.
    pub fn frame_or_end(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = take_frame(&mut self.buffer) {
                return Some(frame);
            }
            if !self.fill("a frame") {
                assert!(self.buffer.is_empty(), "ended within a frame: {:?}", self.buffer);
                return None;
            }
        }
    }

    /// Code and text of the Close that must come next.
    pub fn close(&mut self) -> (u16, String) {
        let frame = self.frame();
        frame.close().unwrap_or_else(|| panic!("no Close, but {frame:?}"))
    }

    /// Everything until the gate ends the connection by FIN; a reset is a failure.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill("the end of the connection") {}
        std::mem::take(&mut self.buffer)
    }

    /// The connection ends, by FIN or reset, and nothing more was said.
    pub fn ends_silently(&mut self) {
        let mut chunk = [0; 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => {}
            Ok(n) => panic!("said {:?}", String::from_utf8_lossy(&chunk[..n])),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
        }
        assert!(self.buffer.is_empty(), "{:?}", String::from_utf8_lossy(&self.buffer));
    }

    /// Nothing comes for so long, and the connection stays open.
    pub fn stays_silent(&mut self, time: Duration) {
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
