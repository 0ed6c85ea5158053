//! The headers that a backend gets: what a client may not say is removed in any spelling, in every
//! mode; what the gate knows is added afterwards, so that nothing of the client can remove it.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{self, HeaderName};
use http::{HeaderMap, request::Parts};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::bearer::Rewrite;
use super::claims::Facts;
use super::frame::Compression;
use super::json::Item;
use super::profile::Profile;
use super::request::list;
use crate::base::section::Section;

/// Longest value that a claim may become, in bytes.
const MAX_CLAIM: usize = 4096;
/// Longest value of the header that holds all claims.
const MAX_PAYLOAD: usize = 24 * 1024;

const DEFAULT_HEADERS: [(&str, &str); 4] = [
    ("X-Auth-Email", "email"),
    ("X-Auth-Roles", "realm_access.roles"),
    ("X-Auth-Subject", "sub"),
    ("X-Auth-Username", "preferred_username"),
];

/// `[identity]`
#[derive(Clone, Debug)]
pub struct IdentityPolicy {
    headers: Vec<(HeaderName, String)>,
    payload: Option<HeaderName>,
    written: Vec<(String, String)>,
    payload_written: Option<String>,
}

impl Default for IdentityPolicy {
    fn default() -> Self {
        let written: Vec<_> = DEFAULT_HEADERS.map(|(name, claim)| (name.to_owned(), claim.to_owned())).into();
        let headers =
            written.iter().filter_map(|(name, claim)| Some((name.parse().ok()?, claim.clone()))).collect();
        Self { headers, payload: None, written, payload_written: None }
    }
}

/// Headers that an identity may not be called: they are the gate's or the connection's own.
fn is_taken(name: &str) -> bool {
    is_hop_by_hop(name)
        || name.starts_with("sec-websocket-")
        || name.starts_with("x-forwarded-")
        || matches!(
            name,
            "host"
                | "content-length"
                | "authorization"
                | "cookie"
                | "origin"
                | "expect"
                | "x-real-ip"
                | "x-request-id"
                | "x-csp-nonce"
        )
}

impl IdentityPolicy {
    /// Reads the section; the map of headers is replaced whole.
    pub fn read(section: &Section<'_>, inherited: &Self) -> Self {
        let payload_written =
            section.optional::<String>("payload").or_else(|| inherited.payload_written.clone());
        let written = section.map_or("headers", &inherited.written);
        let mut seen: HashSet<String> = HashSet::new();
        let mut name = |key: &str, text: &str| {
            let problem = |what: &str| {
                let message = format!("{what}; accepted: a header name such as \"X-Auth-Subject\"");
                if key == "headers" {
                    section.problem_in(key, text, message);
                } else {
                    section.problem(key, message);
                }
                None
            };
            match text.parse::<HeaderName>() {
                _ if text.contains('_') => problem("has a \"_\", which backends fold to \"-\" or drop"),
                Err(_) => problem("is no header name"),
                Ok(parsed) if is_taken(parsed.as_str()) => problem("has a meaning of its own in HTTP"),
                Ok(parsed) if !seen.insert(parsed.as_str().to_owned()) => {
                    problem("occurs twice (case does not count)")
                }
                Ok(parsed) => Some(parsed),
            }
        };
        let payload = payload_written.as_deref().and_then(|text| name("payload", text));
        let headers = written
            .iter()
            .filter_map(|(text, claim)| Some((name("headers", text)?, claim.clone())))
            .collect();
        Self { headers, payload, written, payload_written }
    }

    /// Names that no client may send.
    pub fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.headers.iter().map(|(name, _)| name).chain(&self.payload)
    }

    /// The headers that tell the backend who it is, and the names of those that had to be left out.
    pub fn render<'f>(&'f self, facts: &'f Facts) -> (Identity<'f>, Vec<&'f HeaderName>) {
        let (mut told, mut left_out) = (Vec::with_capacity(self.headers.len()), Vec::new());
        for (name, path) in &self.headers {
            let Some(claim) = facts.claim(path).filter(|claim| !claim.is_null()) else { continue };
            match header_text(claim).filter(|text| text.len() <= MAX_CLAIM) {
                Some(value) => told.push((name, value)),
                None => left_out.push(name),
            }
        }
        if let Some(name) = &self.payload {
            let encoded = URL_SAFE_NO_PAD.encode(facts.claims.root().to_string());
            if encoded.len() <= MAX_PAYLOAD {
                told.push((name, encoded.into()));
            } else {
                left_out.push(name);
            }
        }
        (told, left_out)
    }
}

