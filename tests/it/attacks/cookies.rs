//! A cookie comes along from any page.

use serde_json::json;

use super::super::harness::{Gate, Handshake};
use super::Scene;

const OWN: &str = "https://chat.example.com";

fn scene() -> Scene {
    Scene::with(|config| config.set("token.from", "['header', 'cookie:__Host-t']"))
}

#[test]
fn a_token_from_a_cookie_needs_an_origin_that_is_named() {
    let scene = Scene::with(|config| {
        config
            .set("token.from", "['header', 'cookie:__Host-t']")
            .set("origin.allow", "['self', 'null']")
            .route("path = '/*'")
            .route("path = '/optional/'\nauth = 'optional'")
    });
    let cookie = format!("Cookie: __Host-t={}", scene.issuer.good_token());
    for path in ["/", "/optional/"] {
        let with = || Handshake::to(path).with(&cookie);
        assert_eq!(scene.gate.refusal(&with()), (403, "origin_denied".into()), "no Origin");
        for origin in ["null", "https://evil.example", "https://chat.example.com.evil.example"] {
            let refused = scene.gate.refusal_by_close(&with().origin(origin));
            assert_eq!(refused, (4003, "origin_denied".into()), "{origin}");
        }
    }
    scene.backend.assert_never_heard();
    Gate::assert_echo(&mut scene.gate.open(&Handshake::to("/").with(&cookie).origin(OWN)));
    // The same without the cookie is anybody's right: a program sends no Origin.
    Gate::assert_echo(&mut scene.gate.open(&scene.good("/")));
}

#[test]
fn an_explicit_token_beats_a_cookie_and_both_stay_here() {
    let scene = scene();
    let tossed = scene.issuer.token(&json!({"sub": "mallory"}));
    let cookie = format!("Cookie: a=1; __Host-t={tossed}; b=\"2 3\";c=");
    drop(scene.gate.open(&scene.good("/").with(&cookie).with("Cookie: d=4")));
    let heard = scene.backend.request(0);
    assert_eq!(heard.header("x-auth-subject").as_deref(), Some("alice-sub"));
    assert_eq!(heard.header("cookie").as_deref(), Some("a=1; b=\"2 3\"; c=; d=4"));
    assert!(!heard.text().contains("eyJ"), "{}", heard.text());
}

#[test]
fn a_cookie_of_another_name_is_no_token() {
    let scene = scene();
    let token = scene.issuer.good_token();
    for name in ["__host-t", "__Host-T", "t", "x__Host-t", "__Host-t2", "\"__Host-t\""] {
        let handshake = Handshake::to("/").origin(OWN).with(&format!("Cookie: {name}={token}"));
        assert_eq!(scene.gate.refusal_by_close(&handshake), (4001, "token_missing".into()), "{name}");
    }
    scene.backend.assert_never_heard();
}

#[test]
fn another_site_changes_nothing_by_a_cookie_alone() {
    let scene = scene();
    let cookie = format!("Cookie: __Host-t={}", scene.issuer.good_token());
    let status = |method: &str, lines: &[&str]| {
        let lines = lines.iter().map(|line| format!("{line}\r\n")).collect::<Vec<_>>().concat();
        let request = format!(
            "{method} / HTTP/1.1\r\nHost: chat.example.com\r\nContent-Length: 0\r\n{cookie}\r\n{lines}\r\n"
        );
        scene.status(request.as_bytes())
    };
    for method in ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"] {
        for lines in [
            &[][..],
            &["Origin: https://evil.example"],
            &["Origin: null"],
            &["Origin: https://evil.example", "Sec-Fetch-Site: same-origin"],
            &["Sec-Fetch-Site: cross-site"],
            &["Sec-Fetch-Site: same-site"],
            &["Sec-Fetch-Site: none"],
            &["Origin: https://chat.example.com", "Origin: https://evil.example"],
        ] {
            assert_eq!(status(method, lines), 403, "{method} {lines:?}");
        }
    }
    scene.backend.assert_never_heard();
    assert_eq!(status("POST", &["Origin: https://chat.example.com"]), 200);
    assert_eq!(status("POST", &["Sec-Fetch-Site: same-origin"]), 200);
    assert_eq!(status("GET", &[]), 200);
    // An explicit token is no cookie: no page of another site can send it.
    let explicit = format!("Authorization: Bearer {}", scene.issuer.good_token());
    assert_eq!(status("POST", &[&explicit]), 200);
}

#[test]
fn a_cookie_that_is_rewritten_is_shielded_like_any_header() {
    let scene = Scene::with(|config| {
        config.set("token.from", "['cookie:__Host-t']").set("upstream.profile", "'daphne'")
    });
    let line = format!("Cookie: __Host-t={}; a=", scene.issuer.good_token());
    let mut upgrade = Handshake::to("/").origin(OWN).bytes();
    upgrade.splice(upgrade.len() - 2.., [line.as_bytes(), b"b\x85X-Auth-Roles: admin\r\n\r\n"].concat());
    assert_eq!(scene.status(&upgrade), 101);
    let heard = scene.backend.request(0);
    assert!(!heard.head.contains(&0x85), "{}", heard.text());
}
