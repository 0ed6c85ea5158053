//! `[security_headers]`.

use super::super::harness::{Answer, Config};
use super::Scene;

const NAMES: [&str; 4] =
    ["x-content-type-options", "referrer-policy", "x-frame-options", "strict-transport-security"];
const HSTS: &str = "max-age=31536000; includeSubDomains";

fn worn(answer: &Answer) -> [Option<&str>; 4] {
    NAMES.map(|name| answer.header(name))
}

fn with_hsts(config: Config) -> Config {
    config.set("security_headers.strict_transport_security", &format!("'{HSTS}'"))
}

#[test]
fn the_gates_headers_take_the_place_of_the_backends() {
    let theirs = "HTTP/1.1 200 OK\r\nX-Content-Type-Options: other\r\nReferrer-Policy: unsafe-url\r\nReferrer-Policy: origin\r\nX-Frame-Options: ALLOW-FROM https://evil.example\r\nContent-Length: 0\r\n\r\n";
    let scene = Scene::with(|config| config.set("security_headers.referrer_policy", "'no-referrer'"));
    let expected = [Some("nosniff"), Some("no-referrer"), Some("DENY"), None];
    scene.backend.plain(theirs);
    assert_eq!(worn(&scene.ask("GET", "/x", &[])), expected);
    assert_eq!(worn(&scene.ask("GET", "/x//", &[])), expected, "a refusal of our own");
    assert_eq!(worn(&scene.ask("HEAD", "/x", &[])), expected);
    // What is off is the backend's.
    let scene = Scene::with(|config| {
        config.set("security_headers.frame_options", "'off'").set("security_headers.referrer_policy", "'off'")
    });
    scene.backend.plain("HTTP/1.1 200 OK\r\nX-Frame-Options: theirs\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(worn(&scene.ask("GET", "/x", &[])), [Some("nosniff"), None, Some("theirs"), None]);
    assert_eq!(worn(&scene.ask("GET", "/x//", &[])), [Some("nosniff"), None, None, None]);
}

#[test]
fn strict_transport_is_told_only_to_those_who_came_by_https() {
    let trusted = Scene::behind_a_proxy(with_hsts);
    let direct = Scene::with(with_hsts);
    let public = |url: &str| Scene::behind_a_proxy(|config| with_hsts(config).set("listen.public_url", url));
    let (https, http) = (public("'https://chat.example.com'"), public("'http://chat.example.com'"));
    let none = Scene::behind_a_proxy(|config| config.set("security_headers.frame_options", "'DENY'"));
    let by_https = ["X-Forwarded-Proto: https"];
    for (what, scene, lines, told) in [
        ("a trusted proxy's word", &trusted, &by_https[..], true),
        ("its other word", &trusted, &["X-Forwarded-Proto: http"], false),
        ("two words", &trusted, &["X-Forwarded-Proto: https", "X-Forwarded-Proto: http"], false),
        ("no word", &trusted, &[], false),
        ("anybody's word", &direct, &by_https, false),
        ("a port is no scheme", &trusted, &["X-Forwarded-Port: 443", "Host: chat.example.com:443"], false),
        ("public_url", &https, &[], true),
        ("public_url, whatever the proxy says", &https, &["X-Forwarded-Proto: http"], true),
        ("public_url without tls", &http, &by_https, false),
        ("not configured", &none, &by_https, false),
    ] {
        for (path, status) in [("/x", 200), ("/x//", 400)] {
            let answer = scene.ask("GET", path, lines);
            let expected = told.then_some(HSTS);
            assert_eq!((answer.status, worn(&answer)[3]), (status, expected), "{what} {path}");
        }
    }
}

#[test]
fn a_route_has_its_own_headers() {
    let scene = Scene::with(|config| {
        config
            .set("security_headers.frame_options", "'DENY'")
            .set("http.unmatched", "'refuse'")
            .route("path = '/a/'\nhttp = 'pass'")
            .route("path = '/b/'\nhttp = 'pass'\n[route.security_headers]\nframe_options = 'SAMEORIGIN'\nreferrer_policy = 'off'")
    });
    let policy = Some("strict-origin-when-cross-origin");
    for (path, status, expected) in [
        ("/a/", 200, [Some("nosniff"), policy, Some("DENY"), None]),
        ("/b/", 200, [Some("nosniff"), None, Some("SAMEORIGIN"), None]),
        ("/nowhere", 404, [Some("nosniff"), policy, Some("DENY"), None]),
    ] {
        let answer = scene.ask("GET", path, &[]);
        assert_eq!((answer.status, worn(&answer)), (status, expected), "{path}");
    }
}
