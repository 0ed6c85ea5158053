//! How long a revocation holds.

use std::time::Duration;

use serde_json::json;

use super::super::harness::eventually;
use super::desk::{Desk, millis, now_millis};

/// By how much what is told differs from `ttl` milliseconds after `before`.
fn off(told: &serde_json::Value, before: u64, ttl: u64) -> u64 {
    millis(&told["revocation"]["expires_at"]).abs_diff(before + ttl)
}

#[test]
fn what_has_expired_lets_in_again_and_is_gone_from_the_list() {
    let desk = Desk::new();
    let token = desk.token_of("alice");
    // 2 s, so that some of it is left whatever it is rounded to.
    desk.revoked(&json!({"sub": "alice", "ttl": "2s"}));
    desk.assert_unwelcome(&token, "user_revoked");
    eventually("its end", || (desk.plain(&token).0 == 200).then_some(()));
    desk.assert_welcome(&token);
    let page = desk.get("/revocations");
    assert_eq!((&page["total"], &page["revocations"]), (&json!(0), &json!([])));
    eventually("it to be swept up", || (desk.gate.metric("blacklist_entries") == 0).then_some(()));
    // It is no longer known.
    desk.revoked(&json!({"sub": "alice"}));
}

#[test]
fn the_time_is_what_was_asked_for_else_the_retention() {
    let desk = Desk::with(|config| config.set("blacklist.retention", "'2h'"));
    let hour = 3_600_000;
    for (sub, ttl, lasts) in [
        ("a", json!(null), 2 * hour),
        ("b", json!("30m"), hour / 2),
        ("c", json!("7days"), 7 * 24 * hour),
        ("d", json!("1h 30m"), hour * 3 / 2),
    ] {
        let before = now_millis();
        let told = desk.revoked(&json!({"sub": sub, "ttl": ttl}));
        assert!(off(&told, before, lasts) < 5000, "{told}");
    }
}

#[test]
fn what_is_said_again_holds_for_the_longer_of_both_times_and_the_last_reason_counts() {
    let desk = Desk::new();
    let say = |ttl: &str, reason: Option<&str>, status: u16| {
        let said = desk.revoke(&json!({"sub": "alice", "ttl": ttl, "reason": reason}));
        assert_eq!(said.status, status, "{said:?}");
        said.json()["revocation"].clone()
    };
    let first = say("1h", Some("stolen laptop"), 201);
    assert_eq!(first["reason"], "stolen laptop");
    let shorter = say("1m", None, 200);
    assert_eq!(shorter, first, "a shorter time shortens nothing, and no reason takes none away");
    let longer = say("2h", Some("left the company"), 200);
    assert_eq!(longer["reason"], "left the company");
    assert!(millis(&longer["expires_at"]) > millis(&first["expires_at"]) + 3_000_000);
    assert_eq!(desk.get("/revocations")["revocations"][0]["revocation"], longer);
    assert_eq!(desk.gate.metric("blacklist_entries"), 1);
}

#[test]
fn a_revocation_holds_for_all_of_its_time() {
    let desk = Desk::new();
    let token = desk.token_of("alice");
    for ttl in [900, 1500, 700] {
        let before = now_millis();
        let told = desk.revoked(&json!({"sub": "alice", "ttl": format!("{ttl}ms")}));
        let ends = millis(&told["revocation"]["expires_at"]);
        assert!(ends >= before + ttl, "told to end {} ms too early", before + ttl - ends);
        while now_millis() < before + ttl - 100 {
            assert_eq!(desk.plain(&token).0, 403, "{} ms too early", before + ttl - now_millis());
            std::thread::sleep(Duration::from_millis(20));
        }
        eventually("its end", || (desk.plain(&token).0 == 200).then_some(()));
    }
}

#[test]
fn what_has_expired_adds_nothing_to_what_comes_after_it() {
    let desk = Desk::new();
    for _ in 0..3 {
        let late = super::desk::ago(0);
        desk.revoked(&json!({"sub": "alice", "issued_before": late, "ttl": "1ms", "reason": "old"}));
        eventually("its end", || (desk.get("/revocations")["total"] == 0).then_some(()));
        let early = super::desk::ago(600);
        let told = desk.revoked(&json!({"sub": "alice", "issued_before": early}));
        assert_eq!(told["revocation"]["issued_before"], early);
        assert_eq!(told["revocation"]["reason"], json!(null));
        assert_eq!(desk.withdraw(&told["id"]).status, 204);
    }
}
