//! What operators read: lines of the log.

use serde_json::{Value, json};

use super::super::harness::{Gate, Handshake, Issuer, eventually, masked};
use super::plain::ask;
use super::wire::{Upstream, close_payload, good, goodbye, unmasked};

fn has(line: &Value, fields: &[(&str, Value)]) {
    for (name, value) in fields {
        assert_eq!(line.get(name), Some(value), "{name} in {line}");
    }
}

fn who(issuer: &Issuer) -> Vec<(&'static str, Value)> {
    vec![
        ("route", json!("/ws/{room}")),
        ("address", json!("127.0.0.1")),
        ("sub", json!("alice-sub")),
        ("username", json!("alice")),
        ("sid", json!("session-1")),
        ("jti", json!("jti-1")),
        ("iss", json!(issuer.url())),
        ("client", json!("web")),
        ("origin", json!("https://chat.example.com")),
        ("request_id", json!("my-id.1")),
        ("mode", json!("enforce")),
        ("level", json!("info")),
    ]
}

#[test]
fn a_session_leaves_two_lines_with_all_that_is_known_of_it() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer).route("path = '/ws/{room}'"));
    let target = format!("/ws/7?a=1&token={}&b=2", issuer.good_token());
    let handshake = Handshake::to(&target).page().with("X-Request-ID: my-id.1");
    let (mut client, mut wire) = upstream.pair(&gate, &handshake);
    let opened = gate.logged("session_opened");
    has(&opened, &who(&issuer));
    assert_eq!(opened["target"], "/ws/7?a=1&token=***&b=2");
    assert!(opened["duration_ms"].is_number() && opened["time"].as_str().unwrap().ends_with('Z'), "{opened}");
    let (hello, close) = (masked(0x81, b"hello"), masked(0x88, &close_payload(4000, "")));
    let (said, answer) = (unmasked(0x82, &[0; 200]), goodbye(4000, ""));
    client.send(&hello.repeat(3));
    wire.exactly(hello.len() * 3);
    wire.send(&said);
    client.exactly(said.len());
    client.send(&close);
    wire.exactly(close.len());
    wire.send(&answer);
    client.close();
    let closed = gate.logged("session_closed");
    has(&closed, &who(&issuer));
    has(
        &closed,
        &[
            ("reason", json!("client_closed")),
            ("code", json!(4000)),
            ("received_messages", json!(3)),
            ("received_bytes", json!(hello.len() * 3 + close.len())),
            ("sent_messages", json!(1)),
            ("sent_bytes", json!(said.len() + answer.len())),
        ],
    );
    assert!(closed["duration_ms"].is_number());
    assert_eq!(gate.metric("websocket_connection_duration_seconds_count"), 1);
    assert_eq!(gate.metric("websocket_handshake_duration_seconds_count"), 1);
    assert_eq!(gate.metric("websocket_auth_latency_seconds_count"), 1);
}

#[test]
fn a_refused_handshake_leaves_one_line() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer).route("path = '/ws/{room}'\nroles = ['admin']"));
    let handshake = Handshake::to("/ws/7").bearer(&issuer.good_token()).with("X-Request-ID: my-id.1");
    gate.refusal_by_close(&handshake.clone().page());
    let line = gate.logged("handshake_refused");
    has(&line, &who(&issuer));
    has(&line, &[("reason", json!("rule_denied")), ("code", json!(4003))]);
    assert!(line["duration_ms"].is_number() && line.get("status").is_none(), "{line}");
    gate.refusal(&handshake);
    let line = gate.log().pop().unwrap();
    has(
        &line,
        &[("event", json!("handshake_refused")), ("reason", json!("rule_denied")), ("status", json!(403))],
    );
    assert!(line.get("code").is_none() && line.get("origin").is_none(), "{line}");
    let events: Vec<_> = gate.log().into_iter().map(|line| line["event"].clone()).collect();
    assert!(!events.contains(&json!("session_opened")), "accepted to be closed is no connection");
    assert_eq!(gate.metric("websocket_connections_total{status=\"accepted\"}"), 0);
    assert_eq!(gate.metric("websocket_connections_total{status=\"forbidden\"}"), 2);
    assert_eq!(gate.metric("websocket_auth_latency_seconds_count"), 2);
}

