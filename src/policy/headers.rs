//! The headers that a backend gets: what a client may not say is removed in any spelling, in every
//! mode; what the gate knows is added afterwards, so that nothing of the client can remove it.

use std::collections::HashSet;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, request::Parts};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::Value;

use super::bearer::Rewrite;
use super::claims::Facts;
use super::frame::Compression;
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
                    section.problem_in(key, text, message)
                } else {
                    section.problem(key, message)
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
    pub fn render(&self, facts: &Facts) -> (Vec<(HeaderName, HeaderValue)>, Vec<HeaderName>) {
        let (mut told, mut left_out) = (Vec::with_capacity(self.headers.len()), Vec::new());
        for (name, path) in &self.headers {
            let Some(claim) = facts.claim(path).filter(|claim| !claim.is_null()) else { continue };
            let value = header_text(claim).filter(|text| text.len() <= MAX_CLAIM);
            match value.and_then(|text| HeaderValue::try_from(text).ok()) {
                Some(value) => told.push((name.clone(), value)),
                None => left_out.push(name.clone()),
            }
        }
        if let Some(name) = &self.payload {
            let json = serde_json::to_vec(&facts.claims).unwrap_or_default();
            let encoded = URL_SAFE_NO_PAD.encode(json);
            match HeaderValue::try_from(encoded).ok().filter(|value| value.len() <= MAX_PAYLOAD) {
                Some(value) => told.push((name.clone(), value)),
                None => left_out.push(name.clone()),
            }
        }
        (told, left_out)
    }
}

/// Everything but visible ASCII, and `%` so that the encoding is one-to-one.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => {
            let plain = text.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'%')
                && text.trim_matches(' ') == text;
            Some(if plain { text.clone() } else { utf8_percent_encode(text, ENCODED).to_string() })
        }
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A claim as header text; `None` if it has no unambiguous one.
fn header_text(claim: &Value) -> Option<String> {
    let Value::Array(items) = claim else { return text(claim) };
    let texts: Option<Vec<_>> =
        items.iter().map(|item| text(item).filter(|text| !text.contains(','))).collect();
    texts.map(|texts| texts.join(","))
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
    pub identity: &'a [(HeaderName, HeaderValue)],
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
    out(&header::HOST, told.upstream_host);
    for (name, value) in &head.headers {
        let text = name.as_str();
        let connection_only =
            is_hop_by_hop(text) || named.iter().any(|token| token.eq_ignore_ascii_case(text));
        // Daphne before 4.2.2 splits a value at 0x85 into a new header (CVE-2026-44546).
        let split = told.profile == Profile::Daphne && value.as_bytes().contains(&0x85);
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
        if let Some(Some(value)) = value {
            out(&name, value.as_bytes());
        }
    }
    if let Some(extensions) = extensions.filter(|extensions| !extensions.is_empty()) {
        out(&header::SEC_WEBSOCKET_EXTENSIONS, extensions.as_bytes());
    }
    let address = told.address.to_string();
    for (name, value) in [
        ("x-forwarded-for", address.as_str()),
        ("x-real-ip", &address),
        ("x-forwarded-proto", told.proto),
        ("x-forwarded-host", told.host),
        ("x-forwarded-port", &told.port.to_string()),
        ("x-request-id", told.request_id),
    ] {
        out(&HeaderName::from_static(name), value.as_bytes());
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
    let offers = list(headers, &header::SEC_WEBSOCKET_EXTENSIONS).filter(|offer| !is_deflate(offer));
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
