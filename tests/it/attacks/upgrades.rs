//! Requests that want to be an upgrade, or not quite.

use std::time::Duration;

use super::super::harness::{Gate, Handshake, Script, masked};
use super::{Scene, get};

#[test]
fn early_bytes_wait_for_the_backends_101_and_none_is_lost() {
    let scene = Scene::new();
    scene.backend.hold();
    let frames = [masked(0x81, b"first"), masked(0x82, &[7; 3000])].concat();
    let mut client = scene.gate.send(&[scene.good("/").bytes(), frames.clone()].concat());
    scene.backend.request(0);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(scene.backend.request(0).after, b"", "bytes came before the 101");
    let more = masked(0x81, b"second");
    client.send(&more);
    client.stays_silent(Duration::from_millis(200));
    assert_eq!(scene.backend.request(0).after, b"", "bytes came before the 101");
    scene.backend.release();
    assert_eq!(client.head().status, 101);
    assert_eq!(client.frame().payload, b"first");
    assert_eq!(client.frame().payload, [7; 3000]);
    assert_eq!(client.frame().payload, b"second");
    assert_eq!(scene.backend.request(0).after, [frames, more].concat());
}

#[test]
fn many_early_bytes_are_held_back_and_none_is_lost() {
    let scene = Scene::new();
    scene.backend.script(Script::Listen(Vec::new()));
    scene.backend.hold();
    let frames: Vec<u8> = (0..300).flat_map(|n: u32| masked(0x82, &n.to_be_bytes().repeat(256))).collect();
    let mut client = scene.gate.send(&[scene.good("/").bytes(), frames.clone()].concat());
    scene.backend.request(0);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(scene.backend.request(0).after, b"", "bytes came before the 101");
    scene.backend.release();
    assert_eq!(client.head().status, 101);
    let heard = scene.backend.until(0, "all bytes", |heard| heard.after.len() >= frames.len());
    assert_eq!(heard.after, frames);
}

#[test]
fn early_bytes_of_a_refused_upgrade_reach_nobody() {
    let scene = Scene::new();
    scene.backend.hold();
    let answer = "HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nsorry";
    scene.backend.script(Script::Bytes(answer.into()));
    let frame = masked(0x81, b"GET /admin HTTP/1.1\r\n\r\n");
    let mut client = scene.gate.send(&[scene.good("/").bytes(), frame.clone()].concat());
    scene.backend.request(0);
    client.send(&frame);
    scene.backend.release();
    assert_eq!(client.head().status, 403);
    let heard = scene.backend.until(0, "the gate to leave", |heard| heard.ended);
    assert_eq!(heard.after, b"");
    assert_eq!(scene.backend.connections(), 1);
}

#[test]
fn what_follows_a_failed_upgrade_is_not_served() {
    let scene = Scene::with(|config| config.route("path = '/*'").route("path = '/none/'\nauth = 'none'"));
    let second = get("/none/", &["X-Auth-Subject: mallory"]);
    // Refused by the gate, over HTTP and by a Close.
    for (handshake, status) in [
        (Handshake::to("/"), 401),
        (Handshake::to("/").page(), 101),
        (scene.good("/").instead("Sec-WebSocket-Version: 8"), 426),
        (scene.good("/").instead("Upgrade: websocket, h2c"), 400),
        (scene.good("/").with("Content-Length: 5"), 400),
    ] {
        let mut client = scene.gate.send(&[handshake.bytes(), second.clone()].concat());
        let answer = client.head();
        assert_eq!(answer.status, status, "{:?}", handshake.lines);
        let rest = String::from_utf8_lossy(&client.rest()).into_owned();
        assert!(!rest.contains("HTTP/1.1") && !rest.contains("plain"), "served: {rest}");
    }
    scene.backend.assert_never_heard();
    // Refused by the backend.
    let answer = "HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nsorry";
    scene.backend.script(Script::Bytes(answer.into()));
    let mut client = scene.gate.send(&[scene.good("/").bytes(), second].concat());
    let answer = client.head();
    assert_eq!((answer.status, answer.header("connection")), (403, Some("close")));
    assert_eq!(client.rest(), b"sorry");
    assert_eq!(scene.backend.connections(), 1);
    assert_eq!(scene.backend.heard().len(), 1);
}

