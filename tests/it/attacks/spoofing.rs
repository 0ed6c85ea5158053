//! Headers that a client must not say.

use serde_json::json;

use super::super::harness::{Handshake, Heard};
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
    let names =
        "X-Auth-Subject, X-Auth-Roles, X-Forwarded-For, X-Real-IP, X-Forwarded-Proto, Host, X-Request-ID";
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
