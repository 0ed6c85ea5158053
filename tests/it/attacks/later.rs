//! An upgrade that is not the first request of its connection is read by another reader than one that
//! is. What an attack meets must not depend on that.

use std::time::Duration;

use serde_json::json;

use super::super::harness::{Answer, Client, Gate, Handshake, Script, masked};
use super::{Scene, get};

fn scene() -> Scene {
    Scene::with(|config| {
        config
            .route("path = '/*'")
            .route("path = '/none/*'\nauth = 'none'")
            .route("path = '/optional/'\nauth = 'optional'")
            .route("path = '/shadow/'\nmode = 'shadow'")
            .set("token.from", "['header', 'subprotocol', 'query:token', 'cookie:__Host-t']")
    })
}

/// A connection on which something has been asked before.
fn used(scene: &Scene) -> Client {
    let mut client = scene.gate.send(&get("/none/first", &[]));
    let answer = client.head();
    assert_eq!((answer.status, client.body(&answer)), (200, b"plain".to_vec()));
    client
}

fn later(scene: &Scene, bytes: &[u8]) -> (Client, Answer) {
    let mut client = used(scene);
    client.send(bytes);
    let answer = client.head();
    (client, answer)
}

/// What a request came to: the answer with its telling headers, how it was told, what the backend heard.
fn outcome(scene: &Scene, mut client: Client, bytes: &[u8]) -> String {
    let before = scene.backend.heard().len();
    client.send(bytes);
    let answer = client.head();
    let told: Vec<_> =
        ["connection", "sec-websocket-protocol", "sec-websocket-accept", "content-type", "www-authenticate"]
            .iter()
            // The one reader says that it will also close, the other does not.
            .filter(|name| answer.status != 101 || **name != "connection")
            .map(|name| (*name, answer.header(name).map(str::to_lowercase)))
            .collect();
    let (rest, heard) = if answer.status == 101 && scene.backend.heard().len() > before {
        Gate::assert_echo(&mut client);
        (String::new(), scene.backend.last().text())
    } else {
        (String::from_utf8_lossy(&client.rest()).into_owned(), String::new())
    };
    let mut lines: Vec<&str> = heard.lines().collect();
    lines.sort_unstable();
    format!("{} {told:?}\n{rest}\n{}", answer.status, lines.join("\n"))
}

#[test]
fn an_upgrade_meets_the_same_gate_first_and_later() {
    let scene = scene();
    let good = scene.issuer.good_token();
    let expired = scene.issuer.token(&json!({"exp": 1}));
    let to = |target: &str| Handshake::to(target).with("X-Request-ID: fixed");
    let with = |line: &str| to("/").bearer(&good).with(line);
    let instead = |line: &str| to("/").bearer(&good).instead(line);
    let cookie = format!("Cookie: a=b; __Host-t={good}; c");
    let handshakes = [
        to("/"),
        to("/").page(),
        to("/").bearer(&good),
        to("/").bearer(&expired),
        to("/").bearer(&expired).page(),
        to(&format!("/?a=%41&token={good}&b")),
        to("/?tok%65n=x"),
        to("/?token=x").bearer(&good),
        to("/").page().with(&cookie),
        to("/").with(&cookie),
        to("/none/x"),
        to("/none/../x"),
        to("/none/%2e%2e/x"),
        to("/none//x"),
        to("/non%65/x"),
        to("/none/x#/../.."),
        to("/optional/"),
        to("/optional/").bearer("x"),
        to("/shadow/").bearer("x"),
        to("http://chat.example.com/none/"),
        with("X-Auth-Subject: mallory"),
        with("X_Auth_Subject: mallory"),
        with("Forwarded: for=6.6.6.6"),
        with("X-Forwarded-For: 6.6.6.6"),
        with("Daphne-Root-Path: /mallory"),
        with("Expect: 100-continue"),
        with("Content-Length: 0"),
        with("Authorization: Basic x"),
        with("Host: chat.example.com"),
        with("Origin: https://evil.example"),
        with("Sec-WebSocket-Extensions: permessage-deflate"),
        with("Sec-WebSocket-Protocol: chat, json"),
        with(&format!("Sec-WebSocket-Protocol: Bearer, {good}")),
        with(" X-Folded: x"),
        with("X-Empty:"),
        with("X-Tab:\ta\tb\t"),
        with("X-Text: \u{e9}"),
        instead("Connection: keep-alive, Upgrade, X-Auth-Subject, Host, X-Forwarded-For"),
        instead("Connection: close, Upgrade"),
        instead("Upgrade: WebSocket"),
        instead("Upgrade: websocket, h2c"),
        instead("Sec-WebSocket-Version: 8"),
        instead("Sec-WebSocket-Key: short"),
        instead("Host: evil.example:99999"),
        instead("Host: [::1]:8080"),
        with("Content-Length: 5"),
        with("Transfer-Encoding: chunked"),
    ];
    for handshake in &handshakes {
        let bytes = handshake.bytes();
        let first = outcome(&scene, scene.gate.client(), &bytes);
        let later = outcome(&scene, used(&scene), &bytes);
        assert_eq!(first, later, "{} {:?}", handshake.line, handshake.lines);
    }
}

