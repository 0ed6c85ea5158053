//! The backend: its section of the configuration, and the upgrade it is asked for (RFC 6455 §4.1). Its
//! 101 is checked before a byte of the client may follow; any other answer is a plain response on a
//! connection that is closed afterwards.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::dial::{Endpoint, Stream};
use crate::base::reject::{Reason, Reject};
use crate::base::section::Section;
use crate::base::value::Span;
use crate::policy::carrier::Delivery;
use crate::policy::profile::Profile;
use crate::policy::request::list;

/// Longest head of the backend's answer.
const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 100;
/// What any WebSocket server appends to the key (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// `[upstream]`
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    pub url: String,
    pub profile: Profile,
    /// `None` = the client's own.
    pub host: Option<HeaderValue>,
    host_written: String,
    pub connect_timeout: Option<Duration>,
    pub handshake_timeout: Option<Duration>,
    pub response_timeout: Option<Duration>,
    pub token: Delivery,
    pub ca_file: Option<String>,
}

impl Default for UpstreamSettings {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:8000".into(),
            profile: Profile::Generic,
            host: None,
            host_written: "preserve".into(),
            connect_timeout: Some(Duration::from_secs(5)),
            handshake_timeout: Some(Duration::from_secs(5)),
            response_timeout: Some(Duration::from_secs(60)),
            token: Delivery::Strip,
            ca_file: None,
        }
    }
}

impl UpstreamSettings {
    /// Reads the section; what it does not give is inherited.
    pub fn read(section: &Section<'_>, inherited: &Self) -> Self {
        let time =
            |key: &str, inherited: Option<Duration>| section.get(key, inherited.map(Span)).map(|span| span.0);
        let settings = Self {
            url: section.get("url", inherited.url.clone()),
            profile: section.get("profile", inherited.profile),
            host: None,
            host_written: section.get("host", inherited.host_written.clone()),
            connect_timeout: time("connect_timeout", inherited.connect_timeout),
            handshake_timeout: time("handshake_timeout", inherited.handshake_timeout),
            response_timeout: time("response_timeout", inherited.response_timeout),
            token: section.get("token", inherited.token.clone()),
            ca_file: section.optional::<String>("ca_file").or_else(|| inherited.ca_file.clone()),
        };
        let host =
            (settings.host_written != "preserve").then(|| HeaderValue::try_from(&settings.host_written));
        let host_ok = crate::policy::request::host_name(&settings.host_written).is_some();
        let host = match host {
            Some(Ok(host)) if host_ok => Some(host),
            None => None,
            Some(_) => {
                section.problem("host", "accepted: \"preserve\" or a host name with an optional port");
                None
            }
        };
        Self { host, ..settings }
    }

    /// Where that is; the error says what is accepted.
    pub fn endpoint(&self) -> Result<Endpoint, String> {
        const ACCEPTED: &str =
            "accepted: \"http://HOST:PORT\", \"https://HOST:PORT\" or \"unix:/PATH\", without path or user";
        if let Some(path) = self.url.strip_prefix("unix:") {
            return if path.starts_with('/') {
                Ok(Endpoint::Unix(path.into()))
            } else {
                Err(ACCEPTED.into())
            };
        }
        let uri: http::Uri = self.url.parse().map_err(|_| ACCEPTED.to_owned())?;
        let plain = matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.path() == "/"
            && uri.query().is_none()
            && !self.url.ends_with(['?', '#'])
            && uri
                .authority()
                .is_some_and(|authority| !authority.as_str().contains('@') && !authority.host().is_empty());
        if !plain {
            return Err(ACCEPTED.into());
        }
        Endpoint::of_url(&uri, self.ca_file.as_deref())
    }
}

/// `Sec-WebSocket-Accept` for a key.
pub fn accept_of(key: &[u8]) -> String {
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat());
    STANDARD.encode(hash.as_ref())
}

