//! Where a request carries its token, and how it leaves: found in one of the carriers, never in two
//! that disagree; taken out of all of them, or moved into the one that the backend expects.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{AUTHORIZATION, COOKIE, SEC_WEBSOCKET_PROTOCOL};
use http::request::Parts;
use http::{HeaderMap, HeaderValue};
use percent_encoding::percent_decode_str;

use super::carrier::{Carrier, Delivery, TokenPolicy};
use super::request::list;
use crate::base::reject::Reason;

/// The form that Kubernetes' API server takes.
const KUBERNETES: &str = "base64url.bearer.authorization.k8s.io.";

/// A token as the client sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<'h> {
    pub token: Cow<'h, str>,
    pub from_cookie: bool,
}

/// Looks for the token in the carriers of the policy.
pub fn find<'h>(head: &'h Parts, policy: &TokenPolicy) -> Result<Option<Found<'h>>, Reason> {
    // Two Authorization lines: backends differ in which one they read.
    if head.headers.get_all(AUTHORIZATION).iter().nth(1).is_some() {
        return Err(Reason::TokenAmbiguous);
    }
    let (mut explicit, mut cookie) = (None, None);
    for carrier in &policy.from {
        let found = match carrier {
            Carrier::Header => from_header(&head.headers)?,
            Carrier::Subprotocol => from_subprotocol(&head.headers)?,
            Carrier::Query(name) => from_query(head.uri.query().unwrap_or_default(), name)?,
            Carrier::Cookie(name) => {
                let found = from_cookie(&head.headers, name)?;
                cookie = cookie.or(found);
                continue;
            }
        };
        match (&explicit, &found) {
            (Some(one), Some(other)) if one != other => return Err(Reason::TokenAmbiguous),
            (None, Some(_)) => explicit = found,
            (_, _) => {}
        }
    }
    // A cookie comes along by itself; what was sent on purpose beats it.
    let explicit = explicit.map(|token| Found { token, from_cookie: false });
    Ok(explicit.or(cookie.map(|token| Found { token, from_cookie: true })))
}

type Token<'h> = Result<Option<Cow<'h, str>>, Reason>;

/// The credentials of a Bearer scheme, trimmed; `None` for any other scheme.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(6)?;
    let ours =
        scheme.eq_ignore_ascii_case(b"bearer") && rest.first().is_none_or(|b| *b == b' ' || *b == b'\t');
    ours.then(|| rest.trim_ascii())
}

fn from_header(headers: &HeaderMap) -> Token<'_> {
    match headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes())) {
        None => Ok(None),
        Some(token) => std::str::from_utf8(token).map(|t| Some(t.into())).map_err(|_| Reason::TokenMalformed),
    }
}

fn from_subprotocol(headers: &HeaderMap) -> Token<'_> {
    let mut found = None;
    for part in Offer::of(headers, true).parts {
        let token: Cow<'_, str> = match part {
            Part::Bearer { token, .. } => token.into(),
            Part::Kubernetes(encoded) => {
                let decoded =
                    URL_SAFE_NO_PAD.decode(encoded).ok().and_then(|token| String::from_utf8(token).ok());
                decoded.ok_or(Reason::TokenMalformed)?.into()
            }
            Part::Other(_) => continue,
        };
        if found.replace(token).is_some() {
            return Err(Reason::TokenAmbiguous);
        }
    }
    Ok(found)
}

fn decoded_name(parameter: &str) -> (&str, Cow<'_, str>) {
    let name = parameter.split_once('=').map_or(parameter, |(name, _)| name);
    let spaced: Cow<'_, str> = if name.contains('+') { name.replace('+', " ").into() } else { name.into() };
    let decoded = match spaced {
        Cow::Borrowed(name) => percent_decode_str(name).decode_utf8_lossy(),
        Cow::Owned(name) => percent_decode_str(&name).decode_utf8_lossy().into_owned().into(),
    };
    (name, decoded)
}

fn from_query<'h>(query: &'h str, name: &str) -> Token<'h> {
    let mut found = None;
    for parameter in query.split('&') {
        let (written, decoded) = decoded_name(parameter);
        if decoded != name {
            continue;
        }
        // A backend decodes names: a second spelling would survive our stripping.
        if written != name {
            return Err(Reason::RequestMalformed);
        }
        let value = parameter.split_once('=').map_or("", |(_, value)| value);
        if found.replace(value).is_some() {
            return Err(Reason::TokenAmbiguous);
        }
    }
    Ok(found.filter(|value| !value.is_empty()).map(Cow::Borrowed))
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|b| *b == b';'))
        .map(<[u8]>::trim_ascii)
}

