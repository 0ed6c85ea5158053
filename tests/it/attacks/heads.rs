//! Heads that are too long, too slow, or no heads at all.

use std::time::Duration;

use super::super::harness::{Gate, Handshake};
use super::{Scene, get};

/// Status of the answer to more than the gate wants to read: it may stop before all has been sent.
fn status_of_much(scene: &Scene, bytes: &[u8]) -> u16 {
    let mut client = scene.gate.client();
    client.try_send(bytes);
    client.head().status
}

#[test]
fn a_head_of_100_kilobytes_is_431() {
    let scene = Scene::new();
    let long = "x".repeat(100 * 1024);
    let cookie = scene.good("/").with(&format!("Cookie: {long}")).bytes();
    let name = scene.good("/").with(&format!("{long}: x")).bytes();
    let many: Vec<String> = (0..100).map(|n| format!("X-{n}: {}", "x".repeat(1024))).collect();
    let many = many.iter().fold(scene.good("/"), |handshake, line| handshake.with(line)).bytes();
    for (what, head) in [("a value", cookie), ("a name", name), ("many values", many)] {
        assert_eq!(status_of_much(&scene, &head), 431, "{what}");
    }
    let target = status_of_much(&scene, &scene.good(&format!("/{long}")).bytes());
    assert!(matches!(target, 414 | 431), "{target}");
    scene.backend.assert_never_heard();
    assert_eq!(scene.gate.refused("request_too_large"), 4);
    // A token that is long, but not too long for a head, is an answer of another kind.
    assert_eq!(
        scene.gate.refusal(&Handshake::to("/").bearer(&"x".repeat(20_000))),
        (401, "token_malformed".into())
    );
}

#[test]
fn more_than_100_headers_are_431() {
    let scene = Scene::new();
    let with =
        |count: usize| (6..count).fold(scene.good("/"), |handshake, n| handshake.with(&format!("X-{n}: x")));
    assert_eq!(with(100).lines.len(), 100);
    Gate::assert_echo(&mut scene.gate.open(&with(100)));
    assert_eq!(scene.status(&with(101).bytes()), 431);
    assert_eq!(scene.status(&with(5000).bytes()), 431);
    assert_eq!(scene.backend.connections(), 1);
}

#[test]
fn slow_and_silent_connections_are_closed_without_a_word() {
    let scene = Scene::with(|config| config.set("listen.header_timeout", "'500ms'"));
    let silent = scene.gate.client();
    let mut begun = scene.gate.send(b"GET / HTTP/1.1\r\nHost: chat");
    // A byte every 50 ms: alive all the time, and still too slow.
    let mut slow = scene.gate.client();
    let trickle = std::thread::spawn(move || {
        for byte in scene.good("/").bytes() {
            if !slow.try_send(&[byte]) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        slow.ends_silently();
        scene
    });
    let mut silent = silent;
    silent.ends_silently();
    begun.ends_silently();
    let scene = trickle.join().unwrap();
    scene.backend.assert_never_heard();
    assert_eq!(scene.gate.refused("header_timeout"), 3);
}

#[test]
fn a_head_that_turns_out_to_be_no_upgrade_gets_no_second_term() {
    let scene = Scene::with(|config| config.set("listen.header_timeout", "'600ms'"));
    let mut client = scene.gate.send(b"G");
    std::thread::sleep(Duration::from_millis(500));
    client.send(b"X / HTTP/1.1\r\nHo");
    client.stream().set_read_timeout(Some(Duration::from_millis(350))).unwrap();
    client.ends_silently();
}

#[test]
fn a_connection_that_says_nothing_does_not_hold_up_the_drain() {
    let scene = Scene::with(|config| config.set("drain.deadline", "'4s'"));
    let mut silent = scene.gate.client();
    let mut begun = scene.gate.send(b"GET / HTTP/1.1\r\nHost: chat");
    // Who came later was answered, so these two have been accepted.
    assert_eq!(scene.status(&scene.good("/").bytes()), 101);
    scene.gate.control.drain();
    for client in [&mut silent, &mut begun] {
        client.stream().set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        client.ends_silently();
    }
}

#[test]
fn a_second_head_has_no_more_time_than_the_first() {
    let scene = Scene::with(|config| {
        config
            .set("listen.header_timeout", "'400ms'")
            .set("listen.keep_alive", "'1500ms'")
            .route("path = '/*'\nauth = 'none'")
    });
    let mut client = scene.gate.send(&get("/", &[]));
    let answer = client.head();
    assert_eq!(client.body(&answer), b"plain");
    // Resting is allowed for longer than a head may take.
    client.stays_silent(Duration::from_millis(700));
    client.send(&get("/", &[]));
    let answer = client.head();
    assert_eq!(client.body(&answer), b"plain");
    client.send(b"GET / HTTP/1.1\r\nHost: chat");
    client.stays_silent(Duration::from_millis(200));
    client.stays_silent(Duration::from_millis(100));
    client.ends_silently();
}

#[test]
fn control_bytes_and_bent_header_lines_are_refused() {
    let scene = Scene::new();
    for line in [
        &b"X-Note: a\x00b"[..],
        b"X-Note: a\x01b",
        b"X-Note: a\x0bX-Auth-Roles: admin",
        b"X-Note: a\x0cX-Auth-Roles: admin",
        b"X-Note: a\x1cX-Auth-Roles: admin",
        b"X-Note: a\x1dX-Auth-Roles: admin",
        b"X-Note: a\x1eX-Auth-Roles: admin",
        b"X-Note: a\x7fb",
        b"X-Note: a\rX-Auth-Roles: admin",
        b"X-Note: a\r\n X-Auth-Roles: admin",
        b"X-Note : a",
        b" X-Note: a",
        b"X Note: a",
        b"X-N\x01te: a",
        b"X-N\x85te: a",
        b"X-Note",
        b": a",
    ] {
        let shown = String::from_utf8_lossy(line);
        let mut upgrade = scene.good("/").bytes();
        upgrade.splice(upgrade.len() - 2.., [line, b"\r\n\r\n"].concat());
        assert_eq!(scene.status(&upgrade), 400, "{shown:?}");
    }
    scene.backend.assert_never_heard();
}

#[test]
fn what_is_no_http_at_all_gets_400_and_an_end() {
    let scene = Scene::new();
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS\r\n\r\n"[..],
        b"PROXY TCP4 6.6.6.6 127.0.0.1 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"SSH-2.0-x\r\n\r\n",
        b"GET /\r\n\r\n",
        b"\x00\x00\x00\x00\r\n\r\n",
    ] {
        let mut client = scene.gate.send(bytes);
        let shown = String::from_utf8_lossy(bytes);
        assert_eq!(client.head().status, 400, "{shown:?}");
        client.rest();
    }
    // The preface of HTTP/2 is not answered in HTTP/1.1.
    scene.gate.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").ends_silently();
    scene.backend.assert_never_heard();
}
