//! How a refusal is told, and what it must not tell.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::harness::{Handshake, masked};
use super::{Scene, get};

#[test]
fn a_refusal_is_problem_json_and_says_nothing_about_the_inside() {
    let scene = Scene::with(|config| {
        config
            .route("path = '/*'")
            .route("path = '/admin/'\nroles = ['admin']")
            .route("path = '/n/'\nauth = 'none'")
    });
    let expired = scene.issuer.token(&json!({"exp": 1}));
    for (handshake, status, label, challenge) in [
        (Handshake::to("/"), 401, "token_missing", Some("Bearer")),
        (
            Handshake::to("/").bearer(&expired),
            401,
            "token_expired",
            Some("Bearer error=\"invalid_token\", error_description=\"token_expired\""),
        ),
        (scene.good("/admin/"), 403, "rule_denied", None),
        (scene.good("/").instead("Sec-WebSocket-Version: 7"), 426, "upgrade_version", None),
        (scene.good("/?tok%65n=x"), 400, "request_malformed", None),
    ] {
        let (mut client, answer) = scene.gate.upgrade(&handshake);
        assert_eq!(answer.status, status, "{label}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{label}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{label}");
        assert_eq!(answer.header("connection"), Some("close"), "{label}");
        assert_eq!(answer.header("www-authenticate"), challenge, "{label}");
        assert_eq!((answer.header("server"), answer.header("location")), (None, None), "{label}");
        let body = client.json(&answer);
        assert_eq!((&body["status"], &body["reason"]), (&Value::from(status), &Value::from(label)));
        for text in [answer.text.as_str(), &body.to_string()] {
            for inside in ["127.0.0.1", "alice", "session-1", "realms"] {
                assert!(!text.contains(inside), "{label}: {text}");
            }
        }
        assert_eq!(client.rest(), b"", "{label}");
    }
    scene.backend.assert_never_heard();
}

#[test]
fn a_plain_request_is_refused_over_http_even_with_an_origin() {
    let scene = Scene::new();
    let (answer, body) = scene.gate.ask(&get("/", &["Origin: https://chat.example.com"]));
    assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")));
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["reason"], "token_missing");
    assert_eq!(scene.gate.metric("websocket_connections_total{status=\"auth_failed\"}"), 0);
    assert_eq!(scene.gate.refused("token_missing"), 1);
    scene.backend.assert_never_heard();
}

#[test]
fn a_page_is_accepted_only_to_be_closed() {
    let scene = Scene::new();
    let expired = scene.issuer.token(&json!({"exp": 1}));
    let offer = "Sec-WebSocket-Extensions: permessage-deflate";
    for (lines, protocol) in [
        (vec![format!("Sec-WebSocket-Protocol: Bearer, {expired}")], Some("Bearer")),
        (vec![format!("Sec-WebSocket-Protocol: chat, bearer, {expired}")], Some("bearer")),
        (
            vec![format!("Authorization: Bearer {expired}"), "Sec-WebSocket-Protocol: chat, json".into()],
            Some("chat"),
        ),
        (
            vec![
                format!("Authorization: Bearer {expired}"),
                format!("Sec-WebSocket-Protocol: {expired}, json"),
            ],
            Some("json"),
        ),
        (vec![format!("Authorization: Bearer {expired}")], None),
    ] {
        let handshake = lines.iter().fold(Handshake::to("/").page().with(offer), |h, line| h.with(line));
        let (mut client, answer) = scene.gate.upgrade(&handshake);
        assert_eq!(answer.status, 101, "{lines:?}");
        assert_eq!(answer.header("sec-websocket-accept"), Some(Handshake::ACCEPT));
        assert_eq!(answer.header("upgrade"), Some("websocket"));
        assert_eq!(answer.header("connection").map(str::to_lowercase).as_deref(), Some("upgrade"));
        assert_eq!(answer.header("sec-websocket-extensions"), None);
        assert_eq!(answer.header("sec-websocket-protocol"), protocol, "{lines:?}");
        assert_eq!(client.close(), (4001, "token_expired".into()));
        assert_eq!(client.rest(), b"");
    }
    assert_eq!(scene.gate.metric("websocket_connections_total{status=\"accepted\"}"), 0);
    assert_eq!(scene.gate.metric("websocket_connections_total{status=\"auth_failed\"}"), 5);
    assert_eq!(scene.gate.metric("websocket_active_connections"), 0);
    assert_eq!(scene.gate.metric("websocket_closes_total{reason=\"token_expired\"}"), 0);
    assert_eq!(scene.gate.refused("token_expired"), 5);
    assert_eq!(scene.gate.metric("websocket_messages_sent_total{message_type=\"close\"}"), 0);
    let events: Vec<Value> = scene.gate.log().iter().map(|line| line["event"].clone()).collect();
    assert!(!events.contains(&Value::from("session_opened")), "{events:?}");
    scene.backend.assert_never_heard();
}