/// What the backend says to an upgrade.
#[derive(Debug)]
pub enum Answer {
    /// A 101 that is right in every respect.
    Switched { headers: HeaderMap, early: Vec<u8>, stream: Stream },
    /// A response of its own, to be passed on.
    Refused(Response<Incoming>),
}

/// Reads the answer to an upgrade that has been asked for.
pub async fn answer(mut stream: Stream, asked: &UpgradeRequest) -> Result<Answer, Reject> {
    const LOST: Reason = Reason::UpstreamMalformed;
    let mut buffer = BytesMut::with_capacity(1024);
    let head = loop {
        match parse_head(&buffer)? {
            // 100 and 103 come before the answer (RFC 9110 §15.2); 101 is one.
            Some(head) if (100..200).contains(&head.status) && head.status != 101 => {
                let _ = buffer.split_to(head.length);
                continue;
            }
            Some(head) => break head,
            None if buffer.len() > MAX_HEAD => return Err(LOST.into()),
            None => {}
        }
        if stream.read_buf(&mut buffer).await.map_err(|_| LOST)? == 0 {
            return Err(LOST.into());
        }
    };
    match head.status {
        101 => {
            check_101(&head.headers, asked)?;
            let early = buffer.get(head.length..).unwrap_or_default().to_vec();
            Ok(Answer::Switched { headers: head.headers, early, stream })
        }
        ..=299 => Err(LOST.into()),
        500..=599 => Err(Reject { reason: Reason::UpstreamError, upstream_status: Some(head.status) }),
        _ => replay(buffer.freeze(), stream).await.map(Answer::Refused),
    }
}

/// The request of an upgrade, and what its answer is held against.
#[derive(Debug)]
pub struct UpgradeRequest {
    head: Vec<u8>,
    accept: String,
    offers_extensions: bool,
}

impl UpgradeRequest {
    pub fn new(target: &str) -> Self {
        let mut head = Vec::with_capacity(2048);
        head.extend_from_slice(b"GET ");
        head.extend_from_slice(target.as_bytes());
        head.extend_from_slice(b" HTTP/1.1\r\nconnection: Upgrade\r\nupgrade: websocket\r\n");
        Self { head, accept: String::new(), offers_extensions: false }
    }

    /// The whole head.
    pub fn finish(&mut self) -> &[u8] {
        self.head.extend_from_slice(b"\r\n");
        &self.head
    }

    /// Adds a header; those of the upgrade itself are there already.
    pub fn header(&mut self, name: &HeaderName, value: &[u8]) {
        match *name {
            header::SEC_WEBSOCKET_KEY => self.accept = accept_of(value),
            header::SEC_WEBSOCKET_EXTENSIONS => self.offers_extensions = true,
            _ => {}
        }
        for part in [name.as_str().as_bytes(), b": ", value, b"\r\n"] {
            self.head.extend_from_slice(part);
        }
    }
}

struct Head {
    status: u16,
    headers: HeaderMap,
    length: usize,
}

fn parse_head(bytes: &[u8]) -> Result<Option<Head>, Reject> {
    let mut fields = [MaybeUninit::uninit(); MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let malformed = |_| Reject::from(Reason::UpstreamMalformed);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        bytes,
        &mut fields,
    );
    let httparse::Status::Complete(length) = parsed.map_err(malformed)? else {
        return Ok(None);
    };
    let mut headers = HeaderMap::with_capacity(response.headers.len());
    for field in response.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Reason::UpstreamMalformed)?;
        let value = HeaderValue::from_bytes(field.value).map_err(|_| Reason::UpstreamMalformed)?;
        headers.append(name, value);
    }
    Ok(Some(Head { status: response.code.unwrap_or_default(), headers, length }))
}

