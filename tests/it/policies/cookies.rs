//! Tokens in cookies, where they meet sibling domains, frames and forms.

use serde_json::json;

use super::super::harness::{Config, Gate, Handshake};
use super::Scene;

const OWN: &str = "https://chat.example.com";
/// A sibling of ours that is named, and one that is not.
const NAMED: &str = "https://app.example.com";
const SIBLING: &str = "https://blog.example.com";

fn with_cookie(config: Config) -> Config {
    config
        .set("token.from", "['header', 'cookie:__Host-t']")
        .set("origin.allow", "['self', 'https://app.example.com']")
        .set("http.auth", "'required'")
}

fn cookie(scene: &Scene, sub: &str) -> String {
    format!("Cookie: __Host-t={}", scene.issuer.token(&json!({ "sub": sub })))
}

const UNSAFE: [&str; 6] = ["POST", "PUT", "PATCH", "DELETE", "PROPFIND", "get"];

#[test]
fn what_changes_something_by_a_cookie_needs_a_page_that_is_named() {
    let named = format!("Origin: {NAMED}");
    let (own, sibling) = (format!("Origin: {OWN}"), format!("Origin: {SIBLING}"));
    let cases: [(&[&str], bool); 19] = [
        (&[&own], true),
        (&[&named], true),
        (&[&named, "Sec-Fetch-Site: same-site"], true),
        (&["Sec-Fetch-Site: same-origin"], true),
        (&[], false),
        (&["Origin: null"], false),
        (&["Origin: "], false),
        (&[&sibling], false),
        (&[&sibling, "Sec-Fetch-Site: same-site"], false),
        (&[&sibling, "Sec-Fetch-Site: same-origin"], false),
        (&["Origin: https://app.example.com:8443"], false),
        (&["Origin: http://app.example.com"], false),
        (&["Origin: https://example.com"], false),
        (&["Sec-Fetch-Site: same-site"], false),
        (&["Sec-Fetch-Site: cross-site"], false),
        (&["Sec-Fetch-Site: none"], false),
        (&["Sec-Fetch-Site: Same-Origin"], false),
        (&["Sec-Fetch-Site: same-origin, cross-site"], false),
        (&["Referer: https://chat.example.com/", "X-Requested-With: XMLHttpRequest"], false),
    ];
    let scene = Scene::with(|config| {
        with_cookie(config).route("path = '/*'").route("path = '/optional/'\nauth = 'optional'")
    });
    let cookie = cookie(&scene, "alice");
    let (mut passed, mut denied) = (0, 0);
    for (path, methods) in [("/x", &UNSAFE[..]), ("/optional/", &UNSAFE[..1])] {
        for (lines, allowed) in &cases {
            for method in methods {
                let lines: Vec<&str> = lines.iter().copied().chain([&*cookie, "Content-Length: 0"]).collect();
                if *allowed {
                    assert_eq!(scene.ask(method, path, &lines).status, 200, "{method} {path} {lines:?}");
                    assert_eq!(scene.backend.last().header("x-auth-subject").as_deref(), Some("alice"));
                    passed += 1;
                } else {
                    let refused = scene.refusal(method, path, &lines);
                    assert_eq!(refused, (403, "origin_denied".into()), "{method} {path} {lines:?}");
                    denied += 1;
                }
            }
        }
    }
    assert_eq!((scene.backend.heard().len(), scene.gate.refused("origin_denied")), (passed, denied));
    // What changes nothing may come from anywhere: without CORS no page can read the answer.
    for method in ["GET", "HEAD", "OPTIONS"] {
        for lines in [&[&*cookie][..], &[&cookie, &sibling], &[&cookie, "Sec-Fetch-Site: cross-site"]] {
            assert_eq!(scene.ask(method, "/x", lines).status, 200, "{method}");
        }
    }
}

#[test]
fn a_page_of_our_own_that_hides_its_origin_is_told_by_sec_fetch_site() {
    let scene = Scene::with(with_cookie);
    let cookie = cookie(&scene, "alice");
    let lines = [&*cookie, "Origin: null", "Sec-Fetch-Site: same-origin", "Content-Length: 0"];
    assert_eq!(scene.ask("POST", "/x", &lines).status, 200);
}

