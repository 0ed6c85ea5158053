//! Plain HTTP: the same gate, then streamed both ways over kept connections.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body as _, Incoming};

use super::body::{Activity, Body};
use super::gate::Gate;
use super::guest::Who;
use super::handshake::{Verdict, headers_for_backend, target};
use super::plan::Snapshot;
use super::visit::Visit;
use super::worker::fall_in;
use crate::base::reject::Reason;
use crate::io::pool::{Failed, Pool};
use crate::policy::headers::strip_hop_by_hop;
use crate::telemetry::logging::Level;

/// Sends a judged request on and returns the backend's answer.
#[expect(clippy::too_many_arguments, reason = "all that is known of a request, used once")]
pub async fn send(
    gate: &Gate,
    snapshot: &Snapshot,
    pool: &Pool<Body>,
    visit: Visit<'_>,
    body: Incoming,
    verdict: &Verdict,
    who: &Who,
    nonce: Option<&str>,
) -> Result<Response<Body>, Reason> {
    let (head, upstream) = (visit.head, &verdict.judged.plan.upstream);
    let target = target(head, &verdict.rewrite);
    // Only what changes nothing and can be said again is ever said twice, and never more often
    // (RFC 9110 §9.2.2).
    let mut repeatable =
        matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS) && body.is_end_stream();
    let activity = Activity::now();
    let mut body = Some(Body::Upload(body, Arc::clone(&activity)));
    let answer = loop {
        let mut headers = HeaderMap::with_capacity(head.headers.len() + 8);
        headers_for_backend(gate, snapshot, visit, verdict, who, nonce, |name, value| {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                headers.append(name.clone(), value);
            }
        });
        // Chunked it was, so a length beside it says nothing (RFC 9112 §6.3).
        if head.headers.contains_key(header::TRANSFER_ENCODING) {
            headers.remove(header::CONTENT_LENGTH);
        }
        let mut request = Request::new(body.take().unwrap_or(Body::Empty));
        *request.method_mut() = head.method.clone();
        *request.version_mut() = Version::HTTP_11;
        *request.uri_mut() = uri(&target).ok_or(Reason::RequestMalformed)?;
        *request.headers_mut() = headers;
        fall_in().await;
        match within(upstream.settings.response_timeout, &activity, pool.send(request)).await? {
            Ok(answer) => break answer,
            Err(Failed::Lost { reused: true, .. }) if repeatable => repeatable = false,
            Err(failed) => {
                let message = format!("{:?}: {failed}", upstream.endpoint);
                gate.recorder.log.say(Level::Debug, "upstream_failed", &message);
                return Err(match failed {
                    Failed::Connect(_) => Reason::UpstreamUnreachable,
                    Failed::Lost { .. } => Reason::UpstreamMalformed,
                });
            }
        }
    };
    let response = answer.response();
    if response.status() == StatusCode::SWITCHING_PROTOCOLS || !is_framed_once(response.headers()) {
        // What its connection sends next cannot be trusted, so it ends here.
        return Err(Reason::UpstreamMalformed);
    }
    let (mut parts, body) = answer.accept().into_parts();
    fall_in().await;
    strip_hop_by_hop(&mut parts.headers);
    parts.version = Version::HTTP_11;
    Ok(Response::from_parts(parts, Body::Stream(body)))
}

/// Waits for the head of the answer; the time of a slow upload is not the backend's.
async fn within<T>(
    timeout: Option<Duration>,
    activity: &Activity,
    answer: impl Future<Output = T>,
) -> Result<T, Reason> {
    let Some(timeout) = timeout else { return Ok(answer.await) };
    let mut answer = std::pin::pin!(answer);
    loop {
        match tokio::time::timeout_at(activity.last() + timeout, answer.as_mut()).await {
            Ok(answer) => return Ok(answer),
            Err(_) if activity.last().elapsed() < timeout => {}
            Err(_) => return Err(Reason::UpstreamTimeout),
        }
    }
}

/// Two lengths, or a transfer coding that is not `chunked` alone, can be read in two ways: the start of
/// a response splitting.
fn is_framed_once(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next().map(HeaderValue::as_bytes);
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let coding = codings.next().map(HeaderValue::as_bytes);
    lengths.next().is_none()
        && length.is_none_or(|length| !length.is_empty() && length.iter().all(u8::is_ascii_digit))
        && codings.next().is_none()
        && coding.is_none_or(|coding| coding.eq_ignore_ascii_case(b"chunked"))
        && (length.is_none() || coding.is_none())
}

fn uri(target: &str) -> Option<Uri> {
    Uri::builder().path_and_query(target).build().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_that_could_be_read_in_two_ways_are_refused() {
        let framed = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, HeaderValue::from_static(value));
            }
            is_framed_once(&headers)
        };
        assert!(
            framed(&[]) && framed(&[("content-length", "5")]) && framed(&[("transfer-encoding", "Chunked")])
        );
        assert!(!framed(&[("content-length", "5"), ("content-length", "5")]));
        assert!(!framed(&[("content-length", "5"), ("transfer-encoding", "chunked")]));
        assert!(!framed(&[("transfer-encoding", "gzip, chunked")]));
        assert!(!framed(&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]));
    }
}
