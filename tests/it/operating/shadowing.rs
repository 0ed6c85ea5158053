//! What is told of revocations: lines of the log, metrics, and routes in shadow mode, which only tell.

use serde_json::{Value, json};

use super::super::harness::{Handshake, eventually};
use super::desk::{Desk, ago, frames};

/// Fields of a line but for its time and level.
fn told(line: &Value) -> Value {
    let mut line = line.clone();
    let members = line.as_object_mut().unwrap();
    assert_eq!(members.remove("level"), Some(json!("info")));
    assert!(members.remove("time").is_some_and(|time| time.as_str().unwrap().ends_with('Z')));
    line
}

#[test]
fn each_revocation_leaves_a_line_with_who_asked_what_it_named_and_how_many_it_closed() {
    let desk = Desk::new();
    let guests = [desk.open(&desk.token_of("alice")), desk.open(&desk.token_of("alice"))];
    let moment = ago(60);
    let table = [
        (json!({"sub": "alice", "reason": "left"}), "user_revoked", 2),
        (json!({"jti": "j", "ttl": "1h"}), "token_revoked", 0),
        (json!({"sid": "s"}), "token_revoked", 0),
        (json!({"sub": "bob", "issued_before": moment}), "token_revoked", 0),
        (json!({"issued_before": moment}), "token_revoked", 0),
    ];
    for (asked, reason, closed) in table {
        let answer = desk.revoked(&asked);
        let mut expected = json!({"event": "revocation", "reason": reason, "by": "127.0.0.1",
            "id": answer["id"], "iss": desk.issuer.url(), "closed": closed, "would_close": 0,
            "expires_at": answer["revocation"]["expires_at"]});
        for name in ["jti", "sid", "sub", "issued_before"] {
            if let Some(value) = asked.get(name) {
                expected[name] = value.clone();
            }
        }
        if let Some(note) = asked.get("reason") {
            expected["note"] = note.clone();
        }
        assert_eq!(told(desk.lines("revocation").last().unwrap()), expected);
    }
    let id = desk.get("/revocations")["revocations"][0]["id"].clone();
    desk.withdraw(&id);
    let line = desk.lines("revocation_withdrawn").pop().unwrap();
    assert_eq!(told(&line), json!({"event": "revocation_withdrawn", "by": "127.0.0.1", "id": id}));
    for guest in guests {
        guest.assert_closed(&desk, 4003, "user_revoked");
    }
    let closed = eventually("their lines", || Some(desk.lines("session_closed")).filter(|l| l.len() == 2));
    for line in closed {
        assert_eq!(
            (&line["reason"], &line["code"], &line["sub"]),
            (&json!("user_revoked"), &json!(4003), &json!("alice"))
        );
    }
    desk.assert_metric("revocation_to_close_seconds_count", 2);
}

#[test]
fn nothing_that_is_asked_for_can_forge_a_line() {
    for format in ["'text'", "'json'"] {
        let desk = Desk::with(|config| config.set("log.format", format));
        let evil = "x\n2026-01-01T00:00:00Z ERROR forged by=nobody\r\u{1b}[2J \"quoted\" \u{85}\u{2028}";
        let before = desk.gate.log_text().lines().count();
        desk.revoked(&json!({"sub": evil, "reason": evil}));
        let text = desk.gate.log_text();
        assert_eq!(text.lines().count(), before + 1, "{text:?}");
        assert!(!text.contains('\u{1b}') && !text.contains('\r'), "{text:?}");
    }
}

#[test]
fn the_time_until_the_close_is_observed_for_each_session() {
    let desk = Desk::new();
    let live: Vec<_> = (0..5).map(|_| desk.open(&desk.token_of("alice"))).collect();
    desk.revoked(&json!({"sub": "alice"}));
    for live in live {
        live.assert_closed(&desk, 4003, "user_revoked");
    }
    desk.assert_metric("revocation_to_close_seconds_count", 5);
    // An unusable clock would be seen: whole seconds, or since the epoch.
    let text = desk.gate.metrics();
    let sum = text.lines().find_map(|line| line.strip_prefix("sidegate_revocation_to_close_seconds_sum "));
    let sum: f64 = sum.unwrap().parse().unwrap();
    assert!(sum > 0.0 && sum < 5.0, "{sum} s for five sessions");
    // What an operator closes is no revocation.
    let live = desk.open(&desk.token_of("bob"));
    desk.ask("DELETE /sessions?all=true");
    live.assert_closed(&desk, 1012, "operator_closed");
    desk.assert_metric("revocation_to_close_seconds_count", 5);
}

#[test]
fn routes_in_shadow_mode_tell_and_close_nobody() {
    let desk =
        Desk::with(|config| config.route("path = '/shadow/*'\nmode = 'shadow'").route("path = '/ws/'"));
    let token = desk.token_of("alice");
    let to = || Handshake::to("/shadow/x").bearer(&token);
    let (mut shadow, enforced) = (desk.live(&to()), desk.open(&token));
    assert_eq!(desk.revoked(&json!({"sub": "alice"}))["closed"], 1, "that of the enforced route");
    enforced.assert_closed(&desk, 4003, "user_revoked");
    shadow.assert_echo();
    // A new one passes too, as somebody who would not.
    let mut late = desk.live(&to());
    late.assert_echo();
    let would = "would_refuse_total{reason=\"user_revoked\"}";
    assert_eq!(desk.gate.metric(would), 2);
    let opened = desk.lines("session_opened").pop().unwrap();
    assert_eq!((&opened["would_refuse"], &opened["mode"]), (&json!("user_revoked"), &json!("shadow")));
    let request = super::desk::request(
        "GET /shadow/api",
        &["Host: chat.example.com", &format!("Authorization: Bearer {token}"), "Connection: close"],
        "",
    );
    assert_eq!(desk.gate.ask(&request).0.status, 200);
    assert_eq!(desk.gate.metric(would), 3);
    assert_eq!(desk.gate.refused("user_revoked"), 0);
    for live in [&shadow, &late] {
        let heard = desk.backend.heard()[live.number].clone();
        assert!(frames(&heard.after).iter().all(|frame| frame.opcode() == 1), "a Close at the backend");
    }
    // An operator's own word counts there as well.
    assert_eq!(desk.ask("DELETE /sessions?all=true").json()["closed"], 2);
    shadow.assert_closed(&desk, 1012, "operator_closed");
    late.assert_closed(&desk, 1012, "operator_closed");
}

#[test]
fn a_live_session_in_shadow_mode_that_would_be_closed_is_told() {
    let desk = Desk::with(|config| config.route("path = '/shadow/*'\nmode = 'shadow'"));
    let mut live = desk.live(&Handshake::to("/shadow/x").bearer(&desk.token_of("alice")));
    desk.revoked(&json!({"sub": "alice"}));
    live.assert_echo();
    eventually("what would have been", || {
        (desk.gate.metric("would_refuse_total{reason=\"user_revoked\"}") == 1).then_some(())
    });
    live.client.finish();
    let closed = desk.gate.logged("session_closed");
    assert_eq!(closed["would_refuse"], "user_revoked");
}
