//! The client in front of a peer. It believes nothing: status, accept hash and every echoed byte are compared.

use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::backend::{ALL, PAGE, accept, field, head_end};
use crate::frame::{self, Header};

/// The close code of a token that is not good.
const REVOKED: u16 = 4001;
const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
/// Where a message is echoed.
const CHAT: &str = "/ws/chat";
const HOST: &str = "chat.example.com";
/// What a page of that host sends along.
const ORIGIN: &str = "Origin: https://chat.example.com\r\n";
/// Of one whole job: no peer may hang the bench.
const PATIENCE: Duration = Duration::from_mins(2);

pub(crate) fn wrong<T>(what: impl Into<String>) -> io::Result<T> {
    Err(io::Error::other(what.into()))
}

/// Runs all jobs at once; the first failure ends them all.
pub(crate) async fn at_once<T, F>(jobs: impl IntoIterator<Item = F>) -> io::Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = io::Result<T>> + Send + 'static,
{
    let mut running: JoinSet<io::Result<T>> = jobs.into_iter().collect();
    let all = async {
        let mut done = Vec::with_capacity(running.len());
        while let Some(outcome) = running.join_next().await {
            done.push(outcome.map_err(io::Error::other)??);
        }
        Ok(done)
    };
    tokio::time::timeout(PATIENCE, all).await.or_else(|_| wrong("timed out"))?
}

/// An open WebSocket.
pub(crate) struct Socket {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Socket {
    /// `seed` makes the `Sec-WebSocket-Key`.
    pub(crate) async fn open(port: u16, token: &str, seed: usize) -> io::Result<Self> {
        Self::open_with(port, CHAT, token, seed, "").await
    }

    /// As a browser opens it.
    pub(crate) async fn open_from_page(port: u16, token: &str, seed: usize) -> io::Result<Self> {
        Self::open_with(port, CHAT, token, seed, ORIGIN).await
    }

    /// Where a message goes to everyone.
    pub(crate) async fn join(port: u16, token: &str, seed: usize) -> io::Result<Self> {
        Self::open_with(port, ALL, token, seed, "").await
    }

    async fn open_with(port: u16, path: &str, token: &str, seed: usize, headers: &str) -> io::Result<Self> {
        let key = STANDARD.encode((seed as u128 ^ 0x5851_F42D_4C95_7F2D_1405_7B7E_F767_814F).to_le_bytes());
        let (stream, head, buffer) = upgrade(port, path, token, &key, headers).await?;
        if status(&head) != Some(101) {
            return wrong(format!("expected 101, got {}", head.lines().next().unwrap_or_default()));
        }
        if field(&head, "sec-websocket-accept") != Some(&accept(&key)) {
            return wrong("Sec-WebSocket-Accept is not the key's");
        }
        Ok(Self { stream, buffer })
    }

    /// Close frame out, Close frame back, end of stream.
    pub(crate) async fn close(mut self) -> io::Result<()> {
        let code = 1000_u16.to_be_bytes();
        self.stream.write_all(&frame::frame(frame::CLOSE, &code, Some(MASK))).await?;
        let header = self.receive().await?;
        if header.opcode != frame::CLOSE || self.buffer.get(header.size..header.whole()) != Some(&code) {
            return wrong("the Close came back changed");
        }
        self.buffer.drain(..header.whole());
        match self.stream.read_buf(&mut self.buffer).await? {
            0 if self.buffer.is_empty() => Ok(()),
            _ => wrong("bytes after the Close"),
        }
    }

    /// When the gate closes it because its token is revoked.
    pub(crate) async fn revoked(mut self) -> io::Result<Instant> {
        let header = self.receive().await?;
        let now = Instant::now();
        let mut close = REVOKED.to_be_bytes().to_vec();
        close.extend_from_slice(b"token_revoked");
        match self.buffer.get(header.size..header.whole()) {
            Some(payload) if header.opcode == frame::CLOSE && payload == close => Ok(now),
            _ => wrong("a revoked socket got something else than its Close"),
        }
    }

    pub(crate) async fn echo(&mut self, message: &mut Message) -> io::Result<()> {
        self.send(message).await?;
        self.expect(message).await
    }

    pub(crate) async fn send(&mut self, message: &mut Message) -> io::Result<()> {
        message.next();
        self.stream.write_all(&message.masked).await
    }

