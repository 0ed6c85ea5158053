//! `GET /limits` and `GET /config`: what holds, and how much of it is used.

use serde_json::{Value, json};

use super::super::harness::{Handshake, eventually};
use super::desk::{Desk, SECRET, quoted};

#[test]
fn limits_are_told_with_what_is_used_of_them() {
    let desk = Desk::with(|config| {
        config
            .set("limits.attempts_per_address", "'7/90s'")
            .set("limits.sessions", "50")
            .set("limits.sessions_per_address", "5")
            .set("limits.sessions_per_user", "2")
            .set("limits.on_user_limit", "'close_oldest'")
            .route("path = '/ws/'")
            .route("path = '/own'\n[route.limits]\nsessions_per_user = 'off'\nmessages_per_session = '10/1s'")
    });
    let route = |name: &str, user: Value, rate: Value| {
        json!({"route": name, "sessions_per_address": 5, "sessions_per_user": user,
            "on_user_limit": "close_oldest", "messages_per_session": rate})
    };
    let told = desk.get("/limits");
    assert_eq!(
        (&told["attempts_per_address"], &told["attempts_count"]),
        (&json!("7/90s"), &json!("refused"))
    );
    assert_eq!(told["sessions"], 50);
    let mut routes = told["routes"].as_array().unwrap().clone();
    routes.sort_by_key(|route| route["route"].to_string());
    assert_eq!(routes, [route("/own", Value::Null, json!("10/1s")), route("/ws/", json!(2), Value::Null)]);
    let held = |sessions: u32, users: u32, addresses: u32, tracked: u32| {
        json!({"sessions": sessions, "connections": sessions, "users": users, "addresses": addresses,
            "tracked_addresses": tracked})
    };
    assert_eq!(told["held"], held(0, 0, 0, 0));

    let live = [
        desk.open(&desk.token_of("alice")),
        desk.open(&desk.token_of("alice")),
        desk.open(&desk.token_of("bob")),
    ];
    assert_eq!(desk.get("/limits")["held"], held(3, 2, 1, 0));
    desk.gate.refusal(&Handshake::to("/ws/"));
    eventually("the refusal", || (desk.get("/limits")["held"] == held(3, 2, 1, 1)).then_some(()));
    drop(live);
    eventually("all to be let go", || (desk.get("/limits")["held"] == held(0, 0, 0, 1)).then_some(()));
    eventually("the metric", || (desk.gate.metric("limit_tracked_addresses") == 1).then_some(()));
}

#[test]
fn limits_that_are_off_are_null() {
    let desk = Desk::with(|config| config.set("limits.sessions", "'off'"));
    let told = desk.get("/limits");
    assert_eq!((&told["attempts_per_address"], &told["sessions"]), (&Value::Null, &Value::Null));
}

#[test]
fn the_configuration_is_told_as_it_holds_and_its_secrets_are_not() {
    let desk = Desk::with(|config| {
        config
            .set("session.on_expiry", "'keep'")
            .set("identity.payload", "'X-Claims'")
            .route(
                "path = '/ws/{room}'\nclaims = { organization = '{room}' }\n[route.limits]\nmessage = '1KiB'",
            )
            .route("path = '/none'\nauth = 'none'")
    });
    let said = desk.ask("GET /config");
    assert!(!said.body.contains(SECRET), "the operator's token");
    let told = desk.get("/config");
    let at =
        |pointer: &str| told.pointer(pointer).unwrap_or_else(|| panic!("no {pointer} in {told}")).clone();
    // As given, and as it is by default.
    assert_eq!(at("/session/on_expiry"), "keep");
    assert_eq!(at("/blacklist/retention"), "24h");
    assert_eq!(at("/blacklist/max_entries"), 1_000_000);
    assert_eq!(at("/limits/attempts_per_address"), "off");
    assert_eq!(at("/http/auth"), "required");
    assert_eq!(at("/token/from"), json!(["header", "subprotocol", "query:token"]));
    assert_eq!(at("/issuer/0/url"), desk.issuer.url());
    assert_eq!(at("/issuer/0/audiences"), json!(["chat"]));
    assert_eq!(at("/route/0/path"), "/ws/{room}");
    assert_eq!(at("/route/0/claims"), json!({"organization": "{room}"}));
    assert_eq!(at("/route/0/limits/message"), "1KiB");
    assert_eq!(at("/route/1/auth"), "none");
    // Where the token is may be known.
    let file = format!("'{}'", at("/admin/token_file").as_str().unwrap());
    assert_eq!(file, quoted(&desk.folder.path("admin-token")));
    // Every section of the contract that holds on one gate.
    for section in [
        "listen",
        "runtime",
        "admin",
        "upstream",
        "http",
        "issuer",
        "token",
        "identity",
        "origin",
        "limits",
        "session",
        "refuse",
        "blacklist",
        "route",
        "drain",
        "log",
        "metrics",
    ] {
        assert!(told.get(section).is_some(), "no {section} in {told}");
    }
    desk.gate.assert_no_token_was_shown();
}

/// What is told of a configuration with this line in it.
fn problems(section: &str, line: &str) -> String {
    let text =
        format!("[{section}]\n{line}\n[[issuer]]\nurl = 'https://sso.example.com'\naudiences = ['a']\n");
    let loaded = sidegate::app::config::read(&text, std::iter::empty());
    assert!(loaded.config.is_none(), "{line} is taken");
    loaded.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn urls_with_passwords_are_refused_and_not_repeated() {
    for (section, line) in [
        ("upstream", "url = 'http://user:hunter2@127.0.0.1:1'"),
        ("listen", "public_url = 'https://user:hunter2@chat.example.com'"),
    ] {
        let told = problems(section, line);
        assert!(told.contains("***@") && !told.contains("hunter2"), "{told}");
    }
}

#[test]
fn passwords_in_lists_of_urls_are_not_repeated_either() {
    for line in [
        "allow = ['https://user:hunter2@a.example']",
        "allow = ['https://a.example', 'https://u:hunter2@b.example']",
    ] {
        let told = problems("origin", line);
        assert!(!told.contains("hunter2"), "{told}");
    }
}
