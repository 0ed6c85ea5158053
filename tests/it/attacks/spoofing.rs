//! Headers that a client must not say.

use serde_json::json;

use super::super::harness::{Gate, Handshake, Heard};
use super::{Scene, get};

/// Whatever stands for somebody else.
const MALLORY: &str = "mallory";

/// Identity headers in every spelling that some backend folds to the real one.
const SPELLINGS: [&str; 12] = [
    "X-Auth-Subject",
    "x-auth-subject",
    "X-AUTH-SUBJECT",
    "X_Auth_Subject",
    "X-Auth_Subject",
    "x_auth-subject",
    "X-Auth-Username",
    "X_AUTH_USERNAME",
    "X-Auth-Email",
    "X-Auth-Roles",
    "X_Auth_Roles",
    "X-Other-Id",
];

fn spoofed() -> Vec<String> {
    SPELLINGS.iter().map(|name| format!("{name}: {MALLORY}")).collect()
}

fn spoofing(handshake: Handshake) -> Handshake {
    spoofed().iter().fold(handshake, |handshake, line| handshake.with(line))
}

/// Nothing of Mallory's has arrived, and the identity is exactly this one.
fn assert_identity(heard: &Heard, subject: Option<&str>) {
    assert!(!heard.text().contains(MALLORY), "{}", heard.text());
    assert_eq!(heard.header("x-auth-subject").as_deref(), subject, "{}", heard.text());
}

fn scene() -> Scene {
    Scene::with(|config| {
        config
            .route("path = '/required/'")
            .route("path = '/optional/'\nauth = 'optional'")
            .route("path = '/none/'\nauth = 'none'")
            .route("path = '/shadow/'\nmode = 'shadow'")
            .route("path = '/pass/'\nhttp = 'pass'")
            .set("http.auth", "'pass'")
            .route("path = '/other/'\nidentity = { headers = { X-Other-Id = 'sub' } }")
    })
}

#[test]
fn identity_headers_of_a_client_never_reach_the_backend_of_an_upgrade() {
    let scene = scene();
    let good = scene.issuer.good_token();
    let expired = scene.issuer.token(&json!({"exp": 1_000_000_000}));
    let foreign = scene.issuer.token(&json!({"aud": "somebody-else"}));
    for (n, (path, token, subject)) in [
        ("/required/", Some(&good), Some("alice-sub")),
        ("/optional/", Some(&good), Some("alice-sub")),
        ("/optional/", None, None),
        ("/none/", None, None),
        ("/none/", Some(&good), None),
        ("/shadow/", Some(&good), Some("alice-sub")),
        ("/shadow/", None, None),
        ("/shadow/", Some(&expired), None),
        ("/shadow/", Some(&foreign), None),
        ("/shadow/", Some(&"x.y.z".to_owned()), None),
    ]
    .into_iter()
    .enumerate()
    {
        let handshake = spoofing(Handshake::to(path));
        drop(scene.gate.open(&token.into_iter().fold(handshake, |handshake, token| handshake.bearer(token))));
        let heard = scene.backend.request(n);
        assert!(heard.line().contains(path), "{path}: {}", heard.line());
        assert_identity(&heard, subject);
    }
}

#[test]
fn identity_headers_of_a_client_never_reach_the_backend_of_a_plain_request() {
    let scene = scene();
    let bearer = format!("Authorization: Bearer {}", scene.issuer.good_token());
    for (n, (path, token, subject)) in [
        ("/required/", true, Some("alice-sub")),
        ("/optional/", true, Some("alice-sub")),
        ("/optional/", false, None),
        ("/none/", true, None),
        ("/pass/", true, None),
        ("/no/such/route", true, None),
        ("/shadow/", false, None),
    ]
    .into_iter()
    .enumerate()
    {
        let mut lines = spoofed();
        lines.extend(token.then(|| bearer.clone()));
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_eq!(scene.status(&get(path, &lines)), 200, "{path}");
        assert_identity(&scene.backend.request(n), subject);
    }
}

