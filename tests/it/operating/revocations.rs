//! `POST /revocations`: what each kind names, what happens to it, and what the operator is told.

use serde_json::{Value, json};

use super::super::harness::{Gate, Handshake, Issuer, now};
use super::desk::{Desk, Folder, Live, ago, millis, now_millis};

const DAY: u64 = 24 * 3600 * 1000;

/// Alice twice, with sessions of their own, and Bob; all have come a minute ago.
struct Three {
    tokens: [String; 3],
    live: [Live; 3],
}

fn three(desk: &Desk) -> Three {
    let token = |sub: &str, n: u32| {
        let claims =
            json!({"sub": sub, "jti": format!("jti-{n}"), "sid": format!("sid-{n}"), "iat": now() - 60});
        desk.token(&claims)
    };
    let tokens = [token("alice", 1), token("alice", 2), token("bob", 3)];
    let live = [0, 1, 2].map(|n: usize| {
        let mut live = desk.open(&tokens[n]);
        live.assert_echo();
        live
    });
    // Known by now, so that it is cached tokens that are refused.
    for token in &tokens {
        assert_eq!(desk.plain(token).0, 200);
    }
    Three { tokens, live }
}

/// Asks for a revocation and looks at all that it does. `named` = which of the three it names.
fn revoke(desk: &Desk, what: &Value, named: [bool; 3], reason: &str) {
    let three = three(desk);
    let before = now_millis();
    let said = desk.revoke(what);
    assert_eq!(said.status, 201, "{said:?}");
    assert_eq!(said.head.header("content-type"), Some("application/json"));
    let told = said.json();
    let id = told["id"].as_str().unwrap();
    assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    let mut revocation = json!({"iss": desk.issuer.url(), "reason": null});
    for (name, value) in what.as_object().unwrap() {
        revocation[name] = value.clone();
    }
    revocation["expires_at"] = told["revocation"]["expires_at"].clone();
    let closed = named.iter().filter(|named| **named).count();
    let expected =
        json!({"id": id, "revocation": revocation, "closed": closed, "scope": "replica", "durable": false});
    assert_eq!(told, expected);
    // To the second: what it is rounded to is another test's concern.
    let lasts = millis(&revocation["expires_at"]).abs_diff(before + DAY);
    assert!(lasts < 5000, "the retention is the default, but for {lasts} ms");

    let code = if reason == "user_revoked" { 4003 } else { 4001 };
    for ((mut live, token), named) in three.live.into_iter().zip(&three.tokens).zip(named) {
        if named {
            live.assert_closed(desk, code, reason);
            desk.assert_unwelcome(token, reason);
        } else {
            live.assert_echo();
            desk.assert_welcome(token);
        }
    }
    // Said again: known, the same one, and nobody is left to be closed.
    let said = desk.revoke(what);
    assert_eq!((said.status, &said.json()["id"], &said.json()["closed"]), (200, &json!(id), &json!(0)));
    assert_eq!(desk.gate.metric("blacklist_entries"), 1);
    let counter = format!("websocket_closes_total{{reason=\"{reason}\"}}");
    desk.assert_metric(&counter, closed as u64);
    desk.assert_metric("revocation_to_close_seconds_count", closed as u64);

    let said = desk.withdraw(&json!(id));
    assert_eq!((said.status, said.body.as_str()), (204, ""));
    for token in &three.tokens {
        desk.assert_welcome(token);
    }
    assert_eq!(desk.gate.metric("blacklist_entries"), 0);
    assert_eq!(desk.withdraw(&json!(id)).status, 404);
}

#[test]
fn a_token_is_revoked_by_its_jti() {
    revoke(&Desk::new(), &json!({"jti": "jti-1"}), [true, false, false], "token_revoked");
}

#[test]
fn a_session_of_the_issuer_is_revoked_by_its_sid() {
    revoke(&Desk::new(), &json!({"sid": "sid-2"}), [false, true, false], "token_revoked");
}

#[test]
fn a_user_is_blocked_by_sub() {
    revoke(&Desk::new(), &json!({"sub": "alice"}), [true, true, false], "user_revoked");
}

#[test]
fn a_user_is_logged_out_everywhere_by_sub_and_a_moment() {
    let what = json!({"sub": "alice", "issued_before": ago(30)});
    revoke(&Desk::new(), &what, [true, true, false], "token_revoked");
}

#[test]
fn a_whole_issuer_is_logged_out_by_a_moment() {
    revoke(&Desk::new(), &json!({"issued_before": ago(30)}), [true; 3], "token_revoked");
}

