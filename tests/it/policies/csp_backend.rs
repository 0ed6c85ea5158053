//! `[csp]` beside a policy of the backend's own, and on answers to upgrades.

use super::super::harness::{Answer, Config, Handshake, Script};
use super::Scene;

const ENFORCED: &str = "content-security-policy";
const REPORTED: &str = "content-security-policy-report-only";
const OURS: &str = "default-src 'self'";

fn ours(config: Config) -> Config {
    config.set("csp.policy", "{ default-src = [\"'self'\"] }")
}

fn with_nonce(config: Config) -> Config {
    config.set("csp.policy", "{ script-src = ['$nonce'] }")
}

fn policies(answer: &Answer) -> (Vec<&str>, Vec<&str>) {
    (answer.all(ENFORCED), answer.all(REPORTED))
}

#[test]
fn without_csp_the_backends_policy_is_untouched() {
    let scene = Scene::with(|config| config);
    scene.backend.plain(
        "HTTP/1.1 200 OK\r\nContent-Security-Policy: a b\r\nX-Frame-Options: ALLOW\r\nContent-Length: 0\r\n\r\n",
    );
    let answer = scene.ask("GET", "/x", &[]);
    assert_eq!(policies(&answer), (vec!["a b"], vec![]));
    assert_eq!(answer.header("x-frame-options"), Some("ALLOW"));
    assert_eq!(answer.header("x-content-type-options"), None);
}

#[test]
fn the_backends_policy_is_replaced_kept_or_joined() {
    let both = "Content-Security-Policy: a\r\nContent-Security-Policy-Report-Only: b\r\nContent-Security-Policy: c\r\n";
    let cases = [
        ("'replace'", false, both, &[OURS][..], &["b"][..]),
        ("'replace'", false, "", &[OURS], &[]),
        ("'keep'", false, both, &["a", "c"], &["b"]),
        ("'keep'", false, "", &[OURS], &[]),
        ("'keep'", false, "Content-Security-Policy-Report-Only: b\r\n", &[OURS], &["b"]),
        ("'add'", false, both, &["a", "c", OURS], &["b"]),
        ("'add'", false, "", &[OURS], &[]),
        ("'replace'", true, both, &["a", "c"], &[OURS]),
        ("'replace'", true, "", &[], &[OURS]),
        ("'keep'", true, both, &["a", "c"], &["b"]),
        ("'keep'", true, "Content-Security-Policy: a\r\n", &["a"], &[OURS]),
        ("'add'", true, both, &["a", "c"], &["b", OURS]),
    ];
    for (upstream, report_only, theirs, enforced, reported) in cases {
        let scene = Scene::with(|config| {
            ours(config).set("csp.upstream", upstream).set("csp.report_only", &report_only.to_string())
        });
        for status in ["200 OK", "404 Not Found", "500 Oops"] {
            scene.backend.plain(&format!("HTTP/1.1 {status}\r\n{theirs}Content-Length: 0\r\n\r\n"));
            let answer = scene.ask("GET", "/x", &[]);
            assert_eq!(
                policies(&answer),
                (enforced.into(), reported.into()),
                "{upstream} {report_only} {status}"
            );
        }
        // To a refusal of ours nobody has added anything.
        let refused = scene.ask("GET", "/x//", &[]);
        let expected = if report_only { (vec![], vec![OURS]) } else { (vec![OURS], vec![]) };
        assert_eq!((refused.status, policies(&refused)), (400, expected));
    }
}

#[test]
fn a_kept_page_is_told_its_nonce_and_one_that_joins_uses_the_same() {
    let theirs = "HTTP/1.1 200 OK\r\nContent-Security-Policy: script-src 'nonce-0123456789abcdef'\r\nContent-Length: 0\r\n\r\n";
    for (upstream, expected) in [
        ("'keep'", &["script-src 'nonce-0123456789abcdef'"][..]),
        ("'add'", &["script-src 'nonce-0123456789abcdef'", "script-src 'nonce-0123456789abcdef'"]),
    ] {
        let scene = Scene::with(|config| with_nonce(config).set("csp.upstream", upstream));
        scene.backend.plain(theirs);
        assert_eq!(scene.ask("GET", "/x", &[]).all(ENFORCED), expected);
        scene.backend.plain("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        let answer = scene.ask("GET", "/x", &[]);
        let told = scene.backend.last().header("x-csp-nonce").unwrap();
        assert_eq!(answer.all(ENFORCED), [format!("script-src 'nonce-{told}'")]);
    }
}

#[test]
fn a_page_that_is_stored_gets_no_nonce_that_it_does_not_know() {
    let scene =
        Scene::with(|config| with_nonce(config).set("security_headers.frame_options", "'SAMEORIGIN'"));
    scene.backend.plain("HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\n\r\n");
    let answer = scene.ask("GET", "/x", &["If-None-Match: \"1\""]);
    assert_eq!((answer.status, policies(&answer)), (304, (vec![], vec![])));
    assert_eq!(answer.header("x-frame-options"), Some("SAMEORIGIN"));
    // Without one, the policy is as on any other answer.
    let scene = Scene::with(ours);
    scene.backend.plain("HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\n\r\n");
    let answer = scene.ask("GET", "/x", &["If-None-Match: \"1\""]);
    assert_eq!((answer.status, answer.all(ENFORCED)), (304, vec![OURS]));
}

#[test]
fn answers_to_upgrades_wear_it_and_a_101_never_does() {
    let scene = Scene::with(|config| {
        config
            .set("csp.policy", "{ connect-src = ['$websocket'], script-src = ['$nonce'] }")
            .set("security_headers.frame_options", "'DENY'")
    });
    let dressed = |answer: &Answer, status: u16| {
        assert_eq!(answer.status, status);
        let policy = answer.header(ENFORCED).unwrap();
        assert!(policy.starts_with("connect-src ws://chat.example.com; script-src 'nonce-"), "{policy}");
        for (name, value) in [
            ("x-frame-options", "DENY"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "strict-origin-when-cross-origin"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{status}");
        }
    };
    let upgrade = |handshake: Handshake| scene.gate.upgrade(&handshake).1;
    dressed(&upgrade(Handshake::to("/ws/")), 401);
    dressed(&upgrade(scene.good("/ws//")), 400);
    dressed(&upgrade(scene.good("/ws/").instead("Sec-WebSocket-Version: 7")), 426);
    for status in ["403 Forbidden", "404 Not Found", "302 Found", "401 Unauthorized"] {
        scene.backend.script(Script::Bytes(
            format!("HTTP/1.1 {status}\r\nContent-Security-Policy: theirs\r\nX-Frame-Options: ALLOW\r\nContent-Length: 2\r\n\r\nno").into(),
        ));
        let (mut client, answer) = scene.gate.upgrade(&scene.good("/ws/"));
        dressed(&answer, status[..3].parse().unwrap());
        assert_eq!(client.body(&answer), b"no");
    }
    scene.backend.script(Script::Bytes(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".into()));
    dressed(&upgrade(scene.good("/ws/")), 500);
    scene.backend.script(Script::Echo(Vec::new()));
    // Both kinds of 101: a session, and one that is accepted to be closed.
    for handshake in [scene.good("/ws/"), Handshake::to("/ws/").page()] {
        let answer = upgrade(handshake);
        assert_eq!(answer.status, 101);
        for name in
            [ENFORCED, REPORTED, "x-frame-options", "x-content-type-options", "referrer-policy", "vary"]
        {
            assert_eq!(answer.all(name), [""; 0], "{}", answer.text);
        }
    }
}
