//! The first head of a connection. Most connections of a gate are one upgrade and nothing else: that
//! needs no HTTP server, only its parser. Whatever is not exactly an upgrade of the right form goes to
//! hyper, byte by byte as it came, which reads and refuses it as it does all others.

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::WriteHalf;
use tokio::time::timeout;

use super::body::Body;
use super::closing::FOREVER;
use super::entry::{Answer, Next};
use super::lifetime::SessionSettings;
use super::refuse::close;
use super::wire::{HeadLimits, MAX_HEADERS};
use crate::policy::request::{Kind, kind};

/// What a connection begins with.
#[derive(Debug)]
pub enum First {
    /// An upgrade of the right form, and what came after its head.
    Upgrade(Box<Parts>, Vec<u8>),
    /// Something else; these bytes of it have been read.
    Other(Vec<u8>),
    /// Not complete in time.
    TooSlow,
    /// Nothing at all in time: a browser connects before it knows what for.
    Silent,
}

/// Reads until it is known what the connection begins with.
pub async fn read(stream: &mut TcpStream, limits: HeadLimits) -> First {
    let mut read = Vec::with_capacity(2048);
    let mut seen = 0;
    let first = timeout(limits.header_timeout.unwrap_or(FOREVER), async {
        loop {
            // An end, clean or not, is hyper's to judge.
            match stream.read_buf(&mut read).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
            let so_far = read.get(..4).unwrap_or(&read);
            if !b"GET ".starts_with(so_far) || read.len() > limits.header_size {
                return None;
            }
            // Parsed once, when it is whole: else a head that comes byte by byte costs its square.
            if !has_end(&read, seen) {
                seen = read.len();
                continue;
            }
            match parse(&read) {
                Parsed::Upgrade(head, length) => return Some((head, length)),
                Parsed::Partial => {}
                Parsed::Other => return None,
            }
        }
    });
    match first.await {
        Ok(Some((head, length))) => First::Upgrade(head, read.get(length..).unwrap_or_default().to_vec()),
        Ok(None) => First::Other(read),
        Err(_) if read.is_empty() => First::Silent,
        Err(_) => First::TooSlow,
    }
}

/// Whether an empty line ends in what has come since `seen`: as a rule at its very end.
fn has_end(read: &[u8], seen: usize) -> bool {
    if read.ends_with(b"\r\n\r\n") {
        return true;
    }
    let tail = read.get(seen.saturating_sub(3)..).unwrap_or_default();
    tail.windows(2).any(|pair| pair == b"\n\n") || tail.windows(3).any(|three| three == b"\n\r\n")
}

enum Parsed {
    Upgrade(Box<Parts>, usize),
    Partial,
    Other,
}

fn parse(bytes: &[u8]) -> Parsed {
    let mut fields = [MaybeUninit::uninit(); MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(_) => return Parsed::Other,
    };
    head(&request).map_or(Parsed::Other, |head| Parsed::Upgrade(Box::new(head), length))
}

/// The head, if it is an upgrade of the right form.
fn head(request: &httparse::Request<'_, '_>) -> Option<Parts> {
    if request.version != Some(1)
        || !request.headers.iter().any(|field| field.name.eq_ignore_ascii_case("upgrade"))
    {
        return None;
    }
    let mut headers = HeaderMap::with_capacity(request.headers.len());
    for field in request.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_bytes(field.value).ok()?);
    }
    let (mut head, ()) = Request::new(()).into_parts();
    head.uri = Uri::try_from(request.path?).ok()?;
    head.headers = headers;
    (kind(&head) == Ok(Kind::Upgrade)).then_some(head)
}

/// Waits until the client has left.
pub async fn gone(stream: &TcpStream) {
    const LOOK: Duration = Duration::from_millis(100);
    // Bytes that wait for the 101 hide the end behind them: only the state of the socket tells.
    while stream.ready(Interest::READABLE).await.is_ok_and(|ready| !ready.is_read_closed()) {
        tokio::time::sleep(LOOK).await;
    }
}

/// Writes the answer; `Some` = what follows it, on this connection.
pub async fn answer(
    mut stream: TcpStream,
    answer: Answer,
    settings: &SessionSettings,
) -> Option<(Next, TcpStream)> {
    let (parts, body) = answer.response.into_parts();
    let body = if has_body(parts.status) { body } else { Body::Empty };
    let bytes = encode(parts.status, &parts.headers, &body);
    match (answer.next, body) {
        (Some(next), _) => match stream.write_all(&bytes).await {
            Ok(()) => return Some((next, stream)),
            Err(_) => next.lost(),
        },
        (None, Body::Stream(body)) => {
            let chunked = !parts.headers.contains_key(header::CONTENT_LENGTH);
            let (read, mut write) = stream.split();
            let complete = tokio::select! {
                relayed = relay_body(&mut write, &bytes, chunked, body, settings.write_timeout) => relayed.is_ok(),
                () = gone(read.as_ref()) => false,
            };
            if complete {
                close(&mut stream, &[], settings.close_timeout).await;
            }
        }
        (None, Body::Empty | Body::Whole(_) | Body::Upload(..)) => {
            close(&mut stream, &bytes, settings.close_timeout).await;
        }
    }
    None
}

/// RFC 9112 §6.3
fn has_body(status: StatusCode) -> bool {
    !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) && !status.is_informational()
}

fn encode(status: StatusCode, headers: &HeaderMap, body: &Body) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    let reason = status.canonical_reason().unwrap_or_default();
    out.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).as_bytes());
    for (name, value) in headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    if let Body::Whole(bytes) = body {
        out.extend_from_slice(format!("{}: {}\r\n\r\n", header::CONTENT_LENGTH, bytes.len()).as_bytes());
        out.extend_from_slice(bytes);
    } else {
        if matches!(body, Body::Stream(_)) && !headers.contains_key(header::CONTENT_LENGTH) {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// A body without a length goes out in chunks: its end must not look like that of the connection.
async fn relay_body(
    client: &mut WriteHalf<'_>,
    head: &[u8],
    chunked: bool,
    mut body: Incoming,
    write_timeout: Option<Duration>,
) -> io::Result<()> {
    let mut write = async |parts: &[&[u8]]| {
        let bytes = parts.concat();
        timeout(write_timeout.unwrap_or(FOREVER), client.write_all(&bytes)).await?
    };
    write(&[head]).await?;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(io::Error::other)?.into_data() else { continue };
        if chunked && !data.is_empty() {
            write(&[format!("{:x}\r\n", data.len()).as_bytes(), &data, b"\r\n"]).await?;
        } else {
            write(&[&data]).await?;
        }
    }
    if chunked { write(&[b"0\r\n\r\n"]).await } else { Ok(()) }
}
