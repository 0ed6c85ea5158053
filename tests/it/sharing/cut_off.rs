//! Two gates that are cut off from each other.

use serde_json::json;

use super::super::harness::{Handshake, Issuer, eventually};
use super::catching_up::Wire;
use super::replicas::{await_entries, await_loss, await_touch, reach, replica};
use super::server::Redis;

#[test]
fn each_enforces_what_it_was_told_and_together_again_both_enforce_both() {
    let redis = Redis::start();
    let issuer = Issuer::start();
    let wires = [Wire::to(redis.port), Wire::to(redis.port)];
    let limited = |config: super::super::harness::Config| config.set("limits.sessions_per_user", "1");
    let [a, b] = [&wires[0], &wires[1]].map(|wire| replica(&issuer, &wire.url(), "", limited));
    for wire in &wires {
        wire.cut();
    }
    await_loss(&a);
    await_loss(&b);
    assert_eq!(reach(&a.revoked(&json!({"sub": "alice"}))), ("replica", false));
    assert_eq!(reach(&b.revoked(&json!({"sub": "bob"}))), ("replica", false));
    a.assert_unwelcome(&a.token_of("alice"), "user_revoked");
    b.assert_welcome(&b.token_of("alice"));
    a.assert_welcome(&a.token_of("bob"));
    // One session of carol on each: nobody is refused because the other cannot be asked.
    let (on_a, on_b) = (a.open(&a.token_of("carol")), b.open(&b.token_of("carol")));
    for wire in &wires {
        wire.mend();
    }
    for desk in [&a, &b] {
        await_touch(desk);
        await_entries(desk, 2);
        desk.assert_unwelcome(&desk.token_of("alice"), "user_revoked");
        desk.assert_unwelcome(&desk.token_of("bob"), "user_revoked");
    }
    assert_eq!(redis.say(&["XLEN", "sidegate:{v1}:revocations"]), "2", "each told once");
    let full = |desk: &super::super::operating::desk::Desk| {
        desk.gate.upgrade(&Handshake::to("/ws/").bearer(&desk.token_of("carol"))).1.status == 429
    };
    drop(on_a);
    // The other one still counts, on both.
    assert!(full(&a) && full(&b));
    drop(on_b);
    eventually("both places to be free", || (!full(&a)).then_some(()));
}
