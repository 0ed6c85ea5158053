//! How a refusal is told: over HTTP, or to a browser, which cannot read an HTTP status of a failed
//! upgrade, by a socket that is accepted only to be closed with a code.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Response, StatusCode, Version};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::body::Body;
use super::closing::{FOREVER, discard, say_goodbye};
use crate::base::reject::{Close, Reason, Reject};
use crate::base::section::Section;
use crate::base::value::{Raw, Value, words};
use crate::io::upstream::accept_of;
use crate::policy::carrier::TokenPolicy;
use crate::policy::close::close_frame;
use crate::telemetry::record::Told;

words! {
    /// `[refuse] websocket`
    pub enum Way { Auto = "auto", Close = "close", Http = "http" }
}

/// `[refuse]`
#[derive(Clone, Debug)]
pub struct RefuseSettings {
    way: Way,
    unauthorized: CloseCode,
    forbidden: CloseCode,
    too_many_requests: CloseCode,
    timeout: CloseCode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CloseCode(u16);

impl Value for CloseCode {
    fn accepts() -> String {
        "a close code: 1008, or 3000 to 4999 (RFC 6455 section 7.4)".into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        let code = match raw {
            Raw::Integer(code) => u16::try_from(*code).ok()?,
            Raw::Environment(text) => text.parse().ok()?,
            Raw::Text(_) | Raw::Boolean(_) | Raw::List(_) | Raw::Other => return None,
        };
        (code == 1008 || (3000..=4999).contains(&code)).then_some(Self(code))
    }
    fn show(&self) -> String {
        self.0.to_string()
    }
}

impl Default for RefuseSettings {
    fn default() -> Self {
        Self {
            way: Way::Auto,
            unauthorized: CloseCode(4001),
            forbidden: CloseCode(4003),
            too_many_requests: CloseCode(4029),
            timeout: CloseCode(4008),
        }
    }
}

impl RefuseSettings {
    /// Reads the section; what it does not give is inherited.
    pub fn read(section: &Section<'_>, inherited: &Self) -> Self {
        let way = section.get("websocket", inherited.way);
        let codes = section.section("codes");
        Self {
            way,
            unauthorized: codes.get("unauthorized", inherited.unauthorized),
            forbidden: codes.get("forbidden", inherited.forbidden),
            too_many_requests: codes.get("too_many_requests", inherited.too_many_requests),
            timeout: codes.get("timeout", inherited.timeout),
        }
    }

    /// The code of a Close for this reason; `None` = it is never told by one.
    pub fn close_code(&self, reason: Reason) -> Option<u16> {
        match reason.row().close {
            Close::Unauthorized => Some(self.unauthorized.0),
            Close::Forbidden => Some(self.forbidden.0),
            Close::TooManyRequests => Some(self.too_many_requests.0),
            Close::Timeout => Some(self.timeout.0),
            Close::Code(code) => Some(code),
            Close::Never => None,
        }
    }