#[test]
fn two_words_of_sec_fetch_site_are_none() {
    let scene = Scene::with(with_cookie);
    let cookie = cookie(&scene, "alice");
    let lines = [&*cookie, "Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site", "Content-Length: 0"];
    assert_eq!(scene.refusal("POST", "/x", &lines), (403, "origin_denied".into()));
}

#[test]
fn a_socket_by_a_cookie_needs_a_page_that_is_named() {
    let scene = Scene::with(with_cookie);
    let with = || Handshake::to("/ws/").with(&cookie(&scene, "alice"));
    for line in ["X-None: x", "Sec-Fetch-Site: same-origin", "Referer: https://chat.example.com/"] {
        assert_eq!(scene.gate.refusal(&with().with(line)), (403, "origin_denied".into()), "{line}");
    }
    for origin in [SIBLING, "https://example.com", "null", "", "https://app.example.com:8443"] {
        let handshake = with().origin(origin).with("Sec-Fetch-Site: same-origin");
        assert_eq!(scene.gate.refusal_by_close(&handshake), (4003, "origin_denied".into()), "{origin}");
    }
    let twice = with().origin(OWN).origin(NAMED);
    assert_eq!(scene.gate.refusal_by_close(&twice), (4003, "origin_denied".into()));
    scene.backend.assert_never_heard();
    for origin in [OWN, NAMED] {
        Gate::assert_echo(&mut scene.gate.open(&with().origin(origin)));
    }
    assert_eq!((scene.gate.refused("origin_denied"), scene.upgrades("forbidden")), (9, 9));
}

#[test]
fn siblings_can_be_named_all_at_once_or_by_the_token() {
    let scene = Scene::with(|config| {
        with_cookie(config).set("origin.allow", "['https://*.example.com', 'null', 'token']")
    });
    let token = scene.issuer.token(&json!({"allowed-origins": ["https://partner.example", "*", "null"]}));
    let cookie = format!("Cookie: __Host-t={token}");
    for (origin, allowed) in [
        (SIBLING, true),
        (OWN, true),
        ("https://partner.example", true),
        ("https://example.com", false),
        ("https://evil.example", false),
        ("https://blog.example.com.evil.example", false),
        ("http://blog.example.com", false),
        ("null", false),
    ] {
        let upgrade = Handshake::to("/ws/").with(&cookie).origin(origin);
        let line = format!("Origin: {origin}");
        let posted = scene.ask("POST", "/x", &[&cookie, &line, "Content-Length: 0"]).status;
        if allowed {
            Gate::assert_echo(&mut scene.gate.open(&upgrade));
        } else {
            assert_eq!(scene.gate.refusal_by_close(&upgrade), (4003, "origin_denied".into()), "{origin}");
        }
        assert_eq!(posted, if allowed { 200 } else { 403 }, "{origin}");
    }
}

#[test]
fn a_cookie_that_comes_twice_is_no_token() {
    let scene = Scene::with(with_cookie);
    let one = cookie(&scene, "alice");
    let other = cookie(&scene, "mallory");
    let (value, tossed) = (&one["Cookie: ".len()..], &other["Cookie: ".len()..]);
    let page = || Handshake::to("/ws/").origin(OWN);
    for lines in [
        vec![one.clone(), other.clone()],
        vec![other.clone(), one.clone()],
        vec![one.clone(), one.clone()],
        vec![format!("{one}; {tossed}")],
        vec![format!("{one};{tossed};a=b")],
        vec![format!("Cookie: a=b; {value} ; \t{tossed}")],
        vec![one.clone(), "Cookie: __Host-t=".into()],
        vec!["Cookie: __Host-t=; b=c".into(), one.clone()],
        vec![one.clone(), "Cookie: __Host-t".into()],
        vec![format!("{one}; __Host-t = x")],
    ] {
        let handshake = lines.iter().fold(page(), |handshake, line| handshake.with(line));
        assert_eq!(scene.gate.refusal_by_close(&handshake), (4003, "token_ambiguous".into()), "{lines:?}");
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_eq!(scene.refusal("GET", "/x", &lines), (400, "token_ambiguous".into()), "{lines:?}");
    }
    assert_eq!((scene.gate.refused("token_ambiguous"), scene.upgrades("malformed")), (20, 10));
    scene.backend.assert_never_heard();
}

