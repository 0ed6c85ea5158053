//! Backends that answer anything but what they were asked.

use std::time::Duration;

use super::super::harness::{Handshake, Script, masked};
use super::Scene;

const GOOD: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n";

#[test]
fn an_answer_that_is_no_right_101_opens_no_tunnel() {
    let scene = Scene::new();
    let accept = "Sec-WebSocket-Accept: {accept}\r\n";
    let without = |part: &str| GOOD.replace(part, "");
    let with = |line: &str| format!("{}{line}\r\n\r\n", &GOOD[..GOOD.len() - 2]);
    for (what, answer) in [
        ("200", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned()),
        ("200 that looks like a 101", GOOD.replace("101 Switching Protocols", "200 OK")),
        ("204", "HTTP/1.1 204 No Content\r\n\r\n".into()),
        ("a wrong accept", GOOD.replace("{accept}", "s3pPLMBiTxaQ9kYGzzhZRbK+xOp=")),
        ("the key as accept", GOOD.replace("{accept}", Handshake::KEY)),
        ("no accept", without(accept)),
        ("two accepts", with("Sec-WebSocket-Accept: {accept}")),
        ("no Upgrade", without("Upgrade: websocket\r\n")),
        ("another Upgrade", GOOD.replace("Upgrade: websocket", "Upgrade: h2c")),
        ("two Upgrades", GOOD.replace("Upgrade: websocket", "Upgrade: websocket, h2c")),
        ("no Connection", without("Connection: Upgrade\r\n")),
        ("another Connection", GOOD.replace("Connection: Upgrade", "Connection: keep-alive")),
        ("an extension nobody offered", with("Sec-WebSocket-Extensions: permessage-deflate")),
        ("two subprotocols", with("Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: b")),
        ("a status of four digits", GOOD.replace("101", "1010")),
        ("another protocol", GOOD.replace("HTTP/1.1", "HTTP/9.9")),
        ("a header without colon", GOOD.replace("Upgrade: websocket", "Upgrade websocket")),
        ("garbage", "\u{1}\u{2}\u{3} garbage\r\n\r\n".into()),
        ("an SSH banner", "SSH-2.0-OpenSSH_9.6\r\n".into()),
        ("a head without end", format!("HTTP/1.1 101 X\r\nX: {}", "x".repeat(80_000))),
        ("more headers than anybody sends", with(&"X: y\r\n".repeat(200))),
    ] {
        scene.backend.script(Script::Bytes(answer.into()));
        let before = scene.backend.connections();
        let mut client = scene.gate.send(&[scene.good("/").bytes(), masked(0x81, b"early")].concat());
        let answer = client.head();
        assert_eq!((answer.status, answer.header("connection")), (502, Some("close")), "{what}");
        assert_eq!(client.json(&answer)["reason"], "upstream_malformed", "{what}");
        assert_eq!(client.rest(), b"", "{what}");
        let heard = scene.backend.until(before, "the gate to leave", |heard| heard.ended);
        assert_eq!(heard.after, b"", "{what}");
    }
    assert_eq!(scene.gate.metric("websocket_connections_total{status=\"accepted\"}"), 0);
    assert_eq!(scene.gate.sessions(), 0);
}

#[test]
fn a_status_below_100_is_no_answer() {
    let scene = Scene::with(|config| config.set("upstream.handshake_timeout", "'500ms'"));
    for status in ["000", "010", "099"] {
        scene.backend.script(Script::Bytes(GOOD.replace("101", status).into()));
        assert_eq!(scene.gate.refusal(&scene.good("/")), (502, "upstream_malformed".into()), "{status}");
    }
}

#[test]
fn a_backend_that_ends_the_connection_is_malformed_and_not_reached_unreachable() {
    let scene = Scene::new();
    for script in [
        Script::Close,
        Script::BytesThenClose(Vec::new()),
        Script::BytesThenClose(b"HTTP/1.1 101 Switching".to_vec()),
        Script::BytesThenClose(GOOD[..GOOD.len() - 2].into()),
    ] {
        scene.backend.script(script);
        assert_eq!(scene.gate.refusal(&scene.good("/")), (502, "upstream_malformed".into()));
    }
    let scene = Scene::with(|config| {
        config.set("upstream.url", "'http://127.0.0.1:1'").set("upstream.connect_timeout", "'300ms'")
    });
    assert_eq!(scene.gate.refusal(&scene.good("/")), (502, "upstream_unreachable".into()));
    // An address of the inside is nobody's business.
    let (answer, body) = scene.gate.ask(&scene.good("/").bytes());
    let told = format!("{}{}", answer.text, String::from_utf8_lossy(&body));
    assert!(!told.contains("127.0.0.1"), "{told}");
}

#[test]
fn a_backend_that_says_nothing_is_given_up() {
    let scene = Scene::with(|config| config.set("upstream.handshake_timeout", "'300ms'"));
    scene.backend.script(Script::Silence);
    for handshake in [scene.good("/"), scene.good("/").page()] {
        assert_eq!(scene.gate.refusal(&handshake), (504, "upstream_timeout".into()));
    }
    scene.backend.until(0, "the gate to leave", |heard| heard.ended);
    // One byte now and then is no answer either.
    scene.backend.script(Script::Bytes(b"HTTP/1.1 101 ".to_vec()));
    assert_eq!(scene.gate.refusal(&scene.good("/")), (504, "upstream_timeout".into()));
    assert_eq!(scene.gate.metric("websocket_connections_total{status=\"upstream_failed\"}"), 3);
}

