//! What is told of each refusal: one count by its label, one by its outcome, one line with the client.

use serde_json::{Value, json};

use super::super::harness::{Config, Handshake, Script, eventually};
use super::{Scene, from, request};

const CLIENT: &str = "203.0.113.7";

/// How a refusal was told: the field of its line.
#[derive(Clone, Copy)]
enum Told {
    Status(u64),
    Code(u64),
}

/// All counts that a refusal may touch.
fn counts(scene: &Scene) -> Vec<(String, u64)> {
    let metrics = scene.gate.metrics();
    let counted = |line: &&str| {
        [
            "websocket_auth_failures_total{",
            "websocket_connections_total{",
            "websocket_closes_total{",
            "would_refuse_total{",
        ]
        .iter()
        .any(|name| line.strip_prefix("sidegate_").is_some_and(|line| line.starts_with(name)))
    };
    let pair = |line: &str| {
        let (series, count) = line.rsplit_once(' ').unwrap();
        (series["sidegate_".len()..].to_owned(), count.parse().unwrap())
    };
    metrics.lines().filter(counted).map(pair).collect()
}

/// Does something that is refused once: exactly these counts rise by one, and there is one line.
fn assert_recorded(scene: &Scene, reason: &str, outcome: Option<&str>, told: Told, refuse: impl FnOnce()) {
    let (before, lines) = (counts(scene), scene.gate.log().len());
    refuse();
    let mut expected: Vec<String> = vec![format!("websocket_auth_failures_total{{reason=\"{reason}\"}}")];
    expected.extend(outcome.map(|outcome| format!("websocket_connections_total{{status=\"{outcome}\"}}")));
    let risen = || -> Vec<String> {
        let after = counts(scene).into_iter().zip(&before);
        after
            .filter(|(now, then)| now.1 != then.1)
            .map(|(now, then)| {
                assert_eq!(now.1, then.1 + 1, "{} of {reason}", now.0);
                now.0
            })
            .collect()
    };
    eventually(reason, || (risen().len() >= expected.len()).then_some(()));
    let mut risen = risen();
    risen.sort();
    assert_eq!(risen, expected, "{reason}");
    let said: Vec<Value> = scene.gate.log().split_off(lines);
    assert_eq!(said.len(), 1, "{reason}: {said:?}");
    let line = &said[0];
    assert_eq!((&line["event"], &line["reason"]), (&json!("handshake_refused"), &json!(reason)), "{line}");
    assert_eq!(line["address"], CLIENT, "{line}");
    let (field, other, number) = match told {
        Told::Status(status) => ("status", "code", status),
        Told::Code(code) => ("code", "status", code),
    };
    assert_eq!((line[field].as_u64(), line.get(other)), (Some(number), None), "{line}");
    assert!(line["duration_ms"].is_number() && line["request_id"].is_string(), "{line}");
}

fn config(config: Config) -> Config {
    config
        .set("listen.hosts", "['chat.example.com']")
        .set("token.from", "['header', 'query:token', 'cookie:__Host-t']")
        .set("limits.sessions_per_user", "1")
        .set("limits.sessions_per_address", "2")
        .set("http.unmatched", "'refuse'")
        .route("path = '/ws/*'")
        .route("path = '/admin/'\nroles = ['admin']")
        .route("path = '/office/'\nallow_addresses = ['192.0.2.7']")
}

#[test]
fn each_refusal_of_an_upgrade_is_counted_once_and_leaves_one_line_with_its_client() {
    let scene = Scene::behind_a_proxy(config);
    let good = |target: &str| from(CLIENT, scene.good(target));
    let none = || from(CLIENT, Handshake::to("/ws/"));
    let cookie = format!("Cookie: __Host-t={}", scene.issuer.good_token());
    let _live = scene.gate.open(&good("/ws/"));
    let http = [
        (none(), 401, "token_missing", "auth_failed"),
        (none().bearer("x"), 401, "token_malformed", "auth_failed"),
        (good("/ws/?token=other"), 400, "token_ambiguous", "malformed"),
        (none().with(&cookie), 403, "origin_denied", "forbidden"),
        (good("/office/"), 403, "address_denied", "forbidden"),
        (good("/admin/"), 403, "rule_denied", "forbidden"),
        (good("/nowhere"), 404, "route_unknown", "forbidden"),
        (good("/ws//"), 400, "request_malformed", "malformed"),
        (good("/ws/").instead("Host: evil.example"), 400, "host_denied", "malformed"),
        (good("/ws/").instead("Sec-WebSocket-Key: x"), 400, "upgrade_malformed", "malformed"),
        (good("/ws/").instead("Sec-WebSocket-Version: 7"), 426, "upgrade_version", "malformed"),
        (good("/ws/"), 429, "user_sessions_exceeded", "limited"),
    ];
    for (handshake, status, reason, outcome) in http {
        assert_recorded(&scene, reason, Some(outcome), Told::Status(status), || {
            assert_eq!(u64::from(scene.gate.upgrade(&handshake).1.status), status);
        });
    }
    let closed = [
        (none().page(), 4001, "token_missing", "auth_failed"),
        (good("/ws/").origin("https://evil.example"), 4003, "origin_denied", "forbidden"),
        (none().with(&cookie).origin("null"), 4003, "origin_denied", "forbidden"),
        (good("/office/").page(), 4003, "address_denied", "forbidden"),
        (good("/ws/?token=other").page(), 4003, "token_ambiguous", "malformed"),
        (good("/nowhere").page(), 4003, "route_unknown", "forbidden"),
        (good("/ws/").page(), 4029, "user_sessions_exceeded", "limited"),
    ];
    for (handshake, code, reason, outcome) in closed {
        assert_recorded(&scene, reason, Some(outcome), Told::Code(code), || {
            assert_eq!(
                scene.gate.refusal_by_close(&handshake),
                (u16::try_from(code).unwrap(), reason.into())
            );
        });
    }
    let bob = || from(CLIENT, scene.of("bob", "/ws/"));
    let _second = scene.gate.open(&bob());
    for (handshake, told) in [(bob(), Told::Status(429)), (bob().page(), Told::Code(4029))] {
        assert_recorded(&scene, "address_sessions_exceeded", Some("limited"), told, || {
            scene.gate.upgrade(&handshake);
        });
    }
    assert_eq!(scene.backend.heard().len(), 2);
}

