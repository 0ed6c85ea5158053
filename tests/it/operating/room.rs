//! `[blacklist] max_entries`: full is full, and nothing is ever pushed out.

use serde_json::{Value, json};

use super::super::harness::eventually;
use super::desk::Desk;

fn full(desk: &Desk, what: &Value) {
    let said = desk.revoke(what);
    assert_eq!(said.status, 507, "{what}: {said:?}");
    assert!(said.detail().contains("[blacklist] max_entries"), "{said:?}");
}

#[test]
fn when_it_is_full_a_new_one_is_507_and_the_old_ones_hold() {
    let desk = Desk::with(|config| config.set("blacklist.max_entries", "3"));
    let names = ["alice", "bob", "carol"];
    for name in names {
        desk.revoked(&json!({"sub": name}));
    }
    let mut live = desk.open(&desk.token_of("dave"));
    for what in
        [json!({"sub": "dave"}), json!({"jti": "dave-jti"}), json!({"issued_before": super::desk::ago(0)})]
    {
        full(&desk, &what);
    }
    // Nothing of what was refused holds in part.
    live.assert_echo();
    desk.assert_welcome(&desk.token_of("dave"));
    for name in names {
        desk.assert_unwelcome(&desk.token_of(name), "user_revoked");
    }
    assert_eq!(desk.gate.metric("blacklist_entries"), 3);
    assert_eq!(desk.gate.metric("blacklist_rejected_total"), 3);
    assert_eq!(desk.get("/revocations")["total"], 3);
    assert_eq!(desk.lines("revocation").len(), 3);
    // What is known needs no room.
    assert_eq!(desk.revoke(&json!({"sub": "alice", "ttl": "48h"})).status, 200);
    // One that is taken back makes room for one.
    let page = desk.get("/revocations");
    assert_eq!(desk.withdraw(&page["revocations"][1]["id"]).status, 204);
    assert_eq!(desk.revoked(&json!({"sub": "dave"}))["closed"], 1);
    live.assert_closed(&desk, 4003, "user_revoked");
    full(&desk, &json!({"sub": "erin"}));
    assert_eq!(desk.gate.metric("blacklist_entries"), 3);
}

#[test]
fn one_that_has_expired_makes_room() {
    let desk = Desk::with(|config| config.set("blacklist.max_entries", "1"));
    desk.revoked(&json!({"sub": "alice", "ttl": "1s"}));
    eventually("room", || (desk.gate.metric("blacklist_entries") == 0).then_some(()));
    desk.revoked(&json!({"sub": "bob"}));
    full(&desk, &json!({"sub": "alice"}));
}

#[test]
fn one_that_has_expired_makes_room_at_once() {
    let desk = Desk::with(|config| config.set("blacklist.max_entries", "1"));
    for name in ["alice", "bob", "carol"] {
        desk.revoked(&json!({"sub": name, "ttl": "1ms"}));
        eventually("its end", || (desk.get("/revocations")["total"] == 0).then_some(()));
    }
}