#[test]
fn a_claim_that_the_token_lacks_leaves_no_room_for_the_clients_own_header() {
    let scene = scene();
    let token = scene.issuer.token(&json!({"email": null, "preferred_username": null, "realm_access": null}));
    drop(scene.gate.open(&spoofing(Handshake::to("/required/")).bearer(&token)));
    let heard = scene.backend.request(0);
    assert_identity(&heard, Some("alice-sub"));
    for name in ["x-auth-email", "x-auth-username", "x-auth-roles"] {
        assert_eq!(heard.header(name), None, "{name}");
    }
}

#[test]
fn a_claim_cannot_become_more_than_one_header_value() {
    let scene = Scene::new();
    let token = scene.issuer.token(&json!({
        "sub": "a\r\nX-Auth-Roles: admin",
        "preferred_username": "b\u{85}X-Auth-Roles: admin",
        "email": "100%, c",
        "realm_access": {"roles": ["user,admin"]},
    }));
    drop(scene.gate.open(&Handshake::to("/").bearer(&token)));
    let heard = scene.backend.request(0);
    assert_eq!(heard.header("x-auth-subject").unwrap(), "a%0D%0AX-Auth-Roles:%20admin");
    assert_eq!(heard.header("x-auth-username").unwrap(), "b%C2%85X-Auth-Roles:%20admin");
    assert_eq!(heard.header("x-auth-email").unwrap(), "100%25,%20c");
    assert_eq!(heard.header("x-auth-roles"), None);
    assert_eq!(scene.gate.logged("identity_header_left_out")["header"], "x-auth-roles");
}

#[test]
fn a_connection_header_cannot_name_away_what_the_gate_adds() {
    let scene = Scene::new();
    let names = "X-Auth-Subject, X-Auth-Roles, X-Forwarded-For, X-Real-IP, X-Forwarded-Proto, Host, X-Request-ID";
    let line = format!("Connection: keep-alive, Upgrade, {names}");
    drop(scene.gate.open(&scene.good("/").instead(&line)));
    let bearer = format!("Authorization: Bearer {}", scene.issuer.good_token());
    assert_eq!(scene.status(&get("/", &[&format!("Connection: {names}"), &bearer])), 200);
    for (n, connection) in [(0, Some("Upgrade")), (1, None)] {
        let heard = scene.backend.request(n);
        assert_identity(&heard, Some("alice-sub"));
        assert_eq!(heard.header("x-auth-roles").as_deref(), Some("user"));
        assert_eq!(heard.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
        assert_eq!(heard.header("x-real-ip").as_deref(), Some("127.0.0.1"));
        assert_eq!(heard.header("x-forwarded-proto").as_deref(), Some("http"));
        assert_eq!(heard.header("host").as_deref(), Some("chat.example.com"));
        assert!(heard.header("x-request-id").is_some());
        assert_eq!(heard.header("connection").as_deref(), connection, "the client's own list went on");
    }
}

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
            assert_identity(&heard, Some("alice-sub"));
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
        config.route("path = '/*'").route("path = '/none/*'\nauth = 'none'").set(
            "listen.hosts",
            "['chat.example.com']",
        )
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
    let elsewhere = Handshake::to("/none/").instead("Host: evil.example").with("X-Forwarded-Host: chat.example.com");
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

#[test]
fn bytes_at_which_daphne_splits_a_header_do_not_reach_it() {
    let line = b"X-Note: a\x85X-Auth-Roles: admin\r\n";
    for (profile, passes) in [("'daphne'", false), ("'generic'", true)] {
        let scene = Scene::with(|config| config.set("upstream.profile", profile));
        let mut upgrade = scene.good("/").bytes();
        upgrade.splice(upgrade.len() - 2.., [line.as_slice(), b"\r\n"].concat());
        assert_eq!(scene.status(&upgrade), 101, "{profile}");
        let heard = scene.backend.request(0);
        assert_eq!(heard.head.contains(&0x85), passes, "{profile}: {}", heard.text());
        assert_eq!(heard.header("x-auth-roles").as_deref(), Some("user"));
    }
}
