//! Upgrades and request lines of the wrong form.

use super::super::harness::{Handshake, Script};
use super::Scene;

#[test]
fn a_version_other_than_13_is_told_which_one_there_is() {
    let scene = Scene::new();
    for handshake in [
        scene.good("/").instead("Sec-WebSocket-Version: 8"),
        scene.good("/").instead("Sec-WebSocket-Version: 0"),
        scene.good("/").instead("Sec-WebSocket-Version: 13, 8"),
        scene.good("/").instead("Sec-WebSocket-Version: 013"),
        scene.good("/").without("Sec-WebSocket-Version").page(),
    ] {
        let (mut client, answer) = scene.gate.upgrade(&handshake);
        assert_eq!(answer.status, 426, "{:?}", handshake.lines);
        assert_eq!(answer.header("sec-websocket-version"), Some("13"));
        assert_eq!(client.json(&answer)["reason"], "upgrade_version");
    }
    scene.backend.assert_never_heard();
}

#[test]
fn a_key_that_is_not_16_bytes_of_base64_is_refused() {
    let scene = Scene::new();
    for key in [
        "",
        "x",
        "c2hvcnQ=",
        "dGhlIHNhbXBsZSBub25jZQ",
        "dGhlIHNhbXBsZSBub25jZR==",
        "dGhlIHNhbXBsZSBub25jZXM=",
        "!!!!!!!!!!!!!!!!!!!!!!!=",
        "dGhlIHNhbXBsZSBub25jZQ==, x",
    ] {
        let handshake = scene.good("/").instead(&format!("Sec-WebSocket-Key: {key}"));
        assert_eq!(scene.gate.refusal(&handshake), (400, "upgrade_malformed".into()), "{key}");
    }
    assert_eq!(
        scene.gate.refusal(&scene.good("/").without("Sec-WebSocket-Key")),
        (400, "upgrade_malformed".into())
    );
    scene.backend.assert_never_heard();
}

#[test]
fn methods_and_targets_that_are_for_proxies_are_refused() {
    let scene = Scene::with(|config| config.route("path = '/*'\nauth = 'none'"));
    for line in [
        "CONNECT evil.example:443 HTTP/1.1",
        "CONNECT / HTTP/1.1",
        "TRACE / HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "GET * HTTP/1.1",
        "GET http://evil.example/ HTTP/1.1",
        "GET http://chat.example.com/ HTTP/1.1",
        "GET ws://chat.example.com/ HTTP/1.1",
        "GET evil.example:80 HTTP/1.1",
        "GET / HTTP/2.0",
        "GET / HTTP/1.2",
        "GET  / HTTP/1.1",
        "GET / x HTTP/1.1",
        "GET /\tHTTP/1.1",
        "G@T / HTTP/1.1",
    ] {
        let upgrade = Handshake { line: line.into(), ..Handshake::to("/") };
        assert_eq!(scene.status(&upgrade.bytes()), 400, "{line}");
        let plain = format!("{line}\r\nHost: chat.example.com\r\n\r\n");
        assert_eq!(scene.status(plain.as_bytes()), 400, "{line}");
    }
    scene.backend.assert_never_heard();
}

#[test]
fn a_host_that_is_no_host_is_refused() {
    let scene = Scene::new();
    for host in [
        "",
        "a b",
        "a/b",
        "a@b",
        "chat.example.com:x",
        "chat.example.com:70000",
        "[::1",
        "a?b",
        "a#b",
        "a\\b",
        "a,b:1:2",
        "\u{e9}",
    ] {
        let handshake = scene.good("/").instead(&format!("Host: {host}"));
        assert_eq!(scene.status(&handshake.bytes()), 400, "{host}");
    }
    scene.backend.assert_never_heard();
}

#[test]
fn compression_is_not_offered_to_a_backend_that_must_be_shielded() {
    let offer =
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-other, Permessage-Deflate";
    for (profile, shown) in [
        ("'daphne'", "x-other"),
        ("'generic'", "permessage-deflate; client_max_window_bits, x-other, Permessage-Deflate"),
    ] {
        let scene = Scene::with(|config| config.set("upstream.profile", profile));
        drop(scene.gate.open(&scene.good("/").with(offer)));
        assert_eq!(scene.backend.request(0).header("sec-websocket-extensions").as_deref(), Some(shown));
    }
    // And one that switches it on all the same is not believed.
    let scene = Scene::with(|config| config.set("limits.compression", "'strip'"));
    scene.backend.script(Script::Echo(vec!["Sec-WebSocket-Extensions: permessage-deflate".into()]));
    let handshake = scene.good("/").with("Sec-WebSocket-Extensions: permessage-deflate");
    assert_eq!(scene.gate.refusal(&handshake), (502, "upstream_malformed".into()));
    assert_eq!(scene.backend.request(0).all("sec-websocket-extensions"), [""; 0]);
}