#[test]
fn early_bytes_of_a_later_upgrade_wait_for_the_101_too() {
    let scene = scene();
    scene.backend.hold();
    let frames: Vec<u8> = (0..200).flat_map(|n: u32| masked(0x82, &n.to_be_bytes().repeat(256))).collect();
    let mut client = used(&scene);
    client.send(&[scene.good("/").bytes(), frames.clone()].concat());
    scene.backend.request(1);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(scene.backend.request(1).after, b"", "bytes came before the 101");
    scene.backend.release();
    assert_eq!(client.head().status, 101);
    for n in 0..200_u32 {
        assert_eq!(client.frame().payload, n.to_be_bytes().repeat(256));
    }
    assert_eq!(scene.backend.request(1).after, frames);
}

#[test]
fn what_follows_a_failed_later_upgrade_is_not_served() {
    let scene = scene();
    let next = get("/none/next", &["X-Auth-Subject: mallory"]);
    for (handshake, status) in [
        (Handshake::to("/"), 401),
        (Handshake::to("/").page(), 101),
        (scene.good("/").instead("Sec-WebSocket-Version: 8"), 426),
        (scene.good("/").with("Content-Length: 5"), 400),
    ] {
        let (mut client, answer) = later(&scene, &[handshake.bytes(), next.clone()].concat());
        assert_eq!(answer.status, status, "{:?}", handshake.lines);
        let rest = String::from_utf8_lossy(&client.rest()).into_owned();
        assert!(!rest.contains("HTTP/1.1") && !rest.contains("plain"), "served: {rest}");
    }
    let refusal = "HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nsorry";
    scene.backend.script(Script::Bytes(refusal.into()));
    let (mut client, answer) = later(&scene, &[scene.good("/").bytes(), next].concat());
    assert_eq!((answer.status, answer.header("connection")), (403, Some("close")));
    assert_eq!(client.rest(), b"sorry");
    assert!(scene.backend.heard().iter().all(|heard| !heard.text().contains("mallory")));
}

#[test]
fn a_wrong_101_opens_no_tunnel_later_either() {
    let scene = scene();
    let wrong = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n";
    for answer in [wrong, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"] {
        scene.backend.script(Script::Bytes(answer.into()));
        let (mut client, told) = later(&scene, &[scene.good("/").bytes(), masked(0x81, b"early")].concat());
        assert_eq!((told.status, told.header("connection")), (502, Some("close")));
        assert_eq!(client.json(&told)["reason"], "upstream_malformed");
        assert_eq!(client.rest(), b"");
        assert_eq!(scene.backend.last().after, b"");
    }
}
