//! The demo's backend. It has no authentication code: it serves the page, and tells and echoes whatever
//! reaches it, so that everybody sees what the gate has let through and what it has added.

use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::answer::{Answer, answer as plain, json_answer};
use super::site;
use super::stage::Stage;

/// Answers one request.
pub(super) async fn answer(stage: Arc<Stage>, mut request: Request<Incoming>) -> Answer {
    if let Some(key) = websocket_key(request.headers()) {
        return accept(&key, &mut request);
    }
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/" => plain(StatusCode::OK, "text/html; charset=utf-8", stage.page.clone()),
        path if path.starts_with("/api/") => json_answer(StatusCode::OK, &seen(&request)),
        path => match path.strip_prefix("/demo") {
            Some(button) => stage.answer(button, request).await,
            None => site::file(path).unwrap_or_else(|| {
                plain(StatusCode::NOT_FOUND, "text/plain", "the backend has no such page\n")
            }),
        },
    }
}

fn websocket_key(headers: &HeaderMap) -> Option<HeaderValue> {
    let upgrade = headers.get(header::UPGRADE)?.as_bytes();
    upgrade.eq_ignore_ascii_case(b"websocket").then(|| headers.get(header::SEC_WEBSOCKET_KEY).cloned())?
}

fn accept(key: &HeaderValue, request: &mut Request<Incoming>) -> Answer {
    let seen = seen(request);
    let protocol = offered(request.headers()).next().and_then(|one| HeaderValue::try_from(one).ok());
    tokio::spawn(echo(hyper::upgrade::on(request), seen));
    let mut answer = Answer::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::try_from(derive_accept_key(key.as_bytes())) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(protocol) = protocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    answer
}

/// First what was seen, then every message back, until the other side has enough.
async fn echo(upgrade: OnUpgrade, seen: Value) {
    let Ok(upgraded) = upgrade.await else { return };
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    let talk = async {
        socket.send(Message::text(seen.to_string())).await?;
        while let Some(message) = socket.next().await.transpose()? {
            if message.is_text() || message.is_binary() {
                socket.send(message).await?;
            }
        }
        Ok::<_, Error>(())
    };
    // However it ends, it is over: the gate's log says why.
    let _ = talk.await;
}

/// What a request looks like from here.
fn seen(request: &Request<Incoming>) -> Value {
    let told =
        |name: &HeaderName| name.as_str().starts_with("x-") || [header::HOST, header::ORIGIN].contains(name);
    let mut headers: Map<String, Value> = request
        .headers()
        .iter()
        .filter(|(name, _)| told(name))
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    // Whether a token arrives is worth knowing; the token itself is for no screen.
    if request.headers().contains_key(header::AUTHORIZATION) {
        headers.insert("authorization".into(), "***".into());
    }
    json!({
        "method": request.method().as_str(),
        "path": request.uri().path(),
        "query": request.uri().query().unwrap_or_default(),
        "subprotocols": offered(request.headers()).collect::<Vec<_>>(),
        "headers": headers,
    })
}

fn offered(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|one| !one.is_empty())
}