#[test]
fn the_whole_handshake_has_an_end() {
    let scene = Scene::with(|config| config.set("listen.handshake_timeout", "'300ms'"));
    scene.backend.script(Script::Silence);
    assert_eq!(scene.gate.refusal(&scene.good("/")), (504, "upstream_timeout".into()));
    scene.backend.until(0, "the gate to leave", |heard| heard.ended);
}

#[test]
fn a_client_that_leaves_takes_its_handshake_along() {
    let scene = Scene::new();
    scene.backend.script(Script::Silence);
    drop(scene.gate.send(&scene.good("/").bytes()));
    scene.backend.until(0, "the gate to leave", |heard| heard.ended);
    assert_eq!(scene.gate.logged("handshake_refused")["reason"], "client_lost");
    assert_eq!(scene.gate.sessions(), 0);
}

#[test]
fn a_client_that_leaves_after_early_bytes_takes_its_handshake_along() {
    let scene = Scene::with(|config| config.set("upstream.handshake_timeout", "'4s'"));
    scene.backend.script(Script::Silence);
    let mut client = scene.gate.send(&scene.good("/").bytes());
    scene.backend.request(0);
    client.send(&masked(0x81, b"early"));
    drop(client);
    std::thread::sleep(Duration::from_secs(1));
    assert!(scene.backend.request(0).ended, "the backend still works for nobody");
}

#[test]
fn the_backends_own_refusal_passes_with_its_body_and_both_connections_end() {
    let scene = Scene::new();
    for (answer, status, body) in [
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\nX-Why: because\r\n\r\nsorry", 403, "sorry"),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nX-Why: because\r\n\r\n", 404, ""),
        (
            "HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 2\r\nX-Why: because\r\n\r\nno",
            302,
            "no",
        ),
        (
            "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 403 Forbidden\r\nX-Why: because\r\nContent-Length: 2\r\n\r\nno",
            403,
            "no",
        ),
        (
            "HTTP/1.1 403 Forbidden\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: x\r\nX-Why: because\r\nContent-Length: 2\r\n\r\nno",
            403,
            "no",
        ),
    ] {
        scene.backend.script(Script::Bytes(answer.into()));
        let before = scene.backend.connections();
        let (mut client, told) = scene.gate.upgrade(&scene.good("/"));
        assert_eq!((told.status, told.header("connection")), (status, Some("close")), "{answer}");
        assert_eq!(told.header("x-why"), Some("because"), "{answer}");
        assert_eq!((told.header("x-hop"), told.header("keep-alive")), (None, None), "{answer}");
        assert_eq!(client.rest(), body.as_bytes(), "{answer}");
        scene.backend.until(before, "the gate to leave", |heard| heard.ended);
    }
    // A page cannot read it, so it reads a Close.
    assert_eq!(scene.gate.refusal_by_close(&scene.good("/").page()), (4003, "upstream_refused".into()));
    assert_eq!(scene.gate.refused("upstream_refused"), 6);
}

#[test]
fn a_refusal_in_chunks_or_without_length_passes_too() {
    let scene = Scene::new();
    let chunked =
        "HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nsor\r\n2\r\nry\r\n0\r\n\r\n";
    scene.backend.script(Script::Bytes(chunked.into()));
    let (mut client, answer) = scene.gate.upgrade(&scene.good("/"));
    let body = String::from_utf8(client.body(&answer)).unwrap();
    assert_eq!(body.split("\r\n").filter(|line| line.len() > 1).collect::<String>(), "sorry", "{body:?}");
    scene.backend.script(Script::BytesThenClose(b"HTTP/1.1 403 Forbidden\r\n\r\nsorry".to_vec()));
    let (mut client, answer) = scene.gate.upgrade(&scene.good("/"));
    let body = String::from_utf8(client.body(&answer)).unwrap();
    assert!(body.contains("sorry"), "{body:?}");
}

#[test]
fn a_failing_backend_keeps_its_status_and_not_its_page() {
    let scene = Scene::new();
    for status in [500, 502, 503] {
        let secret = "Traceback: secret";
        let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{secret}", secret.len());
        scene.backend.script(Script::Bytes(answer.into()));
        for handshake in [scene.good("/"), scene.good("/").page()] {
            assert_eq!(scene.gate.refusal(&handshake), (status, "upstream_error".into()));
        }
    }
}

#[test]
fn provisional_answers_before_the_101_do_no_harm() {
    let scene = Scene::new();
    scene.backend.script(Script::Bytes(format!("HTTP/1.1 100 Continue\r\n\r\n{GOOD}").into()));
    let (_client, answer) = scene.gate.upgrade(&scene.good("/"));
    assert_eq!((answer.status, answer.header("sec-websocket-accept")), (101, Some(Handshake::ACCEPT)));
}

#[test]
fn hop_by_hop_headers_of_the_101_stay_here() {
    let scene = Scene::new();
    let lines = ["Keep-Alive: x", "Set-Cookie: a=b", "Transfer-Encoding: chunked", "Trailer: x"];
    scene.backend.script(Script::Echo(lines.map(str::to_owned).into()));
    let (mut client, answer) = scene.gate.upgrade(&scene.good("/"));
    assert_eq!(answer.status, 101);
    assert_eq!(answer.header("set-cookie"), Some("a=b"));
    for name in ["keep-alive", "transfer-encoding", "trailer"] {
        assert_eq!(answer.header(name), None, "{name}");
    }
    super::super::harness::Gate::assert_echo(&mut client);
}