#[test]
fn a_strange_request_id_is_replaced_and_a_good_one_told_to_the_backend() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer).set("log.requests", "true"));
    for (n, given) in ["good-id_1.x", "bad id", "", &"x".repeat(65)].into_iter().enumerate() {
        let mut client = gate.client();
        let request =
            format!("GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: {given}\r\nConnection: close\r\n\r\n");
        let (mut wire, head) = ask(&mut client, &upstream, &request);
        let told = super::plain::all(&head, "x-request-id");
        wire.send(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
        client.head();
        assert_eq!(told.len(), 1);
        assert_eq!(told[0] == given, n == 0, "{told:?}");
        let line = eventually("its line", || {
            gate.log().into_iter().filter(|line| line["event"] == "request").nth(n)
        });
        assert_eq!(line["request_id"], told[0].as_str());
    }
}

#[test]
fn plain_requests_leave_lines_if_that_is_wanted_and_never_a_token() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer).set("log.requests", "true"));
    let token = issuer.good_token();
    let mut client = gate.client();
    let (mut wire, _) = ask(
        &mut client,
        &upstream,
        &format!(
            "GET /api?x=1&token={token}&access=2 HTTP/1.1\r\nHost: a\r\nOrigin: https://o.example\r\nX-Request-ID: r1\r\n\r\n"
        ),
    );
    wire.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.head().status, 404);
    let line = gate.logged("request");
    has(
        &line,
        &[
            ("method", json!("GET")),
            ("status", json!(404)),
            ("target", json!("/api?x=1&token=***&access=2")),
            ("address", json!("127.0.0.1")),
            ("origin", json!("https://o.example")),
            ("request_id", json!("r1")),
            ("mode", json!("enforce")),
        ],
    );
    assert!(line["duration_ms"].is_number());
}

#[test]
fn plain_requests_leave_no_lines_unless_they_are_wanted() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, &upstream, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.send(b"HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(client.head().status, 204);
    assert!(gate.log().iter().all(|line| line["event"] != "request"));
}

#[test]
fn level_warn_silences_the_access_log() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer).set("log.level", "'warn'").set("log.requests", "true"));
    gate.refusal(&Handshake::to("/ws/"));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    client.finish();
    wire.close();
    eventually("its end", || (gate.sessions() == 0).then_some(()));
    // How many files may be open here is another matter.
    let lines = gate.log();
    assert!(lines.iter().all(|line| line["event"] == "max_connections_lowered"), "{lines:?}");
}

#[test]
fn a_client_that_leaves_during_its_handshake_leaves_a_line_and_nothing_else() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer).route("path = '/ws/{room}'"));
    let handshake = Handshake::to("/ws/7").bearer(&issuer.good_token()).page().with("X-Request-ID: my-id.1");
    let client = gate.send(&handshake.bytes());
    let mut wire = upstream.accept();
    wire.head();
    eventually("its place", || (gate.sessions() == 1).then_some(()));
    assert_eq!(gate.metric("websocket_connected_users"), 1);
    drop(client);
    wire.ends();
    let line = gate.logged("handshake_refused");
    has(&line, &who(&issuer));
    assert_eq!(line["reason"], "client_lost");
    eventually("all to be let go", || {
        let gate = gate.control.gate();
        let left = (gate.sessions.count(), gate.permits.taken(), gate.connections.taken());
        (left == (0, 0, 0)).then_some(())
    });
    assert_eq!(gate.metric("websocket_connected_users"), 0);
    assert_eq!(gate.metric("websocket_active_connections"), 0);
    assert_eq!(gate.metric("websocket_connections_total{status=\"accepted\"}"), 0);
}

#[test]
fn a_client_that_has_said_something_and_leaves_is_let_go_with_the_handshakes_time() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer).set("listen.handshake_timeout", "'400ms'"));
    let client = gate.send(&[&good(&issuer).bytes()[..], b"early"].concat());
    let mut wire = upstream.accept();
    wire.head();
    drop(client);
    wire.ends();
    assert!(gate.logged("handshake_refused")["reason"].is_string());
    eventually("all to be let go", || {
        let gate = gate.control.gate();
        let left = (gate.sessions.count(), gate.permits.taken(), gate.connections.taken());
        (left == (0, 0, 0)).then_some(())
    });
}

#[test]
fn text_lines_have_the_same_fields() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer).set("log.format", "'text'"));
    gate.refusal(&Handshake::to("/ws/").with("X-Request-ID: my-id.1"));
    let text = gate.log_text();
    let line = text.lines().find(|line| line.contains("handshake_refused")).unwrap();
    for field in [
        " INFO handshake_refused",
        " reason=token_missing",
        " status=401",
        " address=127.0.0.1",
        " request_id=my-id.1",
    ] {
        assert!(line.contains(field), "{field} in {line}");
    }
}
