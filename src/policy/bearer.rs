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
        None | Some(b"") => Ok(None),
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
        let plain = selected.filter(|selected| !looks_like_token(selected));
        let offered = plain.and_then(|selected| self.others().find(|value| *value == selected));
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
    let is_bearer = headers.get_all(AUTHORIZATION).iter().any(|value| bearer(value.as_bytes()).is_some());
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
        query.split('&').filter(|p| !query.is_empty() && !owned(p)).map(Cow::Borrowed).collect();
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
    // Whatever looks like a token is one, also beside the pair that was found.
    let searched = policy.takes_subprotocol() || target.is_some();
    let mut kept: Vec<&str> = Vec::new();
    let mut others = offer.others();
    while let Some(value) = others.next() {
        if target.is_some_and(|marker| marker.eq_ignore_ascii_case(value)) {
            others.next();
        } else if !(searched && looks_like_token(value)) {
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
            if looks_like_token(written) {
                return Cow::Borrowed("***");
            }
            if secret { Cow::Owned(format!("{written}=***")) } else { Cow::Borrowed(parameter) }
        });
        target.push('?');
        target.push_str(&parameters.collect::<Vec<_>>().join("&"));
        target
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::value::{Raw, Value};

    const T: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln";
    const OTHER: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJiIn0.c2ln";
    const ALL: [&str; 4] = ["header", "subprotocol", "query:token", "cookie:__Host-sid"];

    type Headers<'a> = &'a [(&'static str, &'a str)];

    fn read<V: Value>(text: &str) -> V {
        V::read(&Raw::Text(text.to_owned())).unwrap()
    }

    fn policy(from: &[&str]) -> TokenPolicy {
        TokenPolicy { from: from.iter().map(|text| read(text)).collect() }
    }

    fn head(uri: &str, headers: Headers<'_>) -> Parts {
        let mut head = http::Request::builder().uri(uri).body(()).unwrap().into_parts().0;
        for (name, value) in headers {
            head.headers.append(*name, value.parse().unwrap());
        }
        head
    }

    fn kubernetes(token: &str) -> String {
        format!("{KUBERNETES}{}", URL_SAFE_NO_PAD.encode(token))
    }

    /// The token and whether it came from a cookie.
    fn found(from: &[&str], uri: &str, headers: Headers<'_>) -> Result<Option<(String, bool)>, Reason> {
        let head = head(uri, headers);
        find(&head, &policy(from)).map(|found| found.map(|f| (f.token.into_owned(), f.from_cookie)))
    }

    fn explicit(token: &str) -> (String, bool) {
        (token.to_owned(), false)
    }

    /// Query and carriers as the backend gets them.
    fn rewritten(
        from: &[&str],
        uri: &str,
        headers: Headers<'_>,
        delivery: &str,
        token: Option<&str>,
    ) -> Vec<String> {
        let head = head(uri, headers);
        let rewrite = rewrite(&head, &policy(from), &read(delivery), token);
        let query = rewrite.query.unwrap_or_else(|| head.uri.query().unwrap_or_default().to_owned());
        let mut lines = vec![format!("?{query}")];
        for (name, change) in [
            (AUTHORIZATION, rewrite.authorization),
            (COOKIE, rewrite.cookie),
            (SEC_WEBSOCKET_PROTOCOL, rewrite.subprotocol),
        ] {
            let values: Vec<HeaderValue> = match change {
                None => head.headers.get_all(&name).iter().cloned().collect(),
                Some(value) => value.into_iter().collect(),
            };
            lines.extend(values.iter().map(|value| format!("{name}: {}", value.to_str().unwrap())));
        }
        lines
    }

    fn stripped(uri: &str, headers: Headers<'_>) -> Vec<String> {
        rewritten(&ALL, uri, headers, "strip", Some(T))
    }

    fn protocols(value: &str) -> HeaderMap {
        [(SEC_WEBSOCKET_PROTOCOL, value.parse().unwrap())].into_iter().collect()
    }

    fn answer(offered: &str, selected: Option<&str>) -> Option<String> {
        Offer::of(&protocols(offered), true).answer(selected).map(str::to_owned)
    }

    fn answer_alone(offered: &str) -> Option<String> {
        Offer::of(&protocols(offered), true).answer_alone().map(str::to_owned)
    }

    #[test]
    fn a_token_is_found_in_each_carrier() {
        for (uri, headers) in [
            ("/", [("authorization", format!("Bearer {T}"))]),
            ("/", [("authorization", format!("bEARER \t {T} "))]),
            ("/", [("authorization", format!("Bearer\t{T}"))]),
            ("/", [("sec-websocket-protocol", format!("Bearer, {T}"))]),
            ("/", [("sec-websocket-protocol", format!("chat,bearer,{T},v2"))]),
            ("/", [("sec-websocket-protocol", format!("chat, {}", kubernetes(T)))]),
            (&*format!("/?token={T}"), [("accept", "*/*".to_owned())]),
            (&*format!("/?a=1&token={T}&b"), [("accept", "*/*".to_owned())]),
        ] {
            let [(name, value)] = &headers;
            assert_eq!(found(&ALL, uri, &[(name, value)]), Ok(Some(explicit(T))), "{uri} {headers:?}");
        }
        for cookie in [
            format!("__Host-sid={T}"),
            format!("a=1;__Host-sid=\"{T}\"; b=2"),
            format!("x; __Host-sid = {T}"),
        ] {
            let found = found(&ALL, "/", &[("cookie", &cookie)]);
            assert_eq!(found, Ok(Some((T.to_owned(), true))), "{cookie}");
        }
    }

    #[test]
    fn two_subprotocol_lines_are_one_list() {
        let lines = [("sec-websocket-protocol", "chat, Bearer"), ("sec-websocket-protocol", T)];
        assert_eq!(found(&ALL, "/", &lines), Ok(Some(explicit(T))));
    }

    #[test]
    fn nothing_is_found_where_the_policy_does_not_look() {
        let bearer = format!("Bearer {T}");
        let offer = format!("Bearer, {T}");
        let cookie = format!("__Host-sid={T}");
        let headers =
            [("authorization", &*bearer), ("sec-websocket-protocol", &*offer), ("cookie", &*cookie)];
        assert_eq!(found(&["query:jwt"], &format!("/?token={T}"), &headers), Ok(None));
        assert_eq!(found(&ALL, "/", &[]), Ok(None));
        for near in [format!("/?Token={T}"), format!("/?tokens={T}"), format!("/?a=token={T}")] {
            assert_eq!(found(&ALL, &near, &[]), Ok(None), "{near}");
        }
        for near in [format!("__host-sid={T}"), format!("x__Host-sid={T}"), format!("a=__Host-sid={T}")] {
            assert_eq!(found(&ALL, "/", &[("cookie", &near)]), Ok(None), "{near}");
        }
    }

    #[test]
    fn two_values_in_one_carrier_are_ambiguous_even_if_equal() {
        for (uri, name, value) in [
            (format!("/?token={T}&token={OTHER}"), "accept", String::new()),
            (format!("/?token={T}&token={T}"), "accept", String::new()),
            (format!("/?token=&token={T}"), "accept", String::new()),
            (format!("/?token&token={T}"), "accept", String::new()),
            ("/".into(), "sec-websocket-protocol", format!("Bearer, {T}, Bearer, {T}")),
            ("/".into(), "sec-websocket-protocol", format!("Bearer, {T}, {}", kubernetes(T))),
            ("/".into(), "sec-websocket-protocol", format!("{0}, {0}", kubernetes(T))),
            ("/".into(), "cookie", format!("__Host-sid={T}; __Host-sid={T}")),
            ("/".into(), "cookie", format!("__Host-sid=; __Host-sid={T}")),
        ] {
            assert_eq!(found(&ALL, &uri, &[(name, &value)]), Err(Reason::TokenAmbiguous), "{uri} {value}");
        }
    }

    #[test]
    fn a_cookie_sent_in_two_lines_is_ambiguous_also_beside_an_explicit_token() {
        let (bearer, one, two) =
            (format!("Bearer {T}"), format!("__Host-sid={T}"), format!("a=1; __Host-sid={OTHER}"));
        let cookies = [("cookie", &*one), ("cookie", &*two)];
        assert_eq!(found(&ALL, "/", &cookies), Err(Reason::TokenAmbiguous));
        let all = [("authorization", &*bearer), cookies[0], cookies[1]];
        assert_eq!(found(&ALL, "/", &all), Err(Reason::TokenAmbiguous));
    }

    #[test]
    fn two_explicit_carriers_may_agree_but_not_differ() {
        let bearer = format!("Bearer {T}");
        let header = ("authorization", &*bearer);
        assert_eq!(found(&ALL, &format!("/?token={T}"), &[header]), Ok(Some(explicit(T))));
        assert_eq!(found(&ALL, &format!("/?token={OTHER}"), &[header]), Err(Reason::TokenAmbiguous));
        for (token, expected) in [(T, Ok(Some(explicit(T)))), (OTHER, Err(Reason::TokenAmbiguous))] {
            for offer in [format!("Bearer, {token}"), kubernetes(token)] {
                let headers = [header, ("sec-websocket-protocol", &*offer)];
                assert_eq!(found(&ALL, "/", &headers), expected, "{offer}");
                let found = found(&ALL, &format!("/?token={T}"), &headers[1..]);
                assert_eq!(found, expected, "{offer}");
            }
        }
        let two = ["query:a", "query:b"];
        assert_eq!(found(&two, &format!("/?a={T}&b={OTHER}"), &[]), Err(Reason::TokenAmbiguous));
    }

    #[test]
    fn a_second_authorization_line_is_ambiguous_whatever_it_says() {
        let bearer = format!("Bearer {T}");
        for pair in [[&*bearer, &*bearer], ["Basic YTpi", &*bearer], ["Basic YTpi", "Basic YTpi"]] {
            let headers = pair.map(|value| ("authorization", value));
            assert_eq!(found(&ALL, "/", &headers), Err(Reason::TokenAmbiguous), "{pair:?}");
            assert_eq!(found(&["query:token"], "/", &headers), Err(Reason::TokenAmbiguous), "{pair:?}");
        }
    }

    #[test]
    fn other_schemes_are_no_token_and_pass() {
        for value in ["Basic YTpi", "Bearerx eyJ", "Bearer2", "DPoP eyJ", "Token abc", "bear er", ""] {
            assert_eq!(found(&ALL, "/", &[("authorization", value)]), Ok(None), "{value}");
            let lines = stripped("/", &[("authorization", value)]);
            assert_eq!(lines, ["?", &*format!("authorization: {value}")]);
        }
        let basic = [("authorization", "Basic YTpi")];
        assert_eq!(found(&ALL, &format!("/?token={T}"), &basic), Ok(Some(explicit(T))));
    }

    #[test]
    fn an_explicit_token_beats_a_cookie_in_any_order() {
        let cookie = format!("__Host-sid={OTHER}");
        let bearer = format!("Bearer {T}");
        for from in [["header", "cookie:__Host-sid"], ["cookie:__Host-sid", "header"]] {
            let headers = [("authorization", &*bearer), ("cookie", &*cookie)];
            assert_eq!(found(&from, "/", &headers), Ok(Some(explicit(T))));
        }
    }

    #[test]
    fn of_two_cookie_carriers_the_first_that_is_there_counts() {
        let from = ["cookie:__Host-a", "cookie:__Host-b"];
        let both = format!("__Host-b={OTHER}; __Host-a={T}");
        assert_eq!(found(&from, "/", &[("cookie", &both)]), Ok(Some((T.to_owned(), true))));
        let second = format!("__Host-b={OTHER}; __Host-a=");
        assert_eq!(found(&from, "/", &[("cookie", &second)]), Ok(Some((OTHER.to_owned(), true))));
    }

    #[test]
    fn a_query_name_written_otherwise_is_malformed() {
        for written in ["tok%65n", "%74oken", "%74%6F%6B%65%6e", "toke%6e"] {
            for uri in
                [format!("/?{written}={T}"), format!("/?{written}"), format!("/?token={T}&{written}=x")]
            {
                assert_eq!(found(&ALL, &uri, &[]), Err(Reason::RequestMalformed), "{uri}");
            }
        }
        // What decodes to something else is somebody else's parameter.
        for other in ["tok%2565n", "tok%65n%20", "+token", "token%00", "tok%6"] {
            assert_eq!(found(&ALL, &format!("/?{other}={T}"), &[]), Ok(None), "{other}");
        }
    }

    #[test]
    fn an_empty_value_is_no_token() {
        for uri in ["/?token=", "/?token", "/?token=&a=1", "/?", "/?&&"] {
            assert_eq!(found(&ALL, uri, &[]), Ok(None), "{uri}");
        }
        for cookie in ["__Host-sid=", "__Host-sid", "__Host-sid=\"\"", "__Host-sid= ; a=1", ""] {
            assert_eq!(found(&ALL, "/", &[("cookie", cookie)]), Ok(None), "{cookie}");
        }
        let beside = found(&ALL, &format!("/?token={T}"), &[("cookie", "__Host-sid=")]);
        assert_eq!(beside, Ok(Some(explicit(T))));
    }

    #[test]
    fn an_empty_bearer_header_is_no_token() {
        for value in ["Bearer", "Bearer ", "bearer\t "] {
            assert_eq!(found(&ALL, "/", &[("authorization", value)]), Ok(None), "{value:?}");
            let beside = found(&ALL, &format!("/?token={T}"), &[("authorization", value)]);
            assert_eq!(beside, Ok(Some(explicit(T))), "{value:?}");
        }
    }

    #[test]
    fn the_kubernetes_form_is_strict_base64url_of_text() {
        for encoded in ["a", "****", "YQ==", "YR", "_w", "YWJj.YWJj"] {
            let offer = format!("{KUBERNETES}{encoded}");
            let found = found(&ALL, "/", &[("sec-websocket-protocol", &offer)]);
            assert_eq!(found, Err(Reason::TokenMalformed), "{encoded}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_malformed() {
        for (name, value) in
            [("authorization", &b"Bearer \xff\xfe"[..]), ("cookie", b"a=1; __Host-sid=\xff\xfe")]
        {
            let mut head = head("/", &[]);
            head.headers.insert(name, HeaderValue::from_bytes(value).unwrap());
            assert_eq!(find(&head, &policy(&ALL)), Err(Reason::TokenMalformed), "{name}");
        }
    }

    #[test]
    fn bearer_as_the_last_subprotocol_is_a_subprotocol() {
        for offer in ["Bearer", "chat, Bearer", "bearer,"] {
            assert_eq!(found(&ALL, "/", &[("sec-websocket-protocol", offer)]), Ok(None), "{offer}");
            let lines = stripped("/", &[("sec-websocket-protocol", offer)]);
            assert_eq!(lines, ["?", &*format!("sec-websocket-protocol: {offer}")]);
        }
        assert_eq!(answer("chat, Bearer", Some("Bearer")).as_deref(), Some("Bearer"));
        assert_eq!(answer("chat, Bearer", None), None);
        // The marker's partner is a token, whatever it looks like.
        let pair = [("sec-websocket-protocol", "Bearer, bearer")];
        assert_eq!(found(&ALL, "/", &pair), Ok(Some(explicit("bearer"))));
    }

    #[test]
    fn strip_takes_the_token_out_of_every_carrier_also_of_the_beaten_cookie() {
        let (bearer, offer, cookie) = (
            format!("Bearer {T}"),
            format!("chat, Bearer, {T}, v2"),
            format!("a=1; __Host-sid={OTHER}; b=\"x y\""),
        );
        let headers =
            [("authorization", &*bearer), ("sec-websocket-protocol", &*offer), ("cookie", &*cookie)];
        let lines = stripped(&format!("/ws?x=%41&token={T}&y=a+b"), &headers);
        assert_eq!(lines, ["?x=%41&y=a+b", "cookie: a=1; b=\"x y\"", "sec-websocket-protocol: chat, v2"]);
        assert!(lines.iter().all(|line| !line.contains("eyJ")));
    }

    #[test]
    fn strip_leaves_nothing_empty_behind() {
        let (offer, cookie) = (kubernetes(T), format!("__Host-sid={T}"));
        let headers = [("sec-websocket-protocol", &*offer), ("cookie", &*cookie)];
        assert_eq!(stripped(&format!("/?token={T}"), &headers), ["?"]);
        assert_eq!(stripped("/?token", &[("sec-websocket-protocol", &format!("bearer, {T}"))]), ["?"]);
    }

    #[test]
    fn strip_without_a_token_takes_what_is_in_its_place() {
        let headers = [("authorization", "Bearer"), ("cookie", "a=1; __Host-sid=")];
        assert_eq!(rewritten(&ALL, "/?token=&a=1", &headers, "strip", None), ["?a=1", "cookie: a=1"]);
        // In shadow mode a name written otherwise comes this far.
        let uri = format!("/?tok%65n={T}&a=1");
        assert_eq!(rewritten(&ALL, &uri, &[], "strip", None), ["?a=1"]);
    }

    #[test]
    fn strip_leaves_every_byte_where_there_is_no_token() {
        let headers = [
            ("authorization", "Basic YTpi"),
            ("cookie", "a=1;b=2;;  c=3"),
            ("cookie", "d=__Host-sid"),
            ("sec-websocket-protocol", "chat,v2 ,, v3"),
            ("sec-websocket-protocol", "v4"),
        ];
        assert_eq!(
            stripped("/?a&&b=%zz&=&c=token", &headers),
            [
                "?a&&b=%zz&=&c=token",
                "authorization: Basic YTpi",
                "cookie: a=1;b=2;;  c=3",
                "cookie: d=__Host-sid",
                "sec-websocket-protocol: chat,v2 ,, v3",
                "sec-websocket-protocol: v4",
            ]
        );
    }

    #[test]
    fn the_rest_of_the_query_keeps_its_bytes() {
        for (uri, rest) in [
            (format!("/?token={T}&a=%2f&b=+&c;d=1"), "?a=%2f&b=+&c;d=1"),
            (format!("/?a=1&token={T}"), "?a=1"),
            (format!("/?a=1&token={T}&b=2"), "?a=1&b=2"),
        ] {
            assert_eq!(stripped(&uri, &[]), [rest], "{uri}");
        }
    }

    #[test]
    fn empty_parameters_beside_the_token_stay() {
        assert_eq!(stripped(&format!("/?a=1&&b=2&token={T}"), &[]), ["?a=1&&b=2"]);
    }

    #[test]
    fn strip_takes_a_bearer_out_of_a_second_authorization_line() {
        // Refused by `find`; in shadow mode it comes this far.
        let bearer = format!("Bearer {T}");
        let headers = [("authorization", "Basic YTpi"), ("authorization", &*bearer)];
        assert!(!stripped("/", &headers).iter().any(|line| line.contains(T)));
    }

    #[test]
    fn a_token_offered_once_more_beside_the_pair_is_stripped() {
        let offer = format!("Bearer, {T}, {T}");
        assert!(!stripped("/", &[("sec-websocket-protocol", &offer)]).iter().any(|line| line.contains(T)));
    }

    #[test]
    fn strip_touches_only_the_carriers_of_the_policy() {
        let (bearer, offer, cookie) =
            (format!("Bearer {T}"), format!("Bearer,{T}"), format!("__Host-sid={T}"));
        let headers =
            [("authorization", &*bearer), ("sec-websocket-protocol", &*offer), ("cookie", &*cookie)];
        let lines = rewritten(&["query:jwt"], &format!("/?token={T}&jwt={T}"), &headers, "strip", Some(T));
        assert_eq!(
            lines,
            [
                format!("?token={T}"),
                format!("authorization: {bearer}"),
                format!("cookie: {cookie}"),
                format!("sec-websocket-protocol: {offer}"),
            ]
        );
    }

    #[test]
    fn keep_changes_nothing() {
        let (bearer, offer, cookie) =
            (format!("Bearer {T}"), format!("Bearer,{T}"), format!("a=1;__Host-sid={T}"));
        let headers =
            [("authorization", &*bearer), ("sec-websocket-protocol", &*offer), ("cookie", &*cookie)];
        let head = head(&format!("/?token={T}"), &headers);
        assert_eq!(rewrite(&head, &policy(&ALL), &Delivery::Keep, Some(T)), Rewrite::default());
    }

    #[test]
    fn header_moves_the_token_there_and_nowhere_else() {
        let (offer, cookie) = (format!("Bearer, {T}, chat"), format!("__Host-sid={T}; a=1"));
        let expected = format!("authorization: Bearer {T}");
        let to_header = |uri: &str, headers: Headers<'_>| rewritten(&ALL, uri, headers, "header", Some(T));
        assert_eq!(to_header(&format!("/?token={T}"), &[]), ["?", &expected]);
        assert_eq!(
            to_header("/", &[("sec-websocket-protocol", &offer)]),
            ["?", &expected, "sec-websocket-protocol: chat"]
        );
        assert_eq!(to_header("/", &[("cookie", &cookie)]), ["?", &expected, "cookie: a=1"]);
        assert_eq!(to_header("/", &[("authorization", &format!("bearer   {T} "))]), ["?", &expected]);
        // The header is the backend's carrier: another scheme makes way.
        assert_eq!(to_header(&format!("/?token={T}"), &[("authorization", "Basic YTpi")]), ["?", &expected]);
        let anonymous = rewritten(&["query:token"], "/", &[("authorization", "Bearer x")], "header", None);
        assert_eq!(anonymous, ["?"]);
    }

    #[test]
    fn query_delivers_exactly_one_token_and_removes_the_clients_own_in_any_spelling() {
        let bearer = format!("Bearer {T}");
        let header = [("authorization", &*bearer)];
        for (uri, query) in [
            ("/", format!("?jwt={T}")),
            ("/?", format!("?jwt={T}")),
            ("/?x=%41&y", format!("?x=%41&y&jwt={T}")),
            ("/?jwt=forged&x=1", format!("?x=1&jwt={T}")),
            ("/?j%77t=forged&x=1&%6a%77%74=a&jwt", format!("?x=1&jwt={T}")),
            ("/?JWT=other&jwts=1", format!("?JWT=other&jwts=1&jwt={T}")),
        ] {
            assert_eq!(rewritten(&ALL, uri, &header, "query:jwt", Some(T)), [query], "{uri}");
        }
        let uri = format!("/?token={T}&x=1");
        assert_eq!(rewritten(&ALL, &uri, &[], "query:token", Some(T)), [format!("?x=1&token={T}")]);
        assert_eq!(rewritten(&ALL, &uri, &[], "query:jwt", Some(T)), [format!("?x=1&jwt={T}")]);
        // An anonymous client cannot bring one of its own either.
        assert_eq!(rewritten(&ALL, "/?jwt=forged&x=1&j%77t=2", &[], "query:jwt", None), ["?x=1"]);
        assert_eq!(rewritten(&ALL, "/?jwt=forged", &[], "query:jwt", None), ["?"]);
    }

    #[test]
    fn subprotocol_delivers_marker_and_token_first_and_removes_the_clients_own() {
        let k8s = kubernetes(T);
        for (offer, sent) in [
            (format!("Bearer, {T}, chat"), format!("jwt, {T}, chat")),
            (format!("chat, {k8s}"), format!("jwt, {T}, chat")),
            (format!("jwt, forged, chat, Bearer, {T}"), format!("jwt, {T}, chat")),
            (format!("chat, JWT, forged, Bearer, {T}"), format!("jwt, {T}, chat")),
            (format!("Bearer, {T}, chat, jwt"), format!("jwt, {T}, chat")),
        ] {
            let headers = [("sec-websocket-protocol", &*offer)];
            let lines = rewritten(&ALL, "/", &headers, "subprotocol:jwt", Some(T));
            assert_eq!(lines, ["?", &*format!("sec-websocket-protocol: {sent}")], "{offer}");
        }
        let lines = rewritten(&ALL, &format!("/?token={T}"), &[], "subprotocol:jwt", Some(T));
        assert_eq!(lines, ["?", &*format!("sec-websocket-protocol: jwt, {T}")]);
        for (offer, sent) in
            [("jwt, forged, chat", vec!["?", "sec-websocket-protocol: chat"]), ("jwt", vec!["?"])]
        {
            let headers = [("sec-websocket-protocol", offer)];
            assert_eq!(rewritten(&ALL, "/", &headers, "subprotocol:jwt", None), sent, "{offer}");
        }
        // The marker may be the word that the policy does not read itself.
        let headers = [("sec-websocket-protocol", "bearer, forged, chat")];
        let lines =
            rewritten(&["query:token"], &format!("/?token={T}"), &headers, "subprotocol:Bearer", Some(T));
        assert_eq!(lines, ["?", &*format!("sec-websocket-protocol: Bearer, {T}, chat")]);
    }

    #[test]
    fn the_backends_selection_is_answered_only_if_it_was_offered() {
        for (offered, selected, answered) in [
            ("chat, v2", Some("v2"), Some("v2")),
            ("chat, v2", Some("v3"), None),
            ("chat", Some("CHAT"), None),
            ("chat", Some("chat, v2"), None),
            ("chat", Some(""), None),
            ("chat", None, None),
        ] {
            assert_eq!(answer(offered, selected).as_deref(), answered, "{offered} {selected:?}");
        }
        assert_eq!(Offer::of(&HeaderMap::new(), true).answer(Some("chat")), None);
        // Where no token is looked for, all of it is the client's and the backend's business.
        let bearer = protocols("Bearer, v2");
        assert_eq!(Offer::of(&bearer, false).answer(Some("v2")), Some("v2"));
    }

    #[test]
    fn the_marker_is_answered_where_the_backend_selects_nothing_it_was_shown() {
        let offered = format!("chat, bEARER, {T}");
        for (selected, answered) in [
            (None, "bEARER"),
            (Some(T), "bEARER"),
            (Some("jwt"), "bEARER"),
            (Some("Bearer"), "bEARER"),
            (Some("chat"), "chat"),
        ] {
            assert_eq!(answer(&offered, selected).as_deref(), Some(answered), "{selected:?}");
        }
    }

    #[test]
    fn the_kubernetes_form_alone_is_answered_with_nothing() {
        let k8s = kubernetes(T);
        for selected in [None, Some(&*k8s), Some(T)] {
            assert_eq!(answer(&k8s, selected), None);
        }
        assert_eq!(answer_alone(&k8s), None);
        assert_eq!(answer(&format!("{k8s}, chat"), Some("chat")).as_deref(), Some("chat"));
        assert_eq!(answer_alone(&format!("{k8s}, chat")).as_deref(), Some("chat"));
    }

    #[test]
    fn the_answer_never_repeats_the_token() {
        let k8s = kubernetes(T);
        for offered in [format!("Bearer, {T}, {T}"), format!("{T}, Bearer, {T}"), format!("{k8s}, {T}")] {
            let answered = answer(&offered, Some(T));
            assert!(answered.is_none_or(|value| !value.contains(T)), "{offered}");
        }
    }

    #[test]
    fn a_socket_that_is_accepted_to_be_closed_selects_something_but_never_a_token() {
        let k8s = kubernetes(T);
        for (offered, answered) in [
            (format!("Bearer, {T}"), Some("Bearer")),
            (format!("chat, bearer, {T}"), Some("bearer")),
            ("chat, v2".to_owned(), Some("chat")),
            (T.to_owned(), None),
            (format!("{T}, chat"), Some("chat")),
            (format!("{T}, {OTHER}"), None),
        ] {
            assert_eq!(answer_alone(&offered).as_deref(), answered, "{offered}");
        }
        assert_eq!(Offer::of(&HeaderMap::new(), true).answer_alone(), None);
        let unread = protocols(&format!("{k8s}, {T}"));
        assert_eq!(Offer::of(&unread, false).answer_alone(), None);
    }

    #[test]
    fn what_looks_like_a_token_is_told_from_what_does_not() {
        for token in [T, &kubernetes(T), &kubernetes(""), "eyJhbGciOiJSUzI1NiJ9.."] {
            assert!(looks_like_token(token), "{token}");
        }
        for other in
            ["", "chat", "v1.2.3", "ey.a.b", "eyJhbGciOiJSUzI1NiJ9.eyJzdWIi", "a.b.cccccccccccccccccccc"]
        {
            assert!(!looks_like_token(other), "{other}");
        }
    }

    #[test]
    fn redacted_targets_hold_no_token() {
        let policy = policy(&["header", "query:token", "query:jwt"]);
        let k8s = kubernetes(T);
        for (target, shown) in [
            ("/ws/chat/?a=1&b=%20".to_owned(), "/ws/chat/?a=1&b=%20"),
            ("/ws?token=secret&a=1".to_owned(), "/ws?token=***&a=1"),
            ("/ws?a=1&jwt=secret&token=".to_owned(), "/ws?a=1&jwt=***&token=***"),
            ("/ws?token=a&token=b".to_owned(), "/ws?token=***&token=***"),
            ("/ws?tok%65n=secret".to_owned(), "/ws?tok%65n=***"),
            ("/ws?TOKEN=secret".to_owned(), "/ws?TOKEN=***"),
            ("/ws?token=a=b".to_owned(), "/ws?token=***"),
            (format!("/ws?other={T}&a=1"), "/ws?other=***&a=1"),
            (format!("/ws?other={k8s}"), "/ws?other=***"),
            (format!("/ws/{T}/x"), "/ws/***/x"),
            (format!("/{T}?a={T}"), "/***?a=***"),
            ("/ws?".to_owned(), "/ws?"),
            ("/".to_owned(), "/"),
        ] {
            assert_eq!(policy.redacted(&target.parse().unwrap()), shown, "{target}");
        }
    }

    #[test]
    fn a_token_in_the_place_of_a_query_name_is_redacted() {
        for target in [format!("/ws?{T}"), format!("/ws?a=1&{T}=x")] {
            let shown = policy(&ALL).redacted(&target.parse().unwrap());
            assert!(!shown.contains(T), "{shown}");
        }
    }
}
