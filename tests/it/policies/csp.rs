//! `[csp]`: what only the gate knows of a policy, its own address for sockets and the nonce of the page.

use std::collections::HashSet;

use super::super::harness::{Answer, Config};
use super::{Scene, from};

const NAME: &str = "content-security-policy";

fn policy(config: Config, policy: &str) -> Config {
    config.set("csp.policy", policy)
}

fn with_websocket(config: Config) -> Config {
    policy(config, "{ connect-src = [\"'self'\", '$websocket'] }")
}

fn with_nonce(config: Config) -> Config {
    policy(config, "{ script-src = [\"'self'\", '$nonce'] }")
}

/// The nonce in our header.
fn nonce(answer: &Answer) -> &str {
    let policy = answer.header(NAME).unwrap_or_else(|| panic!("no policy in {}", answer.text));
    policy.strip_prefix("script-src 'self' 'nonce-").and_then(|rest| rest.strip_suffix('\'')).unwrap()
}

#[test]
fn websocket_is_this_gate_as_browsers_see_it() {
    let direct = Scene::with(with_websocket);
    let trusted = Scene::behind_a_proxy(with_websocket);
    let public =
        |url: &str| Scene::behind_a_proxy(|config| with_websocket(config).set("listen.public_url", url));
    let (https, http) = (public("'https://pub.example:8443'"), public("'http://pub.example'"));
    let forwarded = ["X-Forwarded-Proto: https", "X-Forwarded-Host: pub.example"];
    for (scene, lines, expected) in [
        (&direct, &[][..], "ws://chat.example.com"),
        (&direct, &["Host: chat.example.com:8080"], "ws://chat.example.com:8080"),
        (&direct, &["Host: [2001:db8::1]:8080"], "ws://[2001:db8::1]:8080"),
        (&direct, &forwarded, "ws://chat.example.com"),
        (&trusted, &[], "ws://chat.example.com"),
        (&trusted, &forwarded, "wss://pub.example"),
        (&trusted, &["X-Forwarded-Proto: https", "X-Forwarded-Port: 8443"], "wss://chat.example.com:8443"),
        (&trusted, &["X-Forwarded-Proto: javascript"], "ws://chat.example.com"),
        (&https, &[], "wss://pub.example:8443"),
        (&https, &["X-Forwarded-Proto: http", "X-Forwarded-Host: evil.example"], "wss://pub.example:8443"),
        (&https, &["Host: evil.example"], "wss://pub.example:8443"),
        (&http, &["X-Forwarded-Proto: https"], "ws://pub.example"),
    ] {
        let answer = scene.ask("GET", "/x", lines);
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header(NAME), Some(&*format!("connect-src 'self' {expected}")), "{lines:?}");
    }
}

#[test]
fn a_hostile_host_never_reaches_a_policy() {
    let direct = Scene::with(with_websocket);
    let trusted = Scene::behind_a_proxy(with_websocket);
    for host in [
        "a;script-src",
        "a;b",
        "a,b",
        "*",
        "*.example",
        "'unsafe-inline'",
        "'none'",
        "a=b",
        "a$b",
        "a'b",
        "a(b)",
        "a b",
        "a; script-src *",
        "a/*",
        "a@b",
        "a%3bb",
        "",
        "[::1];x",
        "a\tb",
        "b\u{fc}cher.example",
    ] {
        // As `Host` itself, let in or refused, and as a proxy's word for it.
        let answer = direct.ask("GET", "/x", &[&format!("Host: {host}")]);
        assert!(matches!(answer.status, 200 | 400), "{host}: {}", answer.status);
        if answer.text.contains("problem+json") || answer.status == 200 {
            assert_eq!(answer.header(NAME), Some("connect-src 'self'"), "{host}");
        }
        let answer = trusted.ask("GET", "/x", &[&format!("X-Forwarded-Host: {host}")]);
        let policy = answer.header(NAME).unwrap();
        assert!(
            ["connect-src 'self'", "connect-src 'self' ws://chat.example.com"].contains(&policy),
            "{host}: {policy}"
        );
    }
    // Two of them are none.
    let twice = direct.ask("GET", "/x", &["Host: a.example", "Host: b.example"]);
    assert_eq!((twice.status, twice.header(NAME)), (400, Some("connect-src 'self'")));
}

#[test]
fn each_answer_has_a_nonce_of_its_own_and_the_backend_is_told_it() {
    let scene = Scene::with(with_nonce);
    let mut seen = HashSet::new();
    for n in 0..20 {
        let answer = scene.ask("GET", "/x", &[]);
        let told = scene.backend.request(n).header("x-csp-nonce").unwrap();
        assert_eq!(nonce(&answer), told);
        assert_eq!((told.len(), &told[22..]), (24, "=="), "128 bits");
        assert!(seen.insert(told), "not fresh");
    }
    // On one connection as well.
    let mut client = scene.gate.client();
    for _ in 0..3 {
        client.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = client.head();
        client.body(&answer);
        assert!(seen.insert(nonce(&answer).to_owned()), "not fresh");
    }
    // Refusals have one too, of which nobody else needs to know.
    let refused = scene.ask("GET", "/x//", &[]);
    assert_eq!(refused.status, 400);
    assert!(seen.insert(nonce(&refused).to_owned()));
}