/// Headers and their values: printable ASCII.
pub type Identity<'f> = Vec<(&'f HeaderName, Cow<'f, str>)>;

/// Everything but visible ASCII, and `%` so that the encoding is one-to-one.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

fn text(value: Item<'_>) -> Option<Cow<'_, str>> {
    let text = value.scalar()?;
    let plain =
        text.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'%') && text.trim_matches(' ') == text;
    Some(if plain { text.into() } else { utf8_percent_encode(text, ENCODED).to_string().into() })
}

/// A claim as header text; `None` if it has no unambiguous one.
fn header_text(claim: Item<'_>) -> Option<Cow<'_, str>> {
    let Some(items) = claim.items() else { return text(claim) };
    let texts: Option<Vec<_>> = items.map(|item| text(item).filter(|text| !text.contains(','))).collect();
    texts.map(|texts| texts.join(",").into())
}

/// Names that belong to the gate, lower-cased.
#[derive(Clone, Debug, Default)]
pub struct Owned(HashSet<String>);

impl Owned {
    /// Those of every route: a header that means identity on one route means it on all.
    pub fn of<'p>(policies: impl Iterator<Item = &'p IdentityPolicy>) -> Self {
        Self(policies.flat_map(IdentityPolicy::names).map(|name| name.as_str().to_owned()).collect())
    }

    fn drops(&self, name: &str) -> bool {
        // A name with `_` is the same header as one with `-` to WSGI, and CGI before it (CVE-2025-64484).
        name.contains('_')
            || self.0.contains(name)
            || name.starts_with("x-forwarded-")
            || matches!(
                name,
                "forwarded"
                    | "x-real-ip"
                    | "daphne-root-path"
                    | "proxy"
                    | "x-csp-nonce"
                    | "x-request-id"
                    | "host"
                    | "expect"
            )
    }
}

fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// What every backend is told of the client and its request, in the order in which `outgoing` says it.
static OWN: [HeaderName; 6] = [
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-request-id"),
];
static CSP_NONCE: HeaderName = HeaderName::from_static("x-csp-nonce");

/// What the gate knows about a request and tells the backend.
#[derive(Debug)]
pub struct Told<'a> {
    pub address: IpAddr,
    /// `http` or `https`, host and port as browsers see them.
    pub proto: &'a str,
    pub host: &'a str,
    pub port: u16,
    /// The `Host` that the backend gets.
    pub upstream_host: &'a [u8],
    pub request_id: &'a str,
    /// What inline scripts of the answer have to carry to run.
    pub nonce: Option<&'a str>,
    pub identity: &'a [(&'a HeaderName, Cow<'a, str>)],
    pub profile: Profile,
    pub compression: Compression,
}

