//! Where a request says it comes from, and what it says twice.

use super::super::harness::{Gate, Handshake};
use super::{Scene, get};

const FORWARDED: [&str; 22] = [
    "Forwarded: for=mallory;host=mallory;proto=mallory",
    "X-Forwarded-For: 6.6.6.6",
    "x-forwarded-for: 6.6.6.7",
    "X_Forwarded_For: 6.6.6.8",
    "X-Forwarded_For: 6.6.6.9",
    "X-Real-IP: 6.6.6.10",
    "X_Real_IP: 6.6.6.11",
    "X-Forwarded-Host: mallory",
    "X_Forwarded_Host: mallory",
    "X-Forwarded-Proto: mallory",
    "X_Forwarded_Proto: mallory",
    "X-Forwarded-Port: 6666",
    "X-Forwarded-Server: mallory",
    "X-Forwarded-Prefix: /mallory",
    "X-Forwarded-Uri: /none/mallory",
    "X-Forwarded-User: mallory",
    "X-Forwarded-Method: mallory",
    "Daphne-Root-Path: /mallory",
    "DAPHNE_ROOT_PATH: /mallory",
    "Proxy: http://mallory",
    "X-CSP-Nonce: mallory",
    "X-Request-ID: mallory \"",
];

#[test]
fn forwarding_headers_of_a_client_are_replaced_and_never_passed() {
    for profile in ["'generic'", "'daphne'"] {
        let scene = Scene::with(|config| config.set("upstream.profile", profile));
        let handshake = FORWARDED.iter().fold(scene.good("/ws/"), |handshake, line| handshake.with(line));
        drop(scene.gate.open(&handshake));
        let bearer = format!("Authorization: Bearer {}", scene.issuer.good_token());
        let lines: Vec<&str> = FORWARDED.into_iter().chain([bearer.as_str()]).collect();
        assert_eq!(scene.status(&get("/", &lines)), 200);
        for n in [0, 1] {
            let heard = scene.backend.request(n);
            assert_eq!(heard.header("x-auth-subject").as_deref(), Some("alice-sub"));
            assert!(!heard.text().contains("mallory"), "{}", heard.text());
            assert!(!heard.text().contains("6.6.6.") && !heard.text().contains("6666"), "{}", heard.text());
            assert_eq!(heard.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
            assert_eq!(heard.header("x-real-ip").as_deref(), Some("127.0.0.1"));
            assert_eq!(heard.header("x-forwarded-host").as_deref(), Some("chat.example.com"));
            assert_eq!(heard.header("x-forwarded-proto").as_deref(), Some("http"));
            assert_eq!(heard.header("x-forwarded-port").as_deref(), Some("80"));
            for name in ["forwarded", "daphne-root-path", "proxy", "x-csp-nonce", "x-forwarded-prefix"] {
                assert_eq!(heard.all(name), [""; 0], "{name}");
            }
        }
    }
}

#[test]
fn forwarding_headers_and_the_user_agent_open_no_route() {
    let scene = Scene::with(|config| {
        config
            .route("path = '/*'")
            .route("path = '/none/*'\nauth = 'none'")
            .set("listen.hosts", "['chat.example.com']")
    });
    let tricks = [
        "X-Forwarded-Uri: /none/",
        "X-Original-URL: /none/",
        "X-Original-URI: /none/",
        "X-Rewrite-URL: /none/",
        "X-Forwarded-Method: OPTIONS",
        "X-HTTP-Method-Override: OPTIONS",
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-Proto: https",
        "User-Agent: kube-probe/1.30",
        "User-Agent: GoogleHC/1.0",
        "User-Agent: ELB-HealthChecker/2.0",
    ];
    for trick in tricks {
        assert_eq!(scene.gate.refusal(&Handshake::to("/ws/").with(trick)), (401, "token_missing".into()));
        for path in ["/ws/", "/livez", "/readyz", "/metrics", "/drained", "/sessions", "/drain"] {
            assert_eq!(scene.status(&get(path, &[trick])), 401, "{path} {trick}");
        }
    }
    let elsewhere =
        Handshake::to("/none/").instead("Host: evil.example").with("X-Forwarded-Host: chat.example.com");
    assert_eq!(scene.gate.refusal(&elsewhere), (400, "host_denied".into()));
    scene.backend.assert_never_heard();
}

#[test]
fn a_security_header_that_is_repeated_is_refused() {
    let scene = Scene::with(|config| config.set("token.from", "['header', 'cookie:__Host-t']"));
    let token = scene.issuer.good_token();
    let good = || scene.good("/").page();
    for (handshake, status, label) in [
        (scene.good("/").bearer(&token), 400, "token_ambiguous"),
        (scene.good("/").with("Authorization: Basic eHg6eHg="), 400, "token_ambiguous"),
        (scene.good("/").with("Host: chat.example.com"), 400, "request_malformed"),
        (scene.good("/").with("Host: evil.example"), 400, "request_malformed"),
        (scene.good("/").without("Host"), 400, "request_malformed"),
        (good().with(&format!("Sec-WebSocket-Key: {}", Handshake::KEY)), 400, "upgrade_malformed"),
        (good().with("Sec-WebSocket-Version: 13"), 426, "upgrade_version"),
    ] {
        assert_eq!(scene.gate.refusal(&handshake), (status, label.into()), "{:?}", handshake.lines);
    }
    let page = good().origin("https://chat.example.com");
    assert_eq!(scene.gate.refusal_by_close(&page), (4003, "origin_denied".into()));
    let page = good().origin("https://evil.example");
    assert_eq!(scene.gate.refusal_by_close(&page), (4003, "origin_denied".into()));
    let cookies = Handshake::to("/").page();
    let twice = cookies.clone().with(&format!("Cookie: __Host-t={token}")).with("Cookie: __Host-t=other");
    assert_eq!(scene.gate.refusal_by_close(&twice), (4003, "token_ambiguous".into()));
    let once = cookies.with(&format!("Cookie: __Host-t={token}; a=b; __Host-t={token}"));
    assert_eq!(scene.gate.refusal_by_close(&once), (4003, "token_ambiguous".into()));
    scene.backend.assert_never_heard();
}

#[test]
fn an_origin_that_only_looks_like_an_allowed_one_is_denied() {
    let scene = Scene::with(|config| {
        config.set("origin.allow", "['self', 'https://app.example.org', 'https://*.example.net']")
    });
    for origin in [
        "https://evil.example",
        "https://chat.example.com.evil.example",
        "https://evilchat.example.com",
        "https://chat.example.com:8443",
        "https://chat.example.com@evil.example",
        "https://chat.example.com/",
        "https://chat.example.com.",
        "https://app.example.org.evil.example",
        "http://app.example.org",
        "https://example.net",
        "https://evilexample.net",
        "https://a.example.net.evil.example",
        "null",
        "file://",
        "*",
    ] {
        let refusal = scene.gate.refusal_by_close(&scene.good("/").origin(origin));
        assert_eq!(refusal, (4003, "origin_denied".into()), "{origin}");
    }
    scene.backend.assert_never_heard();
    for origin in ["https://chat.example.com", "https://app.example.org", "https://a.b.example.net"] {
        Gate::assert_echo(&mut scene.gate.open(&scene.good("/").origin(origin)));
    }
}