#[test]
fn no_client_tells_the_backend_a_nonce() {
    let spoofed = ["X-CSP-Nonce: evil-nonce-0123456789", "x_csp_nonce: evil-nonce-0123456789"];
    for with_csp in [false, true] {
        let scene = Scene::with(|config| if with_csp { with_nonce(config) } else { config });
        let answer = scene.ask("GET", "/x", &spoofed);
        let upgrade = spoofed.iter().fold(scene.good("/ws/"), |handshake, line| handshake.with(line));
        drop(scene.gate.open(&upgrade));
        for (n, expected) in [(0, usize::from(with_csp)), (1, 0)] {
            let heard = scene.backend.request(n);
            assert!(!heard.text().contains("evil"), "{}", heard.text());
            assert_eq!(heard.all("x-csp-nonce").len(), expected);
        }
        assert!(!answer.text.contains("evil"), "{}", answer.text);
    }
    // Nor is one told whose policy has no use for it.
    let scene = Scene::with(with_websocket);
    scene.ask("GET", "/x", &spoofed);
    assert_eq!(scene.backend.request(0).all("x-csp-nonce"), [""; 0]);
}

#[test]
fn the_nonce_that_the_backend_has_written_is_taken_over() {
    let scene = Scene::with(with_nonce);
    let longest = "a".repeat(128);
    for theirs in ["0123456789abcdef", "AAAAAAAAAAAAAAAAAAAAAA==", "0123456789+/_-ab", &longest] {
        for header in ["Content-Security-Policy", "Content-Security-Policy-Report-Only"] {
            scene.backend.plain(&format!(
                "HTTP/1.1 200 OK\r\n{header}: default-src 'none'; script-src 'nonce-{theirs}' 'self'\r\nContent-Length: 0\r\n\r\n"
            ));
            assert_eq!(nonce(&scene.ask("GET", "/x", &[])), theirs, "{header}");
        }
    }
}

#[test]
fn what_is_no_nonce_is_never_taken_over() {
    let scene = Scene::with(with_nonce);
    let longer = "a".repeat(129);
    for theirs in [
        "short",
        "0123456789abcde",
        "0123456789abcdef===",
        "0123456789abcdef.",
        "0123456789abcdef%3b",
        "0123456789abcdef\"",
        "0123456789abc;def0",
        "0123456789abc,def0",
        "0123456789abcd\u{e4}f",
        "=0123456789abcdef",
        &longer,
    ] {
        scene.backend.plain(&format!(
            "HTTP/1.1 200 OK\r\nContent-Security-Policy: script-src 'nonce-{theirs}'\r\nContent-Length: 0\r\n\r\n"
        ));
        let answer = scene.ask("GET", "/x", &[]);
        let told = scene.backend.last().header("x-csp-nonce").unwrap();
        assert_eq!(nonce(&answer), told, "{theirs}");
        assert!(!answer.text.contains("0123456789abc"), "{}", answer.text);
    }
}

#[test]
fn a_route_has_its_own_policy_and_an_unknown_one_that_of_the_root() {
    let scene = Scene::behind_a_proxy(|config| {
        policy(config, "{ default-src = [\"'self'\"] }")
            .set("http.unmatched", "'refuse'")
            .route("path = '/api/*'\nhttp = 'pass'")
            .route("path = '/app/*'\nhttp = 'pass'\n[route.csp]\npolicy = { img-src = ['$websocket'] }\nupstream = 'add'")
            .route("path = '/secret/'")
    });
    for (path, status, expected) in [
        ("/api/x", 200, "default-src 'self'"),
        ("/app/x", 200, "img-src ws://chat.example.com"),
        ("/secret/", 401, "default-src 'self'"),
        ("/nowhere", 404, "default-src 'self'"),
    ] {
        let answer = scene.ask("GET", path, &[]);
        assert_eq!((answer.status, answer.header(NAME)), (status, Some(expected)), "{path}");
    }
    let (_, refused) =
        scene.gate.upgrade(&from("203.0.113.7", super::super::harness::Handshake::to("/app/x")));
    assert_eq!((refused.status, refused.header(NAME)), (401, Some("img-src ws://chat.example.com")));
    // Where no root has a policy, the others have none.
    let alone = Scene::with(|config| {
        let config = config.route("path = '/*'\nhttp = 'pass'");
        config.route("path = '/app/'\nhttp = 'pass'\n[route.csp]\npolicy = { img-src = ['*'] }")
    });
    assert_eq!(alone.ask("GET", "/app/", &[]).header(NAME), Some("img-src *"));
    assert_eq!(alone.ask("GET", "/x", &[]).header(NAME), None);
}