    /// Whether to accept the upgrade in order to close it, and with which code. `auto` does so only
    /// where the code tells the page what to do: an HTTP failure makes a page back off, an `onopen`
    /// may make it forget to.
    fn code_instead_of_status(&self, reason: Reason, has_origin: bool) -> Option<u16> {
        let full = matches!(reason, Reason::UserSessionsExceeded | Reason::AddressSessionsExceeded);
        let telling = full || matches!(reason.row().close, Close::Unauthorized | Close::Forbidden);
        let close = match self.way {
            Way::Auto => has_origin && telling,
            Way::Close => true,
            Way::Http => false,
        };
        self.close_code(reason).filter(|_| close)
    }
}

/// A refusal made ready to be sent.
#[derive(Debug)]
pub struct Refusal {
    pub response: Response<Body>,
    pub told: Told,
    /// To be sent on the accepted socket.
    pub close: Option<Vec<u8>>,
}

/// Decides how to tell an upgrade that it is refused.
pub fn upgrade(reject: Reject, head: &Parts, settings: &RefuseSettings, token: &TokenPolicy) -> Refusal {
    let has_origin = head.headers.contains_key(header::ORIGIN);
    if let Some(code) = settings.code_instead_of_status(reject.reason, has_origin) {
        return accept_to_close(reject.reason, code, head, token);
    }
    let mut refusal = plain(reject);
    // One upgrade per connection: what follows a failed one is not another request of it.
    refusal.response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    refusal
}

fn accept_to_close(reason: Reason, code: u16, head: &Parts, token: &TokenPolicy) -> Refusal {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let key = head.headers.get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    let protocol = token.offer(&head.headers).answer_alone().and_then(|p| HeaderValue::try_from(p).ok());
    let headers = response.headers_mut();
    switching(headers, &accept_of(key), protocol);
    Refusal { response, told: Told::Code(code), close: Some(close_frame(Some(code), reason.label(), None)) }
}

/// The headers of a 101 (RFC 6455 §4.2.2).
pub fn switching(headers: &mut HeaderMap, accept: &str, protocol: Option<HeaderValue>) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::try_from(accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(protocol) = protocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
}

/// A refusal over HTTP, as RFC 9457 problem JSON.
pub fn plain(reject: Reject) -> Refusal {
    let row = reject.reason.row();
    // A row without a status never refuses a request; 500 is what it would be if it did.
    let fallback = if row.status == 0 { 500 } else { row.status };
    let status = reject.upstream_status.unwrap_or(fallback);
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let problem = json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or("Refused"),
        "status": status.as_u16(),
        "reason": row.label,
        "detail": row.advice,
    });
    let mut response = Response::new(Body::Whole(Bytes::from(problem.to_string())));
    *response.status_mut() = status;
    *response.version_mut() = Version::HTTP_11;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let challenge = match row.bearer_error {
        "" => "Bearer".to_owned(),
        error => format!("Bearer error=\"{error}\", error_description=\"{}\"", row.label),
    };
    if let (401, Ok(challenge)) = (status.as_u16(), HeaderValue::try_from(challenge)) {
        headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
    match status.as_u16() {
        426 => {
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
        429 | 503 => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        _ => {}
    }
    if reject.reason == Reason::Draining {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Refusal { response, told: Told::Status(status.as_u16()), close: None }
}

/// Tells a connection the last thing it hears, then lets it go.
pub async fn close(socket: &mut TcpStream, last: &[u8], patience: Option<Duration>) {
    let goodbye = async {
        if say_goodbye(socket, last).await.is_ok() {
            discard(socket).await;
        }
    };
    let _ = timeout(patience.unwrap_or(FOREVER), goodbye).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(pairs: &[(&str, &str)]) -> Parts {
        let request = pairs.iter().fold(http::Request::builder(), |b, (name, value)| b.header(*name, *value));
        request.header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==").body(()).unwrap().into_parts().0
    }

    fn told(settings: &RefuseSettings, reason: Reason, pairs: &[(&str, &str)]) -> Told {
        upgrade(reason.into(), &head(pairs), settings, &TokenPolicy::default()).told
    }

    #[test]
    fn a_page_gets_a_code_where_that_helps_and_others_a_status() {
        let page = [("origin", "https://a.com")];
        let auto = RefuseSettings::default();
        for (reason, with_origin, without) in [
            (Reason::TokenExpired, Told::Code(4001), Told::Status(401)),
            (Reason::RuleDenied, Told::Code(4003), Told::Status(403)),
            (Reason::TokenAmbiguous, Told::Code(4003), Told::Status(400)),
            (Reason::RouteUnknown, Told::Code(4003), Told::Status(404)),
            (Reason::UpstreamUnreachable, Told::Status(502), Told::Status(502)),
            (Reason::SessionsFull, Told::Status(503), Told::Status(503)),
            (Reason::UpgradeVersion, Told::Status(426), Told::Status(426)),
        ] {
            assert_eq!(told(&auto, reason, &page), with_origin, "{reason}");
            assert_eq!(told(&auto, reason, &[]), without, "{reason}");
        }
        let http = RefuseSettings { way: Way::Http, ..RefuseSettings::default() };
        assert_eq!(told(&http, Reason::TokenExpired, &page), Told::Status(401));
        let close = RefuseSettings { way: Way::Close, ..RefuseSettings::default() };
        assert_eq!(told(&close, Reason::SessionsFull, &[]), Told::Code(1013));
        assert_eq!(told(&close, Reason::UpgradeVersion, &[]), Told::Status(426));
    }

    #[test]
    fn codes_can_be_remapped() {
        let settings = RefuseSettings { unauthorized: CloseCode(1008), ..RefuseSettings::default() };
        assert_eq!(settings.close_code(Reason::TokenExpired), Some(1008));
        for code in [1000, 1001, 1006, 2999, 5000, 0, -1] {
            assert_eq!(CloseCode::read(&Raw::Integer(code)), None, "{code}");
        }
    }

    #[test]
    fn an_accepted_refusal_never_repeats_the_token() {
        let page = |protocols| {
            let head = head(&[("origin", "https://a.com"), ("sec-websocket-protocol", protocols)]);
            let refusal = upgrade(
                Reason::TokenExpired.into(),
                &head,
                &RefuseSettings::default(),
                &TokenPolicy::default(),
            );
            let protocol = refusal.response.headers().get(header::SEC_WEBSOCKET_PROTOCOL).cloned();
            protocol.map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(page("Bearer, eyJx.y.z").as_deref(), Some("Bearer"));
        assert_eq!(page("chat, Bearer, eyJx.y.z").as_deref(), Some("Bearer"));
        assert_eq!(page("chat, json").as_deref(), Some("chat"));
        assert_eq!(page("base64url.bearer.authorization.k8s.io.ZXlK"), None);
    }

    #[test]
    fn a_401_says_what_is_wrong_and_a_missing_token_has_no_error_code() {
        let challenge = |reason: Reason| {
            let response = plain(reason.into()).response;
            response.headers().get(header::WWW_AUTHENTICATE).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(challenge(Reason::TokenMissing).as_deref(), Some("Bearer"));
        assert!(challenge(Reason::TokenExpired).unwrap().starts_with("Bearer error=\"invalid_token\""));
        assert_eq!(challenge(Reason::OriginDenied), None);
    }
}
