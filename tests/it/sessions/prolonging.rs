//! A newer token of the same login prolongs a session.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::harness::{Client, Gate, Handshake, Issuer, eventually, masked};
use super::wire::{Upstream, Wire, bare_config};

/// Claims of one login that end so long from now.
fn lasting(seconds: f64, changes: &Value) -> Value {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64();
    let mut claims =
        json!({"exp": now + seconds, "iat": now - 10.0, "sid": "s-1", "sub": "alice", "azp": "web"});
    claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    claims
}

fn gate(upstream: &Upstream, issuer: &Issuer, lines: &str) -> Gate {
    let config = bare_config(&format!("http://{}", upstream.address)).issuer(issuer, "leeway = '0s'\n");
    Gate::start(&config.tables(lines))
}

fn open(upstream: &Upstream, gate: &Gate, issuer: &Issuer, claims: &Value) -> (Client, Wire) {
    upstream.pair(gate, &Handshake::to("/ws/").bearer(&issuer.token(claims)))
}

/// A plain request with this token, which the backend answers.
fn call(gate: &Gate, upstream: &Upstream, token: &str) {
    let request = format!(
        "GET /api HTTP/1.1\r\nHost: chat.example.com\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    );
    let mut client = gate.send(request.as_bytes());
    let mut wire = upstream.accept();
    wire.head();
    wire.send(b"HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(client.head().status, 204);
}

fn assert_alive(client: &mut Client, wire: &mut Wire) {
    client.send(&masked(0x81, b"alive"));
    assert_eq!(wire.frame().payload, b"alive");
}

fn extended(gate: &Gate, result: &str) -> u64 {
    gate.metric(&format!("websocket_extensions_total{{result=\"{result}\"}}"))
}

const REQUIRED: &str = "[http]\nauth = 'required'\n[[route]]\npath = '/ws/'\n";
const PASSED: &str = "[[route]]\npath = '/ws/'\n";

#[test]
fn a_newer_token_on_any_request_prolongs_the_session_and_then_it_ends_with_that() {
    for lines in [REQUIRED, PASSED] {
        let (issuer, upstream) = (Issuer::start(), Upstream::start());
        let gate = gate(&upstream, &issuer, lines);
        let (mut client, mut wire) = open(&upstream, &gate, &issuer, &lasting(1.0, &json!({})));
        call(&gate, &upstream, &issuer.token(&lasting(2.2, &json!({}))));
        eventually("the extension", || (extended(&gate, "extended") == 1).then_some(()));
        std::thread::sleep(Duration::from_millis(1300));
        assert_alive(&mut client, &mut wire);
        assert_eq!(client.close(), (4001, "token_expired".into()));
        assert_eq!((extended(&gate, "extended"), extended(&gate, "refused")), (1, 0));
    }
}

#[test]
fn another_handshake_of_the_same_login_prolongs_it_too() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = gate(&upstream, &issuer, PASSED);
    let (mut client, mut wire) = open(&upstream, &gate, &issuer, &lasting(0.8, &json!({})));
    let _second = open(&upstream, &gate, &issuer, &lasting(30.0, &json!({})));
    std::thread::sleep(Duration::from_millis(1100));
    assert_alive(&mut client, &mut wire);
    assert_eq!(extended(&gate, "extended"), 1);
}

#[test]
fn only_a_token_of_the_same_login_that_is_no_older_and_tells_the_backend_the_same_prolongs() {
    for (what, changes, told) in [
        ("another session", json!({"sid": "s-2"}), 0),
        ("no session", json!({"sid": null}), 0),
        ("another user", json!({"sub": "bob"}), 0),
        ("another client", json!({"azp": "cli"}), 0),
        ("issued earlier", json!({"iat": 1}), 0),
        ("a role was lost", json!({"realm_access": {"roles": []}}), 1),
        ("another name", json!({"preferred_username": "mallory"}), 1),
    ] {
        let (issuer, upstream) = (Issuer::start(), Upstream::start());
        let gate = gate(
            &upstream,
            &issuer,
            "[http]\nauth = 'required'\n[[route]]\npath = '/ws/'\nroles = ['chat']\n",
        );
        let roles = json!({"realm_access": {"roles": ["chat"]}, "preferred_username": "alice"});
        let (mut client, _wire) = open(&upstream, &gate, &issuer, &lasting(0.9, &roles));
        let mut newer = lasting(30.0, &roles);
        newer.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        for _ in 0..2 {
            call(&gate, &upstream, &issuer.token(&newer));
        }
        assert_eq!(client.close(), (4001, "token_expired".into()), "{what}");
        assert_eq!((extended(&gate, "extended"), extended(&gate, "refused")), (0, told * 2), "{what}");
    }
}

#[test]
fn a_token_that_is_not_good_or_revoked_prolongs_nothing_and_extend_false_means_it() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = gate(
        &upstream,
        &issuer,
        "[[route]]\npath = '/ws/'\nsession = { extend = false }\n[[route]]\npath = '/long/'\n",
    );
    let (mut fixed, _a) = open(&upstream, &gate, &issuer, &lasting(0.9, &json!({})));
    call(&gate, &upstream, &issuer.token(&lasting(30.0, &json!({}))));
    for changes in [json!({"aud": "other"}), json!({"exp": 1}), json!({"typ": "Refresh"})] {
        let mut claims = lasting(30.0, &json!({}));
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        call(&gate, &upstream, &issuer.token(&claims));
    }
    assert_eq!(fixed.close(), (4001, "token_expired".into()));
    assert_eq!(extended(&gate, "extended"), 0);
}