/// Calls `out` with each header for the backend, but for those that concern the connection itself.
pub fn outgoing(
    head: &Parts,
    owned: &Owned,
    rewrite: &Rewrite,
    told: &Told<'_>,
    mut out: impl FnMut(&HeaderName, &[u8]),
) {
    let named: Vec<&str> = list(&head.headers, &header::CONNECTION).collect();
    let extensions = allowed_extensions(&head.headers, told.compression);
    // Daphne before 4.2.2 splits a value at 0x85 into a new header (CVE-2026-44546).
    let splits = |value: &[u8]| told.profile == Profile::Daphne && value.contains(&0x85);
    out(&header::HOST, told.upstream_host);
    for (name, value) in &head.headers {
        let text = name.as_str();
        let connection_only =
            is_hop_by_hop(text) || named.iter().any(|token| token.eq_ignore_ascii_case(text));
        let split = splits(value.as_bytes());
        let rewritten = match *name {
            header::AUTHORIZATION => rewrite.authorization.is_some(),
            header::COOKIE => rewrite.cookie.is_some(),
            header::SEC_WEBSOCKET_PROTOCOL => rewrite.subprotocol.is_some(),
            header::SEC_WEBSOCKET_EXTENSIONS => extensions.is_some(),
            _ => false,
        };
        if !(connection_only || split || rewritten || owned.drops(text)) {
            out(name, value.as_bytes());
        }
    }
    for (name, value) in [
        (header::AUTHORIZATION, &rewrite.authorization),
        (header::COOKIE, &rewrite.cookie),
        (header::SEC_WEBSOCKET_PROTOCOL, &rewrite.subprotocol),
    ] {
        if let Some(Some(value)) =
            value.as_ref().map(|value| value.as_ref().filter(|v| !splits(v.as_bytes())))
        {
            out(&name, value.as_bytes());
        }
    }
    if let Some(extensions) = extensions.filter(|extensions| !extensions.is_empty()) {
        out(&header::SEC_WEBSOCKET_EXTENSIONS, extensions.as_bytes());
    }
    let (address, mut port) = (told.address.to_string(), itoa::Buffer::new());
    let values = [&address, &address, told.proto, told.host, port.format(told.port), told.request_id];
    for (name, value) in OWN.iter().zip(values) {
        out(name, value.as_bytes());
    }
    if let Some(nonce) = told.nonce {
        out(&CSP_NONCE, nonce.as_bytes());
    }
    for (name, value) in told.identity {
        out(name, value.as_bytes());
    }
}

/// The extensions that the backend may be offered (RFC 6455 §9.1, RFC 7692); `None` = as they are.
fn allowed_extensions(headers: &HeaderMap, compression: Compression) -> Option<String> {
    if compression == Compression::Pass || !headers.contains_key(header::SEC_WEBSOCKET_EXTENSIONS) {
        return None;
    }
    let is_deflate = |offer: &&str| {
        offer.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("permessage-deflate")
    };
    // A line that is no text comes as NUL.
    let offers = list(headers, &header::SEC_WEBSOCKET_EXTENSIONS)
        .filter(|offer| !is_deflate(offer) && !offer.contains('\0'));
    Some(offers.collect::<Vec<_>>().join(", "))
}