#[test]
fn a_moment_names_only_what_was_issued_before_it() {
    let desk = Desk::new();
    let issued = |iat: Value| desk.token(&json!({"sub": "alice", "iat": iat}));
    let (old, new) = (issued(json!(now() - 100)), issued(json!(now() - 10)));
    let (never, fraction) = (issued(Value::Null), issued(json!(0.5)));
    for what in [json!({"sub": "alice", "issued_before": ago(50)}), json!({"issued_before": ago(50)})] {
        let told = desk.revoked(&what);
        for token in [&old, &never, &fraction] {
            desk.assert_unwelcome(token, "token_revoked");
        }
        desk.assert_welcome(&new);
        assert_eq!(desk.withdraw(&told["id"]).status, 204);
    }
}

#[test]
fn who_logs_in_again_after_a_logout_everywhere_is_let_in() {
    let desk = Desk::new();
    let token = |iat| desk.token(&json!({"sub": "alice", "iat": iat}));
    let live = desk.open(&token(now() - 1));
    assert_eq!(desk.revoked(&json!({"sub": "alice", "issued_before": ago(0)}))["closed"], 1);
    live.assert_closed(&desk, 4001, "token_revoked");
    desk.assert_welcome(&token(now() + 1));
    // A later moment says more than the entry did: it is new, and it is still one entry.
    let told = desk.revoked(&json!({"sub": "alice", "issued_before": ago(0)}));
    assert_eq!(desk.revoke(&json!({"sub": "alice", "issued_before": ago(60)})).status, 200);
    let page = desk.get("/revocations");
    assert_eq!(page["total"], 1);
    assert_eq!(page["revocations"][0]["revocation"]["issued_before"], told["revocation"]["issued_before"]);
}

#[test]
fn a_token_without_a_claim_is_not_named_by_it() {
    let desk = Desk::new();
    let token = desk.token(&json!({"sub": null, "jti": null, "sid": null, "iat": now() - 60}));
    let mut live = desk.open(&token);
    for what in [
        json!({"sub": "alice"}),
        json!({"jti": "jti-1"}),
        json!({"sid": "session-1"}),
        json!({"sub": "alice-sub", "issued_before": ago(1)}),
    ] {
        assert_eq!(desk.revoked(&what)["closed"], 0, "{what}");
        live.assert_echo();
        desk.assert_welcome(&token);
    }
    // But its issuer as a whole is its issuer too.
    assert_eq!(desk.revoked(&json!({"issued_before": ago(1)}))["closed"], 1);
    live.assert_closed(&desk, 4001, "token_revoked");
    desk.assert_unwelcome(&token, "token_revoked");
}

#[test]
fn blocked_is_blocked_with_new_tokens_too_and_byte_for_byte() {
    let desk = Desk::new();
    desk.revoked(&json!({"sub": "alice"}));
    for (jti, iat) in [("a", now() - 100), ("b", now()), ("c", now() + 5)] {
        let token = desk.token(&json!({"sub": "alice", "jti": jti, "sid": jti, "iat": iat}));
        desk.assert_unwelcome(&token, "user_revoked");
    }
    for other in ["Alice", "alice ", "alic", "alice\u{0}", "ａlice"] {
        desk.assert_welcome(&desk.token(&json!({"sub": other})));
    }
    // And a kind names its own claim alone.
    desk.assert_welcome(&desk.token(&json!({"sub": "bob", "jti": "alice", "sid": "alice"})));
    // What hinders most is what is told.
    desk.revoked(&json!({"jti": "jti-1"}));
    desk.assert_unwelcome(&desk.token(&json!({"sub": "alice", "jti": "jti-1"})), "user_revoked");
}

#[test]
fn with_two_issuers_the_one_that_is_named_is_meant() {
    let other = Issuer::start();
    let desk = Desk::of(Issuer::start(), Folder::new(), |config, _| config.issuer(&other, ""));
    let ours = || desk.token_of("alice");
    let theirs = other.token(&json!({"sub": "alice", "jti": "alice-jti", "sid": "alice-sid"}));
    let detail = desk.revoke(&json!({"sub": "alice"})).detail();
    assert!(detail.contains("iss") && detail.contains(&other.url()), "{detail}");
    assert_eq!(desk.get("/revocations")["total"], 0);

    for (kind, value) in [("sub", "alice"), ("jti", "alice-jti"), ("sid", "alice-sid")] {
        let (mut live, gone) = (desk.open(&ours()), desk.open(&theirs));
        let told = desk.revoked(&json!({kind: value, "iss": other.url()}));
        let reason = if kind == "sub" { "user_revoked" } else { "token_revoked" };
        assert_eq!((&told["closed"], &told["revocation"]["iss"]), (&json!(1), &json!(other.url())));
        gone.assert_closed(&desk, if kind == "sub" { 4003 } else { 4001 }, reason);
        live.assert_echo();
        desk.assert_welcome(&ours());
        desk.assert_unwelcome(&theirs, reason);
        assert_eq!(desk.withdraw(&told["id"]).status, 204);
    }
    let told = desk.revoked(&json!({"issued_before": ago(0), "iss": desk.issuer.url()}));
    let theirs = other.token(&json!({"sub": "alice", "iat": now() - 60}));
    desk.assert_welcome(&theirs);
    desk.assert_unwelcome(&desk.token(&json!({"iat": now() - 60})), "token_revoked");
    assert_ne!(told["id"], desk.revoked(&json!({"issued_before": ago(0), "iss": other.url()}))["id"]);
    desk.assert_unwelcome(&theirs, "token_revoked");
}

