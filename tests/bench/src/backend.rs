//! The backend behind every peer: echoes WebSocket messages or sends them to all, serves 1 KiB pages, the JWKS and
//! nginx's auth request.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::net::{TcpListener as StdListener, TcpStream as StdStream};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::frame::{self, Header};
use crate::keys;

/// The body of every page.
pub(crate) const PAGE: [u8; 1024] = [b'x'; 1024];
/// What is sent to a socket with this path goes to all of them, itself included.
pub(crate) const ALL: &str = "/ws/all";
/// Each peer takes one of these ports; `START`, `POLICY` and `RULE` are for what the bench starts itself.
const NAMES: [&str; 11] = ["S", "H", "N", "F", "S2", "H2", "F2", "QUIET", "START", "POLICY", "RULE"];
const MAX_HEAD: usize = 32 * 1024;
const BACKLOG: u32 = 4096;

pub(crate) async fn serve(dir: &Path) -> io::Result<()> {
    let jwks: &'static [u8] = keys::make(dir)?.into_bytes().leak();
    let socket = TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, 1], 0).into())?;
    let listener = socket.listen(BACKLOG)?;
    write_ports(dir, listener.local_addr()?.port())?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // How a connection ends is the client's to judge.
                tokio::spawn(async move { drop(converse(stream, jwks).await) });
            }
            Err(error) => eprintln!("backend: accept: {error}"),
        }
    }
}

/// Ports that were free a moment ago, for `run` to source. Renamed into place: there means ready.
fn write_ports(dir: &Path, backend: u16) -> io::Result<()> {
    let mut text = format!("BACKEND_PORT={backend}\n");
    let held: Vec<StdListener> =
        NAMES.iter().map(|_| StdListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    for (name, listener) in NAMES.iter().zip(&held) {
        let _ = writeln!(text, "{name}_PORT={}", listener.local_addr()?.port());
    }
    fs::write(dir.join("ports.new"), text)?;
    fs::rename(dir.join("ports.new"), dir.join("ports"))
}

/// What `DIR/ports` says.
pub(crate) fn port(dir: &Path, name: &str) -> io::Result<u16> {
    let text = fs::read_to_string(dir.join("ports"))?;
    let port = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("_PORT=")?.parse().ok());
    port.ok_or_else(|| io::Error::other(format!("there is no port for {name}")))
}

/// One connection: pages while it lasts, or one upgrade.
async fn converse(mut stream: TcpStream, jwks: &[u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(2048);
    loop {
        let Some(end) = head_end(&buffer) else {
            if buffer.len() > MAX_HEAD || stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        buffer.drain(..end);
        let path = head.split(' ').nth(1).unwrap_or_default();
        // nginx's auth request carries the key too, but no Upgrade.
        if let (Some(key), Some(_)) = (field(&head, "sec-websocket-key"), field(&head, "upgrade")) {
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
                accept(key)
            );
            let all = path == ALL;
            if all {
                ROOM.lock().unwrap_or_else(PoisonError::into_inner).push(second(&stream)?);
            }
            stream.write_all(answer.as_bytes()).await?;
            return echo(stream, buffer, all).await;
        }
        let answer = match path {
            "/auth" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
            "/jwks" => page("application/json", jwks),
            _ => page("text/plain", &PAGE),
        };
        stream.write_all(&answer).await?;
    }
}

fn page(kind: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

pub(crate) fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

pub(crate) fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.split("\r\n").skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

pub(crate) fn accept(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

/// The sockets of [`ALL`]; who has left is taken out when the next message cannot be written.
static ROOM: Mutex<Vec<StdStream>> = Mutex::new(Vec::new());

fn second(stream: &TcpStream) -> io::Result<StdStream> {
    Ok(stream.as_fd().try_clone_to_owned()?.into())
}

/// One write for each socket. What does not fit at once is lost, and its client says so.
fn tell_all(frame: &[u8]) {
    let mut room = ROOM.lock().unwrap_or_else(PoisonError::into_inner);
    room.retain(|mut stream| stream.write(frame).is_ok_and(|written| written == frame.len()));
}

/// Each frame goes back whole, in one write, from the buffer it came in: the answer's header is the shorter one.
async fn echo(mut stream: TcpStream, mut buffer: Vec<u8>, all: bool) -> io::Result<()> {
    loop {
        let header = Header::parse(&buffer);
        let needed = header.map_or(frame::MAX_HEADER, |header| header.whole());
        let Some(header) = header.filter(|_| buffer.len() >= needed) else {
            buffer.reserve((needed - buffer.len().min(needed)).max(1024));
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let mask = header.mask.ok_or_else(|| io::Error::other("a client's frame without a mask"))?;
        frame::apply(mask, &mut buffer[header.size..needed]);
        match header.opcode {
            frame::CLOSE => {
                stream.write_all(&frame::frame(frame::CLOSE, &buffer[header.size..needed], None)).await?;
                stream.shutdown().await?;
                while stream.read(&mut buffer).await? > 0 {}
                return Ok(());
            }
            frame::PONG => {}
            opcode => {
                let opcode = if opcode == frame::PING { frame::PONG } else { opcode };
                let mut short = Vec::with_capacity(frame::MAX_HEADER);
                frame::header(&mut short, opcode, header.payload, None);
                let start = header.size - short.len();
                buffer[start..header.size].copy_from_slice(&short);
                if all {
                    tell_all(&buffer[start..needed]);
                } else {
                    stream.write_all(&buffer[start..needed]).await?;
                }
            }
        }
        if buffer.len() == needed { buffer.clear() } else { drop(buffer.drain(..needed)) }
    }
}