#[test]
fn what_a_refused_page_says_is_thrown_away_and_does_not_destroy_its_close() {
    let scene = Scene::new();
    // Sent before the answer, and more of it afterwards: unread bytes would reset the connection.
    let early = masked(0x82, &vec![7; 20_000]);
    let mut client = scene.gate.send(&[Handshake::to("/").page().bytes(), early.clone()].concat());
    assert_eq!(client.head().status, 101);
    client.send(&early);
    std::thread::sleep(Duration::from_millis(100));
    client.send(&masked(0x88, &[0x03, 0xe8]));
    assert_eq!(client.close(), (4001, "token_missing".into()));
    assert_eq!(client.rest(), b"");
    scene.backend.assert_never_heard();
}

#[test]
fn a_refused_page_that_stays_is_let_go() {
    let scene = Scene::new();
    let mut client = scene.gate.open(&Handshake::to("/").page());
    assert_eq!(client.close(), (4001, "token_missing".into()));
    assert_eq!(client.rest(), b"", "FIN follows the Close at once");
    // Its place is free again after close_timeout, whatever it does.
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(scene.gate.control.gate().connections.taken(), 0);
}

#[test]
fn the_way_of_refusing_can_be_forced() {
    for (way, page, program) in [("'http'", 401, 401), ("'close'", 101, 101), ("'auto'", 101, 401)] {
        let scene = Scene::with(|config| config.set("refuse.websocket", way));
        assert_eq!(scene.status(&Handshake::to("/").page().bytes()), page, "{way}");
        assert_eq!(scene.status(&Handshake::to("/").bytes()), program, "{way}");
        scene.backend.assert_never_heard();
    }
    let scene = Scene::with(|config| config.set("refuse.codes", "{ unauthorized = 3000 }"));
    assert_eq!(scene.gate.refusal_by_close(&Handshake::to("/").page()), (3000, "token_missing".into()));
}

#[test]
fn a_full_gate_answers_over_http_and_says_when_to_come_back() {
    let scene = Scene::with(|config| config.set("limits.sessions", "1"));
    let _first = scene.gate.open(&scene.good("/"));
    for handshake in [scene.good("/"), scene.good("/").page()] {
        let (mut client, answer) = scene.gate.upgrade(&handshake);
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")));
        assert_eq!(client.json(&answer)["reason"], "sessions_full");
    }
    assert_eq!(scene.backend.connections(), 1);
}

#[test]
fn shadow_mode_refuses_nothing_and_notes_everything() {
    let scene = Scene::with(|config| config.route("path = '/*'\nmode = 'shadow'\nroles = ['admin']"));
    let expired = scene.issuer.token(&json!({"exp": 1}));
    for (handshake, label) in [
        (Handshake::to("/"), "token_missing"),
        (Handshake::to("/").bearer(&expired), "token_expired"),
        (Handshake::to("/").bearer("x"), "token_malformed"),
        (scene.good("/").origin("https://evil.example"), "origin_denied"),
        (scene.good("/"), "rule_denied"),
        (Handshake::to("/?token=x").bearer("y"), "token_ambiguous"),
    ] {
        let mut client = scene.gate.open(&handshake);
        super::super::harness::Gate::assert_echo(&mut client);
        assert_eq!(scene.gate.metric(&format!("would_refuse_total{{reason=\"{label}\"}}")), 1, "{label}");
        let text = scene.backend.last().text();
        assert!(!text.contains("eyJ") && !text.to_lowercase().contains("bearer"), "{text}");
    }
    // A request that is malformed is none in any mode.
    assert_eq!(scene.gate.refusal(&Handshake::to("/a/../b")), (400, "request_malformed".into()));
}
