//! Is this request one that a backend may see at all: target, `Host`, upgrade (RFC 9112 §3, RFC 6455
//! §4.2.1). The bytes that are matched are the bytes that are forwarded, so what could be read in two
//! ways is refused, not repaired.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, Method, Version, request::Parts};
use percent_encoding::percent_decode_str;

use crate::base::reject::Reason;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A WebSocket upgrade that RFC 6455 allows.
    Upgrade,
    /// Anything else; its `Upgrade` header, if any, must not be forwarded.
    Plain,
}

/// Checks request line and `Host`. `hosts` are lower-case names without port, empty = any.
pub fn check(head: &Parts, hosts: &[String]) -> Result<(), Reason> {
    let uri = &head.uri;
    if matches!(head.method, Method::CONNECT | Method::TRACE)
        || uri.scheme().is_some()
        || uri.authority().is_some()
    {
        return Err(Reason::RequestMalformed);
    }
    if !path_is_plain(uri.path()) {
        return Err(Reason::RequestMalformed);
    }
    let host = host(&head.headers).ok_or(Reason::RequestMalformed)?;
    let name = host_name(host).ok_or(Reason::RequestMalformed)?;
    if hosts.is_empty() || hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name)) {
        Ok(())
    } else {
        Err(Reason::HostDenied)
    }
}

/// The one `Host` value, port included.
pub fn host(headers: &HeaderMap) -> Option<&str> {
    only(headers, &HOST)?.to_str().ok()
}

/// The only value of a header; `None` if it is missing or repeated.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h http::HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// The name of `host[:port]` if RFC 3986 §3.2.2 allows it.
pub fn host_name(host: &str) -> Option<&str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (host.get(..address.len() + 2)?, port.strip_prefix(':').or(port.is_empty().then_some("0"))?)
        }
        None => host.split_once(':').unwrap_or((host, "0")),
    };
    let name_ok = name.starts_with('[')
        || (!name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&b)));
    (name_ok && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()).then_some(name)
}

/// Whether a path has one reading only: no dot segments, no `//`, no `\`, nothing encoded that a
/// backend could decode into structure or into a plain character, valid UTF-8 in the end.
fn path_is_plain(path: &str) -> bool {
    if !path.starts_with('/') || path.contains("//") {
        return false;
    }
    if path.split('/').any(|segment| segment == "." || segment == "..") {
        return false;
    }
    let bytes = path.as_bytes();
    let mut rest = bytes;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'%' => {
                let Some((hex, after)) = rest.split_at_checked(2) else { return false };
                let decoded = std::str::from_utf8(hex)
                    .ok()
                    .filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
                    .and_then(|hex| u8::from_str_radix(hex, 16).ok());
                match decoded {
                    Some(b'/' | b'\\' | 0..=0x1f | 0x7f) | None => return false,
                    Some(b) if is_unreserved(b) => return false,
                    Some(_) => rest = after,
                }
            }
            b'\\' | b'#' | 0..=0x20 | 0x7f => return false,
            _ => {}
        }
    }
    !path.contains('%') || percent_decode_str(path).decode_utf8().is_ok()
}

/// RFC 3986 §2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// The comma-separated, trimmed, non-empty elements of all lines of a header.
pub fn list<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.to_str().unwrap_or("\0").split(','))
        .map(|element| element.trim_matches([' ', '\t']))
        .filter(|element| !element.is_empty())
}

/// Whether a WebSocket is asked for, in whatever form.
pub fn wants_websocket(headers: &HeaderMap) -> bool {
    list(headers, &UPGRADE).any(|token| token.eq_ignore_ascii_case("websocket"))
}