    /// The message just sent, by this or another socket.
    pub(crate) async fn expect(&mut self, message: &Message) -> io::Result<()> {
        let header = self.receive().await?;
        if header.opcode != frame::BINARY
            || self.buffer.get(header.size..header.whole()) != Some(&message.plain)
        {
            return wrong("the message came back changed");
        }
        if self.buffer.len() == header.whole() {
            self.buffer.clear();
        } else {
            self.buffer.drain(..header.whole());
        }
        Ok(())
    }

    /// Waits until a whole frame stands at the buffer's start. Pings (the gate's own) are answered.
    async fn receive(&mut self) -> io::Result<Header> {
        loop {
            let header = Header::parse(&self.buffer);
            let needed = header.map_or(frame::MAX_HEADER, |header| header.whole());
            match header {
                Some(header) if self.buffer.len() >= needed => {
                    if header.mask.is_some() {
                        return wrong("a server's frame with a mask");
                    }
                    if header.opcode != frame::PING {
                        return Ok(header);
                    }
                    let pong = frame::frame(frame::PONG, &self.buffer[header.size..needed], Some(MASK));
                    self.stream.write_all(&pong).await?;
                    self.buffer.drain(..needed);
                }
                _ => {
                    self.buffer.reserve(needed.saturating_sub(self.buffer.len()).max(64));
                    if self.stream.read_buf(&mut self.buffer).await? == 0 {
                        return wrong("the stream ended inside a session");
                    }
                }
            }
        }
    }
}

/// A binary message, masked once; only its first 8 bytes differ from message to message.
pub(crate) struct Message {
    plain: Vec<u8>,
    masked: Vec<u8>,
    number: u64,
}

impl Message {
    pub(crate) fn new(size: usize, seed: usize) -> Self {
        let plain: Vec<u8> =
            (0..size).map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ seed).to_le_bytes()[0]).collect();
        let masked = frame::frame(frame::BINARY, &plain, Some(MASK));
        Self { plain, masked, number: seed as u64 * 1_000_000 }
    }

    fn next(&mut self) {
        self.number += 1;
        let header = self.masked.len() - self.plain.len();
        self.plain[..8].copy_from_slice(&self.number.to_be_bytes());
        self.masked[header..header + 8].copy_from_slice(&self.number.to_be_bytes());
        frame::apply(MASK, &mut self.masked[header..header + 8]);
    }
}

/// The status that a peer answers an upgrade with.
pub(crate) async fn verdict(port: u16, token: &str) -> io::Result<u16> {
    let (_, head, _) = upgrade(port, CHAT, token, "dGhlIHNhbXBsZSBub25jZQ==", "").await?;
    status(&head).ok_or_else(|| io::Error::other("an answer without a status"))
}

async fn upgrade(
    port: u16,
    path: &str,
    token: &str,
    key: &str,
    headers: &str,
) -> io::Result<(TcpStream, String, Vec<u8>)> {
    let mut stream = connect(port).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n\
         Sec-WebSocket-Version: 13\r\nUser-Agent: bench\r\nAuthorization: Bearer {token}\r\n{headers}\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut buffer = Vec::with_capacity(1024);
    let head = read_head(&mut stream, &mut buffer).await?;
    Ok((stream, head, buffer))
}

/// A connection that is kept alive for pages.
pub(crate) struct Pages {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Pages {
    pub(crate) async fn open(port: u16) -> io::Result<Self> {
        Ok(Self { stream: connect(port).await?, buffer: Vec::with_capacity(2048) })
    }

    pub(crate) async fn get(&mut self) -> io::Result<()> {
        let request =
            format!("GET /page HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n");
        self.stream.write_all(request.as_bytes()).await?;
        let head = read_head(&mut self.stream, &mut self.buffer).await?;
        if status(&head) != Some(200) || field(&head, "content-length") != Some("1024") {
            return wrong(format!("expected 200 with 1024 bytes, got {head}"));
        }
        while self.buffer.len() < PAGE.len() {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return wrong("a page cut short");
            }
        }
        if self.buffer != PAGE {
            return wrong("the page came back changed");
        }
        self.buffer.clear();
        Ok(())
    }
}

async fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Takes the head out of the buffer and leaves there what came after it.
pub(crate) async fn read_head(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
) -> io::Result<String> {
    loop {
        if let Some(end) = head_end(buffer) {
            let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
            buffer.drain(..end);
            return Ok(head);
        }
        buffer.reserve(512);
        if stream.read_buf(buffer).await? == 0 {
            return wrong("the stream ended inside a head");
        }
    }
}

pub(crate) fn status(head: &str) -> Option<u16> {
    head.split(' ').nth(1)?.parse().ok()
}