/// Removes what concerned only the connection to the backend from its answer.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        list(headers, &header::CONNECTION).filter_map(|token| token.parse().ok()).collect();
    for name in named {
        headers.remove(name);
    }
    let own: Vec<HeaderName> = headers.keys().filter(|name| is_hop_by_hop(name.as_str())).cloned().collect();
    for name in own {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::section::Document;
    use crate::policy::carrier::{Carrier, Delivery, TokenPolicy};
    use http::HeaderValue;
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    type Lines = Vec<(String, Vec<u8>)>;

    fn head(headers: &[(&str, &[u8])]) -> Parts {
        let mut head = http::Request::new(()).into_parts().0;
        for (name, value) in headers {
            let name = HeaderName::try_from(*name).unwrap();
            head.headers.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        head
    }

    fn told(profile: Profile, compression: Compression) -> Told<'static> {
        Told {
            address: IpAddr::from([203, 0, 113, 7]),
            proto: "https",
            host: "chat.example.com",
            port: 443,
            upstream_host: b"chat.example.com",
            request_id: "r-1",
            nonce: None,
            identity: &[],
            profile,
            compression,
        }
    }

    fn owned() -> Owned {
        Owned::of([IdentityPolicy::default()].iter())
    }

    /// All headers that go out.
    fn all(headers: &[(&str, &[u8])], rewrite: &Rewrite, told: &Told<'_>) -> Lines {
        let mut lines = Vec::new();
        outgoing(&head(headers), &owned(), rewrite, told, |name, value| {
            lines.push((name.as_str().to_owned(), value.to_vec()));
        });
        lines
    }

    fn values<'l>(lines: &'l Lines, name: &str) -> Vec<&'l [u8]> {
        lines.iter().filter(|(n, _)| n == name).map(|(_, value)| &value[..]).collect()
    }

    /// The names of the client's headers that reach a plain backend.
    fn passed(headers: &[(&str, &[u8])]) -> Vec<String> {
        let lines = all(headers, &Rewrite::default(), &told(Profile::Generic, Compression::Pass));
        let names: HashSet<String> = headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        lines.into_iter().map(|(name, _)| name).filter(|name| names.contains(name)).collect()
    }

    fn facts(claims: &Value) -> Facts {
        let mut claims = claims.as_object().unwrap().clone();
        claims.insert("iss".into(), "https://sso".into());
        Facts::said(&Value::Object(claims))
    }

    /// The policy that a file gives, and its problems.
    fn read(text: &str) -> (IdentityPolicy, Vec<String>) {
        let document = Document::parse(text, std::iter::empty());
        let policy = {
            let root = document.root().unwrap();
            IdentityPolicy::read(&root.section("identity"), &IdentityPolicy::default())
        };
        (policy, document.finish().0.iter().map(ToString::to_string).collect())
    }

    /// The header made of one claim: its value, `None` = not there; and whether it had to be left out.
    fn rendered(claim: &Value) -> (Option<String>, bool) {
        let (policy, _) = read("[identity]\nheaders = { X-A = \"a\" }");
        let facts = facts(&json!({ "a": claim }));
        let (told, left_out) = policy.render(&facts);
        (told.first().map(|(_, value)| value.clone().into_owned()), !left_out.is_empty())
    }

    #[test]
    fn what_a_client_may_not_say_is_removed_in_any_spelling() {
        for name in [
            "X-Auth-Subject",
            "x-auth-subject",
            "X-AUTH-USERNAME",
            "X-Auth-Email",
            "X-Auth-Roles",
            "X_Auth_Subject",
            "X-Auth_Subject",
            "x_auth-roles",
            "Forwarded",
            "X-Forwarded-Prefix",
            "X-Forwarded-Uri",
            "X-Forwarded-User",
            "X-Forwarded-Anything",
            "X_Forwarded_For",
            "Daphne-Root-Path",
            "DAPHNE_ROOT_PATH",
            "Proxy",
            "X-CSP-Nonce",
            "X_Real_IP",
            "any_name",
            "_",
            "Expect",
        ] {
            assert_eq!(passed(&[(name, b"spoofed"), ("accept", b"*/*")]), ["accept"], "{name}");
            let lines = all(
                &[(name, b"spoofed"), (name, b"spoofed")],
                &Rewrite::default(),
                &told(Profile::Daphne, Compression::Pass),
            );
            assert!(lines.iter().all(|(_, value)| value != b"spoofed"), "{name}");
        }
    }

    #[test]
    fn other_headers_pass_with_every_byte_in_their_order() {
        let sent: [(&str, &[u8]); 9] = [
            ("accept", b"text/html;q=0.9 , */*"),
            ("cookie", b"a=1;b=2"),
            ("cookie", b"c=\xff"),
            ("origin", b"https://app.example.com"),
            ("authorization", b"Basic YTpi"),
            ("x-custom", b"a\tb"),
            ("x-authorized", b"yes"),
            ("proxy-agent", b"x"),
            ("traceparent", b"00-1-2-03"),
        ];
        let lines = all(&sent, &Rewrite::default(), &told(Profile::Generic, Compression::Pass));
        for (name, _) in sent {
            let expected: Vec<&[u8]> =
                sent.iter().filter(|(other, _)| *other == name).map(|(_, value)| *value).collect();
            assert_eq!(values(&lines, name), expected, "{name}");
        }
    }

    #[test]
    fn the_gate_says_where_the_request_came_from_once() {
        let spoofed: Vec<(&str, &[u8])> = [
            "host",
            "x-forwarded-for",
            "x-real-ip",
            "x-forwarded-proto",
            "x-forwarded-host",
            "x-forwarded-port",
            "x-request-id",
        ]
        .map(|name| (name, &b"lie"[..]))
        .into();
        let lines = all(&spoofed, &Rewrite::default(), &told(Profile::Generic, Compression::Pass));
        for (name, value) in [
            ("host", "chat.example.com"),
            ("x-forwarded-for", "203.0.113.7"),
            ("x-real-ip", "203.0.113.7"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "chat.example.com"),
            ("x-forwarded-port", "443"),
            ("x-request-id", "r-1"),
        ] {
            assert_eq!(values(&lines, name), [value.as_bytes()], "{name}");
        }
        assert_eq!(lines.len(), 7);
        assert_eq!(lines[0].0, "host");
    }

    #[test]
    fn headers_of_the_connection_stay_here() {
        for name in [
            "connection",
            "keep-alive",
            "proxy-connection",
            "proxy-authenticate",
            "proxy-authorization",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
        ] {
            assert_eq!(passed(&[(name, b"x"), ("accept", b"*/*")]), ["accept"], "{name}");
        }
        let named: [(&str, &[u8]); 6] = [
            ("connection", b"close, X-Hop"),
            ("Connection", b"http2-settings , x-other"),
            ("X-HOP", b"1"),
            ("http2-settings", b"2"),
            ("x-other", b"3"),
            ("x-mine", b"4"),
        ];
        assert_eq!(passed(&named), ["x-mine"]);
    }

    #[test]
    fn identity_comes_last_and_no_client_can_take_it_away() {
        let name = HeaderName::from_static("x-auth-subject");
        let identity = [(&name, "alice".into())];
        let told = Told { identity: &identity, ..told(Profile::Generic, Compression::Pass) };
        let lines = all(
            &[
                ("connection", b"x-auth-subject, x-forwarded-for, host, x-request-id"),
                ("x-auth-subject", b"mallory"),
                ("x_auth_subject", b"mallory"),
            ],
            &Rewrite::default(),
            &told,
        );
        assert_eq!(lines.last().unwrap(), &("x-auth-subject".to_owned(), b"alice".to_vec()));
        assert_eq!(values(&lines, "x-auth-subject"), [b"alice"]);
        for name in ["x-forwarded-for", "host", "x-request-id"] {
            assert_eq!(values(&lines, name).len(), 1, "{name}");
        }
        assert!(lines.iter().all(|(_, value)| value != b"mallory"));
    }

    #[test]
    fn a_missing_claim_still_removes_the_clients_header() {
        let (policy, facts) = (IdentityPolicy::default(), facts(&json!({ "sub": "alice" })));
        let (identity, left_out) = policy.render(&facts);
        assert!(left_out.is_empty());
        let told = Told { identity: &identity, ..told(Profile::Generic, Compression::Pass) };
        let lines =
            all(&[("X-Auth-Email", b"a@b"), ("X-Auth-Subject", b"mallory")], &Rewrite::default(), &told);
        assert!(values(&lines, "x-auth-email").is_empty());
        assert_eq!(values(&lines, "x-auth-subject"), [b"alice"]);
    }

    #[test]
    fn names_of_every_route_are_removed_on_all() {
        let one = read("[identity]\nheaders = { X-One = \"sub\" }").0;
        let two = read("[identity]\npayload = \"X-Claims\"\nheaders = { X-Two = \"sub\" }").0;
        let owned = Owned::of([&one, &two].into_iter());
        for name in ["x-one", "x-two", "x-claims", "x-forwarded-one", "x_one"] {
            assert!(owned.drops(name), "{name}");
        }
        assert!(!owned.drops("x-auth-subject"));
    }

    #[test]
    fn a_value_with_0x85_is_dropped_for_daphne_only() {
        let sent: [(&str, &[u8]); 3] =
            [("x-a", b"x\x85X-Auth-Subject: mallory"), ("cookie", b"a=\x85"), ("x-b", b"\x84\x86")];
        for (profile, passed) in [(Profile::Generic, [1, 1, 1]), (Profile::Daphne, [0, 0, 1])] {
            let lines = all(&sent, &Rewrite::default(), &told(profile, Compression::Pass));
            assert_eq!(
                ["x-a", "cookie", "x-b"].map(|name| values(&lines, name).len()),
                passed,
                "{profile:?}"
            );
        }
    }

    #[test]
    fn a_rewritten_cookie_with_0x85_is_dropped_for_daphne_too() {
        let sent: [(&str, &[u8]); 1] = [("cookie", b"__Host-sid=t; a=x\x85X-Auth-Subject: mallory")];
        let policy = TokenPolicy { from: vec![Carrier::Cookie("__Host-sid".into())] };
        let rewrite = crate::policy::bearer::rewrite(&head(&sent), &policy, &Delivery::Strip, Some("t"));
        let lines = all(&sent, &rewrite, &told(Profile::Daphne, Compression::Pass));
        assert!(lines.iter().all(|(_, value)| !value.contains(&0x85)));
    }

    #[test]
    fn rewritten_carriers_replace_all_lines_of_the_client() {
        let value = |text: &'static str| Some(Some(HeaderValue::from_static(text)));
        let sent: [(&str, &[u8]); 5] = [
            ("authorization", b"Bearer old"),
            ("cookie", b"sid=old"),
            ("cookie", b"a=1"),
            ("sec-websocket-protocol", b"Bearer"),
            ("sec-websocket-protocol", b"old"),
        ];
        let told = told(Profile::Generic, Compression::Pass);
        let moved = Rewrite {
            query: None,
            authorization: value("Bearer new"),
            cookie: value("a=1"),
            subprotocol: value("jwt, new"),
        };
        let lines = all(&sent, &moved, &told);
        assert_eq!(values(&lines, "authorization"), [b"Bearer new"]);
        assert_eq!(values(&lines, "cookie"), [b"a=1"]);
        assert_eq!(values(&lines, "sec-websocket-protocol"), [b"jwt, new"]);
        let removed =
            Rewrite { query: None, authorization: Some(None), cookie: Some(None), subprotocol: Some(None) };
        let lines = all(&sent, &removed, &told);
        for name in ["authorization", "cookie", "sec-websocket-protocol"] {
            assert_eq!(values(&lines, name).len(), 0, "{name}");
        }
    }

    #[test]
    fn an_offer_of_deflate_is_stripped_and_others_stay() {
        let extensions = |sent: &[&str], compression| {
            let sent: Vec<(&str, &[u8])> =
                sent.iter().map(|value| ("sec-websocket-extensions", value.as_bytes())).collect();
            let lines = all(&sent, &Rewrite::default(), &told(Profile::Generic, compression));
            let values = values(&lines, "sec-websocket-extensions");
            values.iter().map(|value| String::from_utf8(value.to_vec()).unwrap()).collect::<Vec<_>>()
        };
        for (sent, left) in [
            (&["permessage-deflate"][..], &[][..]),
            (&["permessage-deflate; client_max_window_bits"], &[]),
            (&["Permessage-Deflate ;x, permessage-deflate"], &[]),
            (&["a;b=1, permessage-deflate; c, d"], &["a;b=1, d"]),
            (&["permessage-deflate", "d"], &["d"]),
            (&["permessage-deflate-x"], &["permessage-deflate-x"]),
            (&[], &[]),
        ] {
            assert_eq!(extensions(sent, Compression::Strip), left, "{sent:?}");
            assert_eq!(extensions(sent, Compression::Pass), sent);
        }
    }

    #[test]
    fn extensions_that_are_no_text_put_no_control_byte_on_the_wire() {
        let sent: [(&str, &[u8]); 1] = [("sec-websocket-extensions", b"a\xff, permessage-deflate")];
        let lines = all(&sent, &Rewrite::default(), &told(Profile::Generic, Compression::Strip));
        let control = |(_, value): &(String, Vec<u8>)| value.iter().any(u8::is_ascii_control);
        assert!(!lines.iter().any(control), "{lines:?}");
    }

    #[test]
    fn plain_text_is_told_as_it_is() {
        for plain in ["alice", "a b", "a, b;c=\"d\"", "{}|~!", "", "a  b", "a+b"] {
            assert_eq!(rendered(&json!(plain)), (Some(plain.to_owned()), false), "{plain}");
        }
    }

    #[test]
    fn other_text_is_percent_encoded() {
        for (text, header) in [
            ("100%", "100%25"),
            ("a%20b", "a%2520b"),
            (" a", "%20a"),
            ("a ", "a%20"),
            (" ", "%20"),
            ("Jörg A", "J%C3%B6rg%20A"),
            ("Å", "%C3%85"),
            ("\u{85}", "%C2%85"),
            ("a\tb", "a%09b"),
            ("a\r\nX-Auth-Roles: admin", "a%0D%0AX-Auth-Roles:%20admin"),
            ("\0", "%00"),
            ("\u{7f}", "%7F"),
        ] {
            assert_eq!(rendered(&json!(text)), (Some(header.to_owned()), false), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn text_becomes_visible_ascii_and_comes_back_as_it_was(original in "\\PC{0,8}|[ %a-c]{0,8}|.{0,8}") {
            let facts = facts(&json!({"name": original}));
            let header = text(facts.claim("name").unwrap()).unwrap();
            prop_assert!(header.bytes().all(|b| (0x20..0x7f).contains(&b)));
            prop_assert!(header.trim() == header);
            prop_assert_eq!(percent_decode_str(&header).decode_utf8().unwrap(), original);
        }
    }

    #[test]
    fn numbers_and_booleans_are_text() {
        for (claim, header) in
            [(json!(7), "7"), (json!(-1.5), "-1.5"), (json!(true), "true"), (json!(false), "false")]
        {
            assert_eq!(rendered(&claim), (Some(header.to_owned()), false), "{claim}");
        }
    }

    #[test]
    fn arrays_are_joined_with_commas_unless_an_entry_has_one() {
        for (claim, header) in [
            (json!(["user", "admin"]), "user,admin"),
            (json!(["one"]), "one"),
            (json!([1, true, "x"]), "1,true,x"),
            (json!(["a b", " c", "é", "5%"]), "a b,%20c,%C3%A9,5%25"),
            (json!([]), ""),
        ] {
            assert_eq!(rendered(&claim), (Some(header.to_owned()), false), "{claim}");
        }
        for claim in
            [json!(["a,b"]), json!(["a", "é,b"]), json!([["a"]]), json!([{"a": 1}]), json!(["a", null])]
        {
            assert_eq!(rendered(&claim), (None, true), "{claim}");
        }
    }

    #[test]
    fn what_has_no_text_is_left_out_and_named_and_null_is_absent() {
        assert_eq!(rendered(&json!({"a": 1})), (None, true));
        assert_eq!(rendered(&json!(null)), (None, false));
        let (policy, _) = read("[identity]\nheaders = { X-A = \"a\", X-B = \"b\", X-C = \"c.d\" }");
        let facts = facts(&json!({"a": {}, "c": {"d": "deep"}}));
        let (told, left_out) = policy.render(&facts);
        assert_eq!(left_out, ["x-a"]);
        assert_eq!(told, [(&HeaderName::from_static("x-c"), "deep".into())]);
    }

    #[test]
    fn a_claim_over_4_kib_is_left_out_and_its_header_counts_encoded() {
        assert_eq!(rendered(&json!("a".repeat(4096))), (Some("a".repeat(4096)), false));
        assert_eq!(rendered(&json!("a".repeat(4097))), (None, true));
        assert_eq!(rendered(&json!("é".repeat(683))), (None, true));
        assert_eq!(rendered(&json!(vec!["abcdefg"; 513])), (None, true));
    }

    #[test]
    fn the_payload_is_all_claims_as_base64url() {
        let (policy, problems) = read("[identity]\npayload = \"X-Auth-Claims\"\nheaders = {}");
        assert!(problems.is_empty(), "{problems:?}");
        let facts = facts(&json!({"sub": "Jörg??>>", "realm_access": {"roles": ["a"]}, "n": null}));
        let (told, left_out) = policy.render(&facts);
        assert!(left_out.is_empty());
        let [(name, value)] = &told[..] else { panic!("{told:?}") };
        assert_eq!(*name, "x-auth-claims");
        let decoded: Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(value.as_bytes()).unwrap()).unwrap();
        assert_eq!(
            decoded,
            json!({"iss": "https://sso", "sub": "Jörg??>>", "realm_access": {"roles": ["a"]}, "n": null})
        );
    }

    #[test]
    fn a_payload_that_is_too_long_is_left_out_and_named() {
        let (policy, _) = read("[identity]\npayload = \"X-Auth-Claims\"");
        let facts = facts(&json!({"sub": "a", "x": "a".repeat(24 * 1024)}));
        let (told, left_out) = policy.render(&facts);
        assert_eq!(told, [(&HeaderName::from_static("x-auth-subject"), "a".into())]);
        assert_eq!(left_out, ["x-auth-claims"]);
    }

    #[test]
    fn the_identity_section_inherits_and_replaces_its_map_whole() {
        let names = |policy: &IdentityPolicy| policy.names().map(ToString::to_string).collect::<Vec<_>>();
        let (policy, problems) = read("");
        assert!(problems.is_empty());
        assert_eq!(names(&policy), ["x-auth-email", "x-auth-roles", "x-auth-subject", "x-auth-username"]);
        let (policy, problems) = read("[identity]\npayload = \"X-Claims\"\nheaders = { X-User = \"sub\" }");
        assert!(problems.is_empty());
        assert_eq!(names(&policy), ["x-user", "x-claims"]);
        assert_eq!(names(&read("[identity]\nheaders = {}").0), [""; 0]);
    }

    #[test]
    fn names_that_cannot_carry_an_identity_are_problems() {
        for (name, what) in [
            ("X_User", "has a \"_\""),
            ("X User", "is no header name"),
            ("", "is no header name"),
            ("X-Ü", "is no header name"),
            ("Host", "has a meaning of its own"),
            ("AUTHORIZATION", "has a meaning of its own"),
            ("cookie", "has a meaning of its own"),
            ("Content-Length", "has a meaning of its own"),
            ("Transfer-Encoding", "has a meaning of its own"),
            ("Connection", "has a meaning of its own"),
            ("Sec-WebSocket-Key", "has a meaning of its own"),
            ("X-Forwarded-User", "has a meaning of its own"),
            ("X-Real-IP", "has a meaning of its own"),
            ("X-Request-ID", "has a meaning of its own"),
            ("X-CSP-Nonce", "has a meaning of its own"),
        ] {
            for (text, path) in [
                (format!("[identity.headers]\n\"{name}\" = \"sub\""), "identity.headers"),
                (format!("[identity]\npayload = \"{name}\""), "identity.payload"),
            ] {
                let (_, problems) = read(&text);
                assert_eq!(problems.len(), 1, "{text}: {problems:?}");
                assert!(problems[0].starts_with(&format!("line 2: {path}")), "{problems:?}");
                assert!(problems[0].contains(what) && problems[0].contains("accepted:"), "{problems:?}");
            }
        }
    }

    #[test]
    fn a_name_that_occurs_twice_is_a_problem_whatever_its_case() {
        for text in [
            "[identity.headers]\nX-User = \"sub\"\nx-user = \"email\"",
            "[identity]\npayload = \"x-user\"\nheaders = { X-User = \"sub\" }",
            "[identity]\npayload = \"x-AUTH-subject\"",
        ] {
            let (_, problems) = read(text);
            assert_eq!(problems.len(), 1, "{text}: {problems:?}");
            assert!(problems[0].contains("occurs twice"), "{problems:?}");
        }
        let (_, problems) = read("[identity]\npayload = 1\nheaders = { X-User = 1 }");
        assert_eq!(problems.len(), 2, "{problems:?}");
    }

    #[test]
    fn answers_lose_what_concerned_the_connection() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "upgrade, X-Hop"),
            ("connection", "keep-alive"),
            ("upgrade", "websocket"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("x-hop", "1"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("content-type", "text/html"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut headers);
        let left: Vec<_> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(left, [("set-cookie", "a=1"), ("set-cookie", "b=2"), ("content-type", "text/html")]);
    }
}