/// Whether a 101 answers the upgrade that was asked for (RFC 6455 §4.1): anything else would make a
/// tunnel out of a connection that the backend reads as HTTP.
fn check_101(answer: &HeaderMap, asked: &UpgradeRequest) -> Result<(), Reason> {
    let only = |name: HeaderName, wanted: &str| {
        let mut values = list(answer, &name);
        values.next().is_some_and(|value| value.eq_ignore_ascii_case(wanted)) && values.next().is_none()
    };
    let connection = list(answer, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let mut accepts = answer.get_all(header::SEC_WEBSOCKET_ACCEPT).iter();
    let accept = accepts.next().is_some_and(|accept| accept.as_bytes() == asked.accept.as_bytes());
    // An extension nobody offered would change what the frames mean.
    let extension = answer.contains_key(header::SEC_WEBSOCKET_EXTENSIONS);
    let one_protocol = answer.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().count() <= 1;
    let right = only(header::UPGRADE, "websocket")
        && connection
        && accept
        && accepts.next().is_none()
        && (asked.offers_extensions || !extension)
        && one_protocol;
    if right { Ok(()) } else { Err(Reason::UpstreamMalformed) }
}

/// Lets hyper read an answer whose head has been looked at, so that its body is framed by one parser:
/// the connection is given back to its beginning, and the request that hyper insists on goes nowhere.
async fn replay(read: Bytes, stream: Stream) -> Result<Response<Incoming>, Reject> {
    let malformed = |_| Reason::UpstreamMalformed;
    let io = TokioIo::new(Replay { read, stream, asked: false, reader: None });
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(io).await.map_err(malformed)?;
    tokio::spawn(connection);
    let mut request = http::Request::new(Empty::new());
    request.headers_mut().insert(header::HOST, HeaderValue::from_static("replay"));
    let mut response = sender.send_request(request).await.map_err(malformed)?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Reason::UpstreamMalformed.into());
    }
    crate::policy::headers::strip_hop_by_hop(response.headers_mut());
    Ok(response)
}

struct Replay {
    read: Bytes,
    stream: Stream,
    /// hyper takes an answer before its request for a defect of the connection.
    asked: bool,
    reader: Option<Waker>,
}

impl AsyncRead for Replay {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.asked {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let n = self.read.len().min(buf.remaining());
        buf.put_slice(&self.read.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replay {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.asked = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_value_is_that_of_rfc_6455() {
        assert_eq!(accept_of(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn only_a_101_that_is_right_in_every_respect_passes() {
        let mut asked = UpgradeRequest::new("/");
        asked.header(&header::SEC_WEBSOCKET_KEY, b"dGhlIHNhbXBsZSBub25jZQ==");
        let right = [
            ("upgrade", "WebSocket"),
            ("connection", "keep-alive, Upgrade"),
            ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ];
        let check = |pairs: &[(&'static str, &'static str)]| {
            let answer: HeaderMap = pairs
                .iter()
                .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
                .collect();
            check_101(&answer, &asked)
        };
        assert_eq!(check(&right), Ok(()));
        for missing in 0..right.len() {
            let mut pairs = right.to_vec();
            pairs.remove(missing);
            assert!(check(&pairs).is_err(), "{missing}");
        }
        let also = |pair| [&right[..], &[pair]].concat();
        let mut doubled: HeaderMap =
            right.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect();
        doubled.append("sec-websocket-accept", HeaderValue::from_static("x"));
        assert!(check_101(&doubled, &asked).is_err());
        assert!(check(&also(("sec-websocket-extensions", "permessage-deflate"))).is_err());
        assert_eq!(check(&also(("sec-websocket-protocol", "chat"))), Ok(()));
    }

    #[test]
    fn urls_with_more_than_a_place_are_refused() {
        let endpoint =
            |url: &str| UpstreamSettings { url: url.into(), ..UpstreamSettings::default() }.endpoint();
        for url in [
            "",
            "127.0.0.1:80",
            "ftp://a",
            "http://a/path",
            "http://a/?q",
            "http://u:p@a",
            "unix:rel",
            "http://",
        ] {
            assert!(endpoint(url).is_err(), "{url}");
        }
        for url in ["http://127.0.0.1:8000", "http://[::1]:80/", "https://backend", "unix:/run/d.sock"] {
            assert!(endpoint(url).is_ok(), "{url}");
        }
    }
}