fn is_cookie(pair: &[u8], name: &str) -> bool {
    let (written, _) = split_pair(pair);
    written.trim_ascii() == name.as_bytes()
}

fn split_pair(pair: &[u8]) -> (&[u8], &[u8]) {
    match pair.iter().position(|b| *b == b'=') {
        Some(at) => (pair.get(..at).unwrap_or_default(), pair.get(at + 1..).unwrap_or_default()),
        None => (pair, &[]),
    }
}

fn from_cookie<'h>(headers: &'h HeaderMap, name: &str) -> Token<'h> {
    let mut found = None;
    for pair in cookies(headers).filter(|pair| is_cookie(pair, name)) {
        let value = split_pair(pair).1.trim_ascii();
        let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
        if found.replace(value).is_some() {
            return Err(Reason::TokenAmbiguous);
        }
    }
    match found.filter(|value| !value.is_empty()) {
        None => Ok(None),
        Some(value) => std::str::from_utf8(value).map(|v| Some(v.into())).map_err(|_| Reason::TokenMalformed),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part<'h> {
    Bearer { marker: &'h str, token: &'h str },
    Kubernetes(&'h str),
    Other(&'h str),
}

/// What a client offered as subprotocols (RFC 6455 §11.3.4).
#[derive(Debug)]
pub struct Offer<'h> {
    parts: Vec<Part<'h>>,
}

impl<'h> Offer<'h> {
    /// `with_token` = a token may hide in it.
    pub fn of(headers: &'h HeaderMap, with_token: bool) -> Self {
        let mut values = list(headers, &SEC_WEBSOCKET_PROTOCOL);
        let mut parts = Vec::new();
        while let Some(value) = values.next() {
            let part = if !with_token {
                Part::Other(value)
            } else if value.eq_ignore_ascii_case("bearer") {
                values.next().map_or(Part::Other(value), |token| Part::Bearer { marker: value, token })
            } else {
                value.strip_prefix(KUBERNETES).map_or(Part::Other(value), Part::Kubernetes)
            };
            parts.push(part);
        }
        Self { parts }
    }

    fn others(&self) -> impl Iterator<Item = &'h str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Other(value) => Some(*value),
            Part::Bearer { .. } | Part::Kubernetes(_) => None,
        })
    }

    fn marker(&self) -> Option<&'h str> {
        self.parts.iter().find_map(|part| match part {
            Part::Bearer { marker, .. } => Some(*marker),
            Part::Kubernetes(_) | Part::Other(_) => None,
        })
    }

    /// What to answer when the backend selected `selected`: only what the client offered and the token
    /// is no part of. A client whose offer is not answered fails the handshake, so the marker is.
    pub fn answer(&self, selected: Option<&str>) -> Option<&'h str> {
        let offered = selected.and_then(|selected| self.others().find(|value| *value == selected));
        offered.or_else(|| self.marker())
    }

    /// What to answer without a backend: when a socket is accepted only to be closed.
    pub fn answer_alone(&self) -> Option<&'h str> {
        self.marker().or_else(|| self.others().find(|value| !looks_like_token(value)))
    }
}

/// Whether text could be a JWT; such text is never repeated to anybody.
pub fn looks_like_token(text: &str) -> bool {
    text.starts_with(KUBERNETES)
        || (text.len() > 20 && text.bytes().filter(|b| *b == b'.').count() == 2 && text.starts_with("ey"))
}

/// What becomes of the carriers on the way to the backend. `None` = as it was.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// The query without its `?`; `Some("")` = none.
    pub query: Option<String>,
    /// `None` inside = the header is removed.
    pub authorization: Option<Option<HeaderValue>>,
    pub cookie: Option<Option<HeaderValue>>,
    pub subprotocol: Option<Option<HeaderValue>>,
}

/// Takes the token out of every carrier and puts it where the backend expects it.
pub fn rewrite(head: &Parts, policy: &TokenPolicy, delivery: &Delivery, token: Option<&str>) -> Rewrite {
    let mut rewrite = Rewrite::default();
    if *delivery == Delivery::Keep {
        return rewrite;
    }
    let headers = &head.headers;
    let is_bearer = headers.get(AUTHORIZATION).is_some_and(|value| bearer(value.as_bytes()).is_some());
    if *delivery == Delivery::Header {
        let value = token.and_then(|token| HeaderValue::try_from(format!("Bearer {token}")).ok());
        if value.is_some() || headers.contains_key(AUTHORIZATION) {
            rewrite.authorization = Some(value);
        }
    } else if is_bearer && policy.from.contains(&Carrier::Header) {
        rewrite.authorization = Some(None);
    }
    rewrite.query = rewritten_query(head.uri.query().unwrap_or_default(), policy, delivery, token);
    rewrite.cookie = rewritten_cookie(headers, policy);
    rewrite.subprotocol = rewritten_subprotocol(headers, policy, delivery, token);
    rewrite
}