#[test]
fn an_explicit_token_beats_a_cookie_whatever_either_is_worth() {
    let scene = Scene::with(|config| {
        with_cookie(config).set("token.from", "['cookie:__Host-t', 'header', 'query:t']")
    });
    let (mallory, bearer) = (cookie(&scene, "mallory"), scene.bearer());
    // A program that has a cookie too needs no Origin.
    for cookie in [&*mallory, "Cookie: __Host-t=garbage"] {
        let answer = scene.ask("POST", "/x", &[cookie, &bearer, "Content-Length: 0"]);
        assert_eq!(answer.status, 200, "{cookie}");
        assert_eq!(scene.backend.last().header("x-auth-subject").as_deref(), Some("alice-sub"));
        Gate::assert_echo(&mut scene.gate.open(&scene.good("/ws/").with(cookie)));
        let heard = scene.backend.last();
        assert_eq!(heard.header("x-auth-subject").as_deref(), Some("alice-sub"));
        assert_eq!(heard.all("cookie"), [""; 0], "both stay here");
    }
    let query = format!("/ws/?t={}", scene.issuer.good_token());
    Gate::assert_echo(&mut scene.gate.open(&Handshake::to(&query).with(&mallory)));
    assert_eq!(scene.backend.last().header("x-auth-subject").as_deref(), Some("alice-sub"));
    // A bad one is not mended by a good cookie.
    let page = || Handshake::to("/ws/").with(&mallory).origin(OWN);
    let expired = scene.issuer.token(&json!({"exp": 1}));
    assert_eq!(scene.gate.refusal_by_close(&page().bearer(&expired)), (4001, "token_expired".into()));
    assert_eq!(scene.gate.refusal_by_close(&page().bearer("x")), (4001, "token_malformed".into()));
    let refused = scene.refusal("GET", "/x", &[&mallory, "Authorization: Bearer x"]);
    assert_eq!(refused, (401, "token_malformed".into()));
    // Another scheme is no token.
    Gate::assert_echo(&mut scene.gate.open(&page().with("Authorization: Basic eHg6eHg=")));
    assert_eq!(scene.backend.last().header("x-auth-subject").as_deref(), Some("mallory"));
}

#[test]
fn each_route_looks_where_it_is_told_to() {
    let scene = Scene::with(|config| {
        config
            .set("token.from", "['header']")
            .route("path = '/*'")
            .route("path = '/app/'\n[route.token]\nfrom = ['cookie:__Host-t']")
            .route("path = '/other/'\n[route.token]\nfrom = ['cookie:__Host-u', 'header']")
    });
    let token = scene.issuer.good_token();
    let with =
        |path: &str, name: &str| Handshake::to(path).origin(OWN).with(&format!("Cookie: {name}={token}"));
    for (handshake, found) in [
        (with("/ws/", "__Host-t"), false),
        (with("/ws/", "__Host-u"), false),
        (with("/app/", "__Host-t"), true),
        (with("/app/", "__Host-u"), false),
        (with("/other/", "__Host-u"), true),
        (with("/other/", "__Host-t"), false),
        (scene.good("/ws/").page(), true),
        (scene.good("/app/").page(), false),
        (scene.good("/other/").page(), true),
    ] {
        if found {
            Gate::assert_echo(&mut scene.gate.open(&handshake));
            let heard = scene.backend.last();
            assert!(!heard.text().contains(&token[..20]), "{}", heard.text());
        } else {
            let told = scene.gate.refusal_by_close(&handshake);
            assert_eq!(told, (4001, "token_missing".into()), "{:?}", handshake.lines);
        }
    }
    // A cookie that is a token elsewhere is a cookie here, and asks for no Origin.
    let foreign = scene.good("/ws/").with("Cookie: __Host-t=mine");
    Gate::assert_echo(&mut scene.gate.open(&foreign));
    assert_eq!(scene.backend.last().header("cookie").as_deref(), Some("__Host-t=mine"));
}

#[test]
fn a_plain_request_keeps_its_cookie_unless_tokens_are_stripped() {
    for (way, expected) in [("'keep'", None), ("'strip'", Some("a=1; b=2"))] {
        let scene = Scene::with(|config| with_cookie(config).set("http.token", way));
        let whole = format!("a=1; __Host-t={}; b=2", scene.issuer.good_token());
        assert_eq!(scene.ask("GET", "/x", &[&format!("Cookie: {whole}")]).status, 200);
        let heard = scene.backend.request(0).header("cookie");
        assert_eq!(heard.as_deref(), Some(expected.unwrap_or(&whole)), "{way}");
    }
}
