//! What the page's buttons reach: the gate in force, as an operator would. For pages of the demo's own
//! origin alone, for every page of the web can send requests to loopback.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use serde_json::json;

use super::super::answer::Asker;
use super::super::drain::Control;
use super::super::operator;
use super::answer::{Answer, answer, json_answer};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

pub(super) struct Stage {
    pub(super) page: Bytes,
    control: ArcSwap<Control>,
    /// The gate that drains is followed by another one.
    again: AtomicBool,
}

impl Stage {
    pub(super) fn new(page: String, control: Arc<Control>) -> Self {
        Self { page: page.into(), control: ArcSwap::new(control), again: AtomicBool::new(false) }
    }

    /// The next gate, which nobody has asked to drain.
    pub(super) fn enter(&self, control: Arc<Control>) {
        self.control.store(control);
        self.again.store(false, Ordering::Release);
    }

    /// Whether the page, and nobody else, has asked for the drain.
    pub(super) fn is_to_go_on(&self) -> bool {
        self.again.swap(false, Ordering::AcqRel)
    }

    /// Answers a request below `/demo`.
    pub(super) async fn answer(&self, path: &str, mut request: Request<Incoming>) -> Answer {
        if !is_own(request.method(), request.headers()) {
            return answer(
                StatusCode::FORBIDDEN,
                "text/plain",
                "only the page of this demo may ask for that\n",
            );
        }
        let control = self.control.load_full();
        if (request.method(), path) == (&Method::POST, "/drain") {
            self.again.store(true, Ordering::Release);
            control.drain_and_leave();
            return json_answer(StatusCode::ACCEPTED, &json!({"draining": true}));
        }
        let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
        match format!("{path}{query}").parse() {
            Ok(uri) if operator::has(path) => {
                *request.uri_mut() = uri;
                operator::answer(&control, Asker::Address(IpAddr::V4(Ipv4Addr::LOCALHOST)), request).await
            }
            _ => answer(StatusCode::NOT_FOUND, "text/plain", "the demo has no such button\n"),
        }
    }
}

/// Neither a page of another origin nor one whose name was turned to loopback (DNS rebinding).
fn is_own(method: &Method, headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let origin = text(header::ORIGIN);
    let is_ours = match origin {
        Some(origin) => origin.strip_prefix("http://") == Some(host),
        None => method == Method::GET && text(SEC_FETCH_SITE).is_none_or(|site| site == "same-origin"),
    };
    is_ours && ["127.0.0.1", "localhost"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn only_the_page_itself_reaches_the_buttons() {
        for (method, headers, expected) in [
            (Method::POST, &[("host", "127.0.0.1:8080"), ("origin", "http://127.0.0.1:8080")][..], true),
            (Method::POST, &[("host", "localhost:8080"), ("origin", "http://localhost:8080")], true),
            (Method::GET, &[("host", "127.0.0.1:8080"), ("sec-fetch-site", "same-origin")], true),
            (Method::GET, &[("host", "127.0.0.1:8080")], true),
            (Method::POST, &[("host", "127.0.0.1:8080")], false),
            (Method::POST, &[("host", "127.0.0.1:8080"), ("origin", "null")], false),
            (Method::POST, &[("host", "127.0.0.1:8080"), ("origin", "http://localhost:8080")], false),
            (Method::POST, &[("host", "127.0.0.1:8080"), ("origin", "https://evil.example")], false),
            (Method::POST, &[("host", "evil.example:8080"), ("origin", "http://evil.example:8080")], false),
            (Method::GET, &[("host", "evil.example:8080")], false),
            (Method::GET, &[("host", "127.0.0.1:8080"), ("sec-fetch-site", "cross-site")], false),
            (Method::GET, &[("host", "127.0.0.1:8080"), ("sec-fetch-site", "same-site")], false),
        ] {
            let pairs = headers
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            assert_eq!(is_own(&method, &pairs.collect()), expected, "{method} {headers:?}");
        }
    }
}