#[test]
fn each_refusal_of_a_plain_request_is_counted_as_no_connection() {
    let scene = Scene::behind_a_proxy(config);
    let (line, bearer) = (format!("X-Forwarded-For: {CLIENT}"), scene.bearer());
    let cookie = format!("Cookie: __Host-t={}", scene.issuer.good_token());
    for (method, path, lines, status, reason) in [
        ("GET", "/ws/", vec![], 401, "token_missing"),
        ("GET", "/ws/?token=other", vec![&*bearer], 400, "token_ambiguous"),
        ("DELETE", "/ws/", vec![&*cookie], 403, "origin_denied"),
        ("GET", "/office/", vec![&*bearer], 403, "address_denied"),
        ("GET", "/admin/", vec![&*bearer], 403, "rule_denied"),
        ("GET", "/nowhere", vec![], 404, "route_unknown"),
        ("GET", "/ws//", vec![], 400, "request_malformed"),
        ("GET", "/ws/", vec!["Host: evil.example"], 400, "host_denied"),
    ] {
        let lines: Vec<&str> = lines.into_iter().chain([&*line]).collect();
        assert_recorded(&scene, reason, None, Told::Status(status), || {
            assert_eq!(scene.refusal(method, path, &lines), (u16::try_from(status).unwrap(), reason.into()));
        });
    }
    scene.backend.assert_never_heard();
}

#[test]
fn an_offer_of_another_protocol_makes_no_connection_of_a_plain_request() {
    let scene = Scene::behind_a_proxy(config);
    let lines = [&*format!("X-Forwarded-For: {CLIENT}"), "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"];
    assert_recorded(&scene, "token_missing", None, Told::Status(401), || {
        assert_eq!(scene.refusal("GET", "/ws/", &lines).0, 401);
    });
    assert_recorded(&scene, "request_malformed", None, Told::Status(400), || {
        assert_eq!(scene.refusal("GET", "/ws//", &lines).0, 400);
    });
}

#[test]
fn a_malformed_plain_request_is_a_request_too() {
    let scene = Scene::behind_a_proxy(|c| config(c).set("log.requests", "true"));
    assert_eq!(scene.refusal("GET", "/ws/", &[]).0, 401);
    assert_eq!(scene.gate.metric("http_requests_total{code=\"401\",method=\"GET\"}"), 1);
    assert_eq!(scene.lines("request").len(), 1);
    assert_eq!(scene.refusal("GET", "/ws//", &[]).0, 400);
    assert_eq!(scene.gate.metric("http_requests_total{code=\"400\",method=\"GET\"}"), 1);
    assert_eq!(scene.lines("request").len(), 2);
}

#[test]
fn attempts_and_what_the_backend_refuses_are_recorded_too() {
    let scene = Scene::behind_a_proxy(|c| {
        c.set("limits.attempts_per_address", "'1/60s'").set("refuse.websocket", "'auto'")
    });
    scene.backend.script(Script::Bytes(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".into()));
    let good = || from(CLIENT, scene.good("/ws/"));
    assert_recorded(&scene, "upstream_refused", Some("forbidden"), Told::Status(403), || {
        assert_eq!(scene.gate.upgrade(&good()).1.status, 403);
    });
    assert_recorded(&scene, "upstream_refused", Some("forbidden"), Told::Code(4003), || {
        assert_eq!(scene.gate.refusal_by_close(&good().page()), (4003, "upstream_refused".into()));
    });
    scene.gate.upgrade(&from(CLIENT, Handshake::to("/ws/")));
    for handshake in [good(), good().page(), from(CLIENT, Handshake::to("/ws//"))] {
        assert_recorded(&scene, "attempts_exceeded", Some("limited"), Told::Status(429), || {
            assert_eq!(scene.gate.upgrade(&handshake).1.status, 429);
        });
    }
    let plain = request("GET", "/x", &[&format!("X-Forwarded-For: {CLIENT}")]);
    assert_recorded(&scene, "attempts_exceeded", None, Told::Status(429), || {
        assert_eq!(scene.gate.ask(&plain).0.status, 429);
    });
}

#[test]
fn a_full_gate_is_unavailable_to_programs_and_pages_alike() {
    for (way, told) in [("'auto'", Told::Status(503)), ("'close'", Told::Code(1013))] {
        let scene = Scene::behind_a_proxy(|c| c.set("limits.sessions", "1").set("refuse.websocket", way));
        let good = || from(CLIENT, scene.good("/ws/"));
        let _live = scene.gate.open(&good());
        for handshake in [good(), good().page()] {
            assert_recorded(&scene, "sessions_full", Some("unavailable"), told, || {
                scene.gate.upgrade(&handshake);
            });
        }
    }
}