#[test]
fn an_upgrade_with_a_body_is_refused_and_its_body_served_to_nobody() {
    let scene = Scene::with(|config| config.route("path = '/*'\nauth = 'none'"));
    let smuggled = get("/admin/", &[]);
    let length = format!("Content-Length: {}", smuggled.len());
    let chunked = [format!("{:x}\r\n", smuggled.len()).as_bytes(), &smuggled, b"\r\n0\r\n\r\n"].concat();
    for (lines, body) in [
        (vec![length.as_str()], smuggled.clone()),
        (vec!["Content-Length: 1"], smuggled.clone()),
        (vec!["Transfer-Encoding: chunked"], chunked.clone()),
        (vec!["Transfer-Encoding: chunked", &length], chunked),
        (vec!["Content-Length: 00"], smuggled.clone()),
    ] {
        let handshake = lines.iter().fold(Handshake::to("/"), |handshake, line| handshake.with(line));
        let mut client = scene.gate.send(&[handshake.bytes(), body].concat());
        assert_eq!(client.head().status, 400, "{lines:?}");
        let rest = String::from_utf8_lossy(&client.rest()).into_owned();
        assert!(!rest.contains("HTTP/1.1"), "{lines:?}: {rest}");
    }
    scene.backend.assert_never_heard();
    Gate::assert_echo(&mut scene.gate.open(&Handshake::to("/").with("Content-Length: 0")));
    assert_eq!(scene.backend.request(0).header("upgrade").as_deref(), Some("websocket"));
}

#[test]
fn an_upgrade_to_more_than_a_websocket_is_refused() {
    let scene = Scene::new();
    for handshake in [
        scene.good("/").instead("Upgrade: websocket, h2c"),
        scene.good("/").instead("Upgrade: h2c, websocket"),
        scene.good("/").instead("Upgrade: h2c").with("Upgrade: websocket"),
        scene.good("/").instead("Upgrade: websocket/13, websocket"),
    ] {
        assert_eq!(
            scene.gate.refusal(&handshake),
            (400, "upgrade_malformed".into()),
            "{:?}",
            handshake.lines
        );
    }
    scene.backend.assert_never_heard();
}

#[test]
fn what_is_no_upgrade_is_a_plain_request_and_asks_the_backend_for_none() {
    let scene = Scene::new();
    let lines = |handshake: &Handshake| {
        let line = handshake.line.clone();
        (line, handshake.lines.join("\r\n"))
    };
    let cases = [
        scene.good("/").instead("Connection: keep-alive"),
        scene.good("/").without("Connection"),
        scene
            .good("/")
            .instead("Upgrade: h2c")
            .with("HTTP2-Settings: AAMAAABk")
            .instead("Connection: Upgrade, HTTP2-Settings"),
        scene.good("/").instead("Upgrade: TLS/1.3"),
        scene.good("/").instead("Upgrade: websockets"),
        Handshake { line: "POST / HTTP/1.1".into(), ..scene.good("/") }.with("Content-Length: 0"),
        Handshake { line: "HEAD / HTTP/1.1".into(), ..scene.good("/") },
        Handshake { line: "GET / HTTP/1.0".into(), ..scene.good("/") },
    ];
    for (n, handshake) in cases.iter().enumerate() {
        let (line, told) = lines(handshake);
        assert_eq!(scene.status(&handshake.bytes()), 200, "{line} {told}");
        let heard = scene.backend.request(n);
        assert_eq!(heard.all("upgrade"), [""; 0], "{line} {told}");
        assert_eq!(heard.all("connection"), [""; 0], "{line} {told}");
        assert_eq!(heard.all("http2-settings"), [""; 0], "{line} {told}");
        assert_eq!(heard.header("x-auth-subject").as_deref(), Some("alice-sub"));
    }
    // Nor is it a way around the token.
    let heard = scene.backend.heard().len();
    for handshake in [
        Handshake::to("/").instead("Connection: keep-alive"),
        Handshake::to("/").instead("Upgrade: h2c"),
        Handshake { line: "POST / HTTP/1.1".into(), ..Handshake::to("/") }.with("Content-Length: 0"),
        Handshake { line: "GET / HTTP/1.0".into(), ..Handshake::to("/") },
    ] {
        assert_eq!(scene.status(&handshake.bytes()), 401, "{:?}", handshake.lines);
    }
    assert_eq!(scene.backend.heard().len(), heard);
}

#[test]
fn a_101_that_nobody_asked_for_opens_no_tunnel() {
    let scene = Scene::new();
    scene
        .backend
        .plain("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
    for handshake in
        [scene.good("/").instead("Connection: keep-alive"), scene.good("/").instead("Upgrade: h2c")]
    {
        let (mut client, answer) = scene.gate.upgrade(&handshake);
        assert_eq!(answer.status, 502, "{:?}", handshake.lines);
        assert_eq!(client.json(&answer)["reason"], "upstream_malformed");
    }
    assert_eq!(scene.gate.sessions(), 0);
}