fn rewritten_query(
    query: &str,
    policy: &TokenPolicy,
    delivery: &Delivery,
    token: Option<&str>,
) -> Option<String> {
    let target = match delivery {
        Delivery::Query(name) => Some(name.as_str()),
        Delivery::Strip | Delivery::Keep | Delivery::Header | Delivery::Subprotocol(_) => None,
    };
    let owned = |parameter: &&str| {
        let (_, decoded) = decoded_name(parameter);
        policy.query_names().chain(target).any(|name| decoded == name)
    };
    let append = target.zip(token);
    if append.is_none() && !query.split('&').any(|parameter| owned(&parameter)) {
        return None;
    }
    let mut kept: Vec<Cow<'_, str>> =
        query.split('&').filter(|p| !p.is_empty() && !owned(p)).map(Cow::Borrowed).collect();
    kept.extend(append.map(|(name, token)| Cow::Owned(format!("{name}={token}"))));
    Some(kept.join("&"))
}

fn rewritten_cookie(headers: &HeaderMap, policy: &TokenPolicy) -> Option<Option<HeaderValue>> {
    let owned = |pair: &[u8]| {
        policy.from.iter().any(|carrier| match carrier {
            Carrier::Cookie(name) => is_cookie(pair, name),
            Carrier::Header | Carrier::Subprotocol | Carrier::Query(_) => false,
        })
    };
    if !policy.has_cookie() || !cookies(headers).any(owned) {
        return None;
    }
    let kept: Vec<&[u8]> = cookies(headers).filter(|pair| !pair.is_empty() && !owned(pair)).collect();
    let value = HeaderValue::from_bytes(&kept.join(&b"; "[..])).ok();
    Some(value.filter(|value| !value.is_empty()))
}

fn rewritten_subprotocol(
    headers: &HeaderMap,
    policy: &TokenPolicy,
    delivery: &Delivery,
    token: Option<&str>,
) -> Option<Option<HeaderValue>> {
    let offer = Offer::of(headers, policy.takes_subprotocol());
    let target = match delivery {
        Delivery::Subprotocol(marker) => Some(marker.as_str()),
        Delivery::Strip | Delivery::Keep | Delivery::Header | Delivery::Query(_) => None,
    };
    let mut kept: Vec<&str> = Vec::new();
    let mut others = offer.others();
    while let Some(value) = others.next() {
        if target.is_some_and(|marker| marker.eq_ignore_ascii_case(value)) {
            others.next();
        } else {
            kept.push(value);
        }
    }
    let append = target.zip(token);
    if append.is_none() && kept.len() == offer.parts.len() {
        return None;
    }
    let values: Vec<&str> = append.iter().flat_map(|(marker, token)| [*marker, *token]).chain(kept).collect();
    let value = HeaderValue::try_from(values.join(", ")).ok();
    Some(value.filter(|value| !value.is_empty()))
}

impl TokenPolicy {
    /// What the client offered, read as this policy reads it.
    pub fn offer<'h>(&self, headers: &'h HeaderMap) -> Offer<'h> {
        Offer::of(headers, self.takes_subprotocol())
    }

    /// The request target as it may be logged: values of the token's query names, and all that looks
    /// like a token, are `***`.
    pub fn redacted(&self, uri: &http::Uri) -> String {
        let segments = uri.path().split('/').map(|s| if looks_like_token(s) { "***" } else { s });
        let mut target = segments.collect::<Vec<_>>().join("/");
        let Some(query) = uri.query() else { return target };
        let parameters = query.split('&').map(|parameter| {
            let (written, decoded) = decoded_name(parameter);
            let value = parameter.split_once('=').map_or("", |(_, value)| value);
            let secret =
                self.query_names().any(|name| decoded.eq_ignore_ascii_case(name)) || looks_like_token(value);
            if secret { Cow::Owned(format!("{written}=***")) } else { Cow::Borrowed(parameter) }
        });
        target.push('?');
        target.push_str(&parameters.collect::<Vec<_>>().join("&"));
        target
    }
}