/// Whether the request is an upgrade, and if so a well-formed one.
pub fn kind(head: &Parts) -> Result<Kind, Reason> {
    let headers = &head.headers;
    if !headers.contains_key(UPGRADE) {
        return Ok(Kind::Plain);
    }
    let (websocket, other) = list(headers, &UPGRADE).fold((false, false), |(websocket, other), token| {
        let is = token.eq_ignore_ascii_case("websocket");
        (websocket || is, other || !is)
    });
    if !websocket {
        return Ok(Kind::Plain);
    }
    if other {
        return Err(Reason::UpgradeMalformed);
    }
    let asked = list(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    if !asked || head.method != Method::GET || head.version != Version::HTTP_11 {
        return Ok(Kind::Plain);
    }
    let body = headers.contains_key(TRANSFER_ENCODING)
        || headers.get_all(CONTENT_LENGTH).iter().any(|length| length.as_bytes() != b"0");
    if body {
        return Err(Reason::UpgradeMalformed);
    }
    match only(headers, &http::header::SEC_WEBSOCKET_VERSION) {
        Some(version) if version.as_bytes() == b"13" => {}
        _ => return Err(Reason::UpgradeVersion),
    }
    let key = only(headers, &http::header::SEC_WEBSOCKET_KEY).ok_or(Reason::UpgradeMalformed)?;
    let mut decoded = [0; 18];
    match STANDARD.decode_slice(key.as_bytes(), &mut decoded) {
        Ok(16) => {}
        _ => return Err(Reason::UpgradeMalformed),
    }
    // A subprotocol is an HTTP token (RFC 6455 §4.1): anything else may be split differently behind us.
    if list(headers, &http::header::SEC_WEBSOCKET_PROTOCOL).all(is_token) {
        Ok(Kind::Upgrade)
    } else {
        Err(Reason::UpgradeMalformed)
    }
}

/// RFC 9110 §5.6.2.
pub fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// A value of `X-Request-ID` that is safe to log and to forward.
pub fn request_id_is_plain(id: &[u8]) -> bool {
    (1..=64).contains(&id.len()) && id.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(build: impl FnOnce(http::request::Builder) -> http::request::Builder) -> Parts {
        build(http::Request::builder()).body(()).unwrap().into_parts().0
    }

    fn upgrade(extra: &[(&str, &str)]) -> Parts {
        let mut head = head(|b| {
            b.uri("/ws")
                .header("host", "a")
                .header("upgrade", "websocket")
                .header("connection", "keep-alive, Upgrade")
                .header("sec-websocket-version", "13")
                .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        });
        for (name, value) in extra {
            head.headers.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        head
    }

    fn replaced(name: &str, value: Option<&str>) -> Parts {
        let mut head = upgrade(&[]);
        head.headers.remove(name);
        if let Some(value) = value {
            head.headers.insert(HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        }
        head
    }

    #[test]
    fn paths_with_two_readings_are_refused() {
        for path in [
            "/public/../admin",
            "/./a",
            "/a/.",
            "/a/..",
            "//a",
            "/a//b",
            "/a\\b",
            "/a%2fb",
            "/a%2Fb",
            "/a%5cb",
            "/%2e%2e/a",
            "/%2e/a",
            "/a/.%2e",
            "/a%00",
            "/a%0a",
            "/a%7f",
            "/%",
            "/%4",
            "/%zz",
            "/%+4",
            "/adm%69n",
            "/%ff",
            "/%c3%28",
            "/a%7Eb",
            "a",
        ] {
            assert!(!path_is_plain(path), "{path}");
        }
        for path in ["/", "/ws/chat/", "/a.b/..c", "/a%20b", "/caf%C3%A9", "/a%3Ab", "/a;b=1", "/a%25b"] {
            assert!(path_is_plain(path), "{path}");
        }
    }

    #[test]
    fn hosts_follow_rfc_3986() {
        for (host, name) in
            [("a.b", "a.b"), ("a:80", "a"), ("[::1]:8080", "[::1]"), ("[::1]", "[::1]"), ("a_b", "a_b")]
        {
            assert_eq!(host_name(host), Some(name), "{host}");
        }
        for host in [
            "", ":80", "a b", "a/b", "a@b", "a:x", "a:99999", "[::1", "[x]", "[::1]x", "a:1:2", "a\"b", "a<b",
        ] {
            assert_eq!(host_name(host), None, "{host}");
        }
    }

    #[test]
    fn the_request_line_and_host_are_checked() {
        let get = |uri: &str, host: &[&str]| {
            check(
                &head(|b| host.iter().fold(b.uri(uri), |b, host| b.header("host", *host))),
                &["chat.example.com".to_owned()],
            )
        };
        assert_eq!(get("/", &["Chat.Example.com:8080"]), Ok(()));
        assert_eq!(get("/", &["evil.example.com"]), Err(Reason::HostDenied));
        assert_eq!(get("/", &["chat.example.com.evil"]), Err(Reason::HostDenied));
        assert_eq!(get("/", &[]), Err(Reason::RequestMalformed));
        assert_eq!(get("/", &["chat.example.com", "chat.example.com"]), Err(Reason::RequestMalformed));
        assert_eq!(get("http://chat.example.com/", &["chat.example.com"]), Err(Reason::RequestMalformed));
        assert_eq!(get("*", &["chat.example.com"]), Err(Reason::RequestMalformed));
    }

    #[test]
    fn an_upgrade_is_recognised_and_checked() {
        assert_eq!(kind(&upgrade(&[])), Ok(Kind::Upgrade));
        assert_eq!(kind(&upgrade(&[("content-length", "0")])), Ok(Kind::Upgrade));
        assert_eq!(kind(&head(|b| b.uri("/"))), Ok(Kind::Plain));
        assert_eq!(kind(&replaced("upgrade", Some("h2c"))), Ok(Kind::Plain));
        assert_eq!(kind(&replaced("connection", Some("keep-alive"))), Ok(Kind::Plain));
        for (extra, reason) in [
            (("upgrade", "h2c"), Reason::UpgradeMalformed),
            (("content-length", "5"), Reason::UpgradeMalformed),
            (("transfer-encoding", "chunked"), Reason::UpgradeMalformed),
            (("sec-websocket-version", "8"), Reason::UpgradeVersion),
            (("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="), Reason::UpgradeMalformed),
            (("sec-websocket-protocol", "a\"b"), Reason::UpgradeMalformed),
        ] {
            assert_eq!(kind(&upgrade(&[extra])), Err(reason), "{extra:?}");
        }
        for (name, value, reason) in [
            ("sec-websocket-version", None, Reason::UpgradeVersion),
            ("sec-websocket-version", Some("12"), Reason::UpgradeVersion),
            ("sec-websocket-key", None, Reason::UpgradeMalformed),
            ("sec-websocket-key", Some("c2hvcnQ="), Reason::UpgradeMalformed),
            ("sec-websocket-key", Some("dGhlIHNhbXBsZSBub25jZQ"), Reason::UpgradeMalformed),
            ("sec-websocket-key", Some("!!!!"), Reason::UpgradeMalformed),
        ] {
            assert_eq!(kind(&replaced(name, value)), Err(reason), "{name} {value:?}");
        }
        let mut post = upgrade(&[]);
        post.method = Method::POST;
        assert_eq!(kind(&post), Ok(Kind::Plain));
        let mut old = upgrade(&[]);
        old.version = Version::HTTP_10;
        assert_eq!(kind(&old), Ok(Kind::Plain));
    }

    #[test]
    fn request_ids_are_kept_only_if_plain() {
        assert!(request_id_is_plain(b"abc-1.2_3"));
        for id in [&b""[..], b"a b", b"a\"", &[b'a'; 65], b"\xff"] {
            assert!(!request_id_is_plain(id));
        }
    }
}