#[test]
fn one_issuer_may_be_named_and_need_not_be() {
    let desk = Desk::new();
    let told = desk.revoked(&json!({"sub": "alice", "iss": desk.issuer.url()}));
    let again = desk.revoke(&json!({"sub": "alice"}));
    assert_eq!((again.status, &again.json()["id"]), (200, &told["id"]));
    assert_eq!(desk.get("/revocations")["total"], 1);
}

#[test]
fn a_revocation_ends_a_handshake_that_waits_for_the_backend() {
    let desk = Desk::new();
    desk.backend.hold();
    let handshake = Handshake::to("/ws/").bearer(&desk.token_of("alice"));
    let mut waiting = desk.gate.send(&[handshake.bytes(), b"early".to_vec()].concat());
    let mut page = desk.gate.send(&handshake.page().bytes());
    desk.backend.request(1);
    assert_eq!(desk.revoked(&json!({"sub": "alice"}))["closed"], 2);
    let answer = waiting.head();
    assert_eq!((answer.status, &waiting.json(&answer)["reason"]), (403, &json!("user_revoked")));
    assert_eq!(page.head().status, 101);
    assert_eq!(page.close(), (4003, "user_revoked".into()));
    desk.backend.release();
    for n in [0, 1] {
        let heard = desk.backend.until(n, "its end", |heard| heard.ended);
        assert_eq!(heard.after, b"", "nothing of the client has followed");
    }
    assert_eq!(desk.gate.metric("websocket_active_connections"), 0);
    assert_eq!(desk.gate.metric("websocket_connections_total{status=\"accepted\"}"), 0);
    assert_eq!(desk.gate.sessions(), 0);
}

#[test]
fn a_token_in_every_carrier_is_revoked() {
    let desk = Desk::with(|config| {
        config.set("token.from", "['header', 'subprotocol', 'query:token', 'cookie:__Host-t']")
    });
    let token = desk.token_of("alice");
    let carriers = [
        Handshake::to("/ws/").bearer(&token),
        Handshake::to(&format!("/ws/?token={token}")),
        Handshake::to("/ws/").with(&format!("Sec-WebSocket-Protocol: Bearer, {token}")),
        Handshake::to("/ws/").with(&format!("Cookie: __Host-t={token}")),
    ]
    .map(|handshake| handshake.origin("http://chat.example.com"));
    for handshake in &carriers {
        Gate::assert_echo(&mut desk.gate.open(handshake));
    }
    desk.revoked(&json!({"jti": "alice-jti"}));
    for handshake in &carriers {
        assert_eq!(desk.gate.refusal_by_close(handshake), (4001, "token_revoked".into()));
    }
}

#[test]
fn a_revoked_token_is_bad_where_one_is_optional_and_of_no_interest_where_none_is_looked_for() {
    let desk = Desk::with(|config| {
        config
            .route("path = '/optional'\nauth = 'optional'")
            .route("path = '/none'\nauth = 'none'")
            .route("path = '/api'\nhttp = 'optional'")
    });
    let token = desk.token_of("alice");
    let live = ["/optional", "/none"].map(|path| desk.live(&Handshake::to(path).bearer(&token)));
    assert_eq!(desk.revoked(&json!({"sub": "alice"}))["closed"], 1);
    let [optional, mut none] = live;
    optional.assert_closed(&desk, 4003, "user_revoked");
    none.assert_echo();
    let refused = (403, "user_revoked".to_owned());
    assert_eq!(desk.gate.refusal(&Handshake::to("/optional").bearer(&token)), refused, "nobody in his place");
    assert_eq!(desk.plain(&token), refused);
    Gate::assert_echo(&mut desk.gate.open(&Handshake::to("/optional")));
    Gate::assert_echo(&mut desk.gate.open(&Handshake::to("/none").bearer(&token)));
}
