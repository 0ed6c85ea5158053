//! What browsers see of the gate: scheme, host and port, told to the backend, and `"self"` among origins.

use super::super::harness::{Gate, Heard};
use super::Scene;

type Told = (&'static str, &'static str, &'static str);

fn told(heard: &Heard) -> (String, String, String) {
    let value = |name: &str| heard.header(name).unwrap();
    (value("x-forwarded-proto"), value("x-forwarded-host"), value("x-forwarded-port"))
}

/// Sends these lines by an upgrade and by a plain request: the backend must be told `expected`.
fn assert_told(scene: &Scene, lines: &[&str], expected: Told) {
    let expected = (expected.0.to_owned(), expected.1.to_owned(), expected.2.to_owned());
    let mut handshake = scene.good("/ws/");
    for line in lines {
        handshake = if line.starts_with("Host:") { handshake.instead(line) } else { handshake.with(line) };
    }
    Gate::assert_echo(&mut scene.gate.open(&handshake));
    assert_eq!(told(&scene.backend.last()), expected, "{lines:?}");
    assert_eq!(scene.ask("GET", "/x", lines).status, 200);
    assert_eq!(told(&scene.backend.last()), expected, "{lines:?}");
    let host = lines.iter().find_map(|line| line.strip_prefix("Host: ")).unwrap_or("chat.example.com");
    assert_eq!(scene.backend.last().header("host").as_deref(), Some(host), "Host is preserved");
}

const OWN: Told = ("http", "chat.example.com", "80");

/// What a proxy may say of itself, and what comes of it.
const LINES: [(&[&str], Told); 20] = [
    (&[], OWN),
    (&["Host: chat.example.com:8000"], ("http", "chat.example.com:8000", "8000")),
    (&["X-Forwarded-Proto: https"], ("https", "chat.example.com", "443")),
    (&["X-Forwarded-Proto: HTTPS"], ("https", "chat.example.com", "443")),
    (&["X-Forwarded-Host: pub.example"], ("http", "pub.example", "80")),
    (&["X-Forwarded-Proto: https", "X-Forwarded-Host: pub.example"], ("https", "pub.example", "443")),
    (&["X-Forwarded-Host: pub.example:8443"], ("http", "pub.example:8443", "8443")),
    (&["X-Forwarded-Port: 8443"], ("http", "chat.example.com:8443", "8443")),
    (
        &["X-Forwarded-Proto: https", "X-Forwarded-Host: pub.example", "X-Forwarded-Port: 443"],
        ("https", "pub.example", "443"),
    ),
    (&["X-Forwarded-Host: [2001:db8::1]", "X-Forwarded-Port: 81"], ("http", "[2001:db8::1]:81", "81")),
    (&["X-Forwarded-Proto: ftp"], OWN),
    (&["X-Forwarded-Proto: https, http"], OWN),
    (&["X-Forwarded-Proto: https", "X-Forwarded-Proto: https"], OWN),
    (&["X-Forwarded-Host: evil.example, pub.example"], OWN),
    (&["X-Forwarded-Host: evil.example", "X-Forwarded-Host: pub.example"], OWN),
    (&["X-Forwarded-Host: evil.example/path"], OWN),
    (&["X-Forwarded-Host: user@evil.example"], OWN),
    (&["X-Forwarded-Port: 0"], OWN),
    (&["X-Forwarded-Port: 65536"], OWN),
    (&["X-Forwarded-Port: +81"], OWN),
];

#[test]
fn the_backend_is_told_what_a_trusted_proxy_says_of_browsers() {
    let scene = Scene::behind_a_proxy(|config| config);
    for (lines, expected) in LINES {
        assert_told(&scene, lines, expected);
    }
}

#[test]
fn of_anybody_else_nothing_is_believed() {
    let scene = Scene::with(|config| config);
    for (lines, expected) in LINES {
        assert_told(
            &scene,
            lines,
            if lines.iter().any(|line| line.starts_with("Host:")) { expected } else { OWN },
        );
    }
    assert_eq!(scene.gate.metric("forwarded_ignored_total"), 2 * (LINES.len() as u64 - 2));
}

#[test]
fn public_url_is_what_browsers_see_whoever_says_otherwise() {
    for (url, expected) in [
        ("'https://pub.example'", ("https", "pub.example", "443")),
        ("'https://pub.example:8443/'", ("https", "pub.example:8443", "8443")),
        ("'http://pub.example'", ("http", "pub.example", "80")),
    ] {
        let scene = Scene::behind_a_proxy(|config| config.set("listen.public_url", url));
        for lines in [
            &[][..],
            &["Host: chat.example.com:8000"],
            &["X-Forwarded-Proto: ftp", "X-Forwarded-Host: evil.example", "X-Forwarded-Port: 1"],
        ] {
            assert_told(&scene, lines, expected);
        }
    }
}

#[test]
fn self_among_origins_is_what_browsers_see() {
    let https = ["X-Forwarded-Proto: https", "X-Forwarded-Host: pub.example"];
    let port = ["X-Forwarded-Host: pub.example", "X-Forwarded-Port: 8443"];
    let trusted = Scene::behind_a_proxy(|config| config);
    let direct = Scene::with(|config| config);
    let public = Scene::behind_a_proxy(|config| config.set("listen.public_url", "'https://pub.example'"));
    for (scene, lines, origin, allowed) in [
        (&trusted, &https[..], "https://pub.example", true),
        (&trusted, &https, "https://chat.example.com", false),
        (&trusted, &https, "https://pub.example:8443", false),
        (&trusted, &https, "https://evil.example", false),
        (&trusted, &port, "https://pub.example:8443", true),
        (&trusted, &port, "https://pub.example", false),
        (&trusted, &["X-Forwarded-Host: pub.example:8443"], "http://pub.example:8443", true),
        (&trusted, &["X-Forwarded-Host: evil.example, pub.example"], "https://evil.example", false),
        (&trusted, &["X-Forwarded-Host: evil.example, pub.example"], "https://chat.example.com", true),
        (&trusted, &[], "https://chat.example.com", true),
        (&direct, &https, "https://pub.example", false),
        (&direct, &https, "https://chat.example.com", true),
        (&public, &[], "https://pub.example", true),
        (&public, &[], "http://pub.example", false),
        (&public, &[], "https://chat.example.com", false),
        (&public, &["X-Forwarded-Host: evil.example"], "https://evil.example", false),
    ] {
        let handshake = lines.iter().fold(scene.good("/ws/").origin(origin), |h, line| h.with(line));
        if allowed {
            Gate::assert_echo(&mut scene.gate.open(&handshake));
        } else {
            let told = scene.gate.refusal_by_close(&handshake);
            assert_eq!(told, (4003, "origin_denied".into()), "{lines:?} {origin}");
        }
    }
}

#[test]
fn a_forwarded_host_is_not_the_host_that_is_let_in() {
    let scene = Scene::behind_a_proxy(|config| config.set("listen.hosts", "['chat.example.com']"));
    let lines = ["Host: evil.example", "X-Forwarded-Host: chat.example.com"];
    assert_eq!(scene.refusal("GET", "/x", &lines), (400, "host_denied".into()));
    assert_told(&scene, &["X-Forwarded-Host: pub.example"], ("http", "pub.example", "80"));
}
