//! A revocation given to one gate reaches all.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::harness::{Issuer, eventually};
use super::super::operating::desk::ago;
use super::replicas::{await_entries, reach, replica, two};
use super::server::{Redis, a_while};

#[test]
fn each_kind_reaches_the_other_gate_and_closes_its_sockets_within_a_second() {
    let redis = Redis::start();
    let (a, b) = two(&redis.url());
    for (name, what, code, reason) in [
        ("alice", json!({"jti": "alice-jti"}), 4001, "token_revoked"),
        ("bob", json!({"sid": "bob-sid", "reason": "left a laptop"}), 4001, "token_revoked"),
        ("carol", json!({"sub": "carol"}), 4003, "user_revoked"),
        ("dave", json!({"sub": "dave", "issued_before": ago(0)}), 4001, "token_revoked"),
        ("erin", json!({"issued_before": ago(0)}), 4001, "token_revoked"),
    ] {
        // Issued in a second that is over.
        let iat = json!({"iat": super::super::harness::now() - 5});
        let token = a.token(&{
            let mut claims = json!({"sub": name, "jti": format!("{name}-jti"), "sid": format!("{name}-sid")});
            claims.as_object_mut().unwrap().extend(iat.as_object().unwrap().clone());
            claims
        });
        let (here, there) = (a.open(&token), b.open(&token));
        let asked = Instant::now();
        let said = a.revoked(&what);
        assert_eq!(reach(&said), ("shared", true), "{said}");
        assert_eq!(said["closed"], 1);
        there.assert_closed(&b, code, reason);
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        here.assert_closed(&a, code, reason);
        b.assert_unwelcome(&token, reason);
    }
    await_entries(&b, 5);
    let line = |event: &Value| (event["by"].clone(), event["closed"].clone(), event["note"].clone());
    let lines = b.lines("revocation");
    assert_eq!(lines.len(), 5, "a line each: {lines:?}");
    assert_eq!(line(&lines[1]), (json!("redis"), json!(1), json!("left a laptop")));
    let ids = |desk: &super::super::operating::desk::Desk| {
        let page = desk.get("/revocations");
        let mut ids: Vec<_> =
            page["revocations"].as_array().unwrap().iter().map(|row| row["id"].clone().to_string()).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&a), ids(&b), "one name everywhere");
    assert!(b.gate.metrics().contains("sidegate_blacklist_last_contact_timestamp_seconds{feed=\"redis\"} "));
}

#[test]
fn the_moment_of_the_event_is_where_the_measure_begins() {
    let redis = Redis::start();
    let (a, b) = two(&redis.url());
    let sum = || {
        let text = b.gate.metrics();
        let line =
            text.lines().find_map(|line| line.strip_prefix("sidegate_revocation_to_close_seconds_sum "));
        line.unwrap().parse::<f64>().unwrap()
    };
    // An entry of the stream that is a minute old when it is read: that counts, not the time since it was read.
    let live = b.open(&b.token_of("bob"));
    let seconds: u64 = redis.say(&["TIME"]).lines().next().unwrap().parse().unwrap();
    let (id, iss) = (format!("{}-1", (seconds - 60) * 1000), b.issuer.url());
    let fields = ["by", "other", "ttl", "600", "op", "revoke", "kind", "sub", "iss", &iss, "value", "bob"];
    let said = redis.say(&[&["XADD", "sidegate:{v1}:revocations", &id][..], &fields].concat());
    assert_eq!(said, id);
    live.assert_closed(&b, 4003, "user_revoked");
    b.assert_metric("revocation_to_close_seconds_count", 1);
    let minute = sum();
    assert!((59.0..70.0).contains(&minute), "{minute}");
    let live = b.open(&b.token_of("alice"));
    a.revoked(&json!({"sub": "alice"}));
    live.assert_closed(&b, 4003, "user_revoked");
    b.assert_metric("revocation_to_close_seconds_count", 2);
    let took = sum() - minute;
    assert!((0.0..1.0).contains(&took), "{took}");
}

#[test]
fn a_gate_started_later_knows_it_before_it_lets_anybody_in() {
    let redis = Redis::start();
    let issuer = Issuer::start();
    let a = replica(&issuer, &redis.url(), "", |config| config);
    a.revoked(&json!({"sub": "alice"}));
    let b = super::replicas::lonely(&issuer, &redis.url(), "", |config| config);
    // From the first moment: unknown yet is refused, known is refused.
    let token = b.token_of("alice");
    let handshake = || super::super::harness::Handshake::to("/ws/").bearer(&token);
    let refused = eventually("the stream to be read", || {
        let refusal = b.gate.refusal(&handshake());
        assert!(
            [(503, "blacklist_unavailable".to_owned()), (403, "user_revoked".to_owned())].contains(&refusal)
        );
        (refusal.0 == 403).then_some(refusal)
    });
    assert_eq!(refused.1, "user_revoked");
    b.assert_welcome(&b.token_of("bob"));
}

#[test]
fn what_is_taken_back_is_taken_back_everywhere() {
    let redis = Redis::start();
    let (a, b) = two(&redis.url());
    let id = a.revoked(&json!({"sub": "alice"}))["id"].clone();
    await_entries(&b, 1);
    assert_eq!(b.withdraw(&id).status, 204);
    await_entries(&a, 0);
    a.assert_welcome(&a.token_of("alice"));
    let line = a.lines("revocation_withdrawn").remove(0);
    assert_eq!((&line["by"], &line["id"]), (&json!("redis"), &id));
    // Who starts later reads of both.
    let c = replica(&a.issuer, &redis.url(), "", |config| config);
    c.assert_welcome(&c.token_of("alice"));
    // And once more.
    a.revoked(&json!({"sub": "alice"}));
    await_entries(&b, 1);
    await_entries(&c, 1);
}

#[test]
fn it_holds_as_long_as_it_was_asked_for_and_the_longer_of_two_times() {
    let redis = Redis::start();
    let (a, b) = two(&redis.url());
    let first = a.revoked(&json!({"sub": "alice", "ttl": "100s"}));
    let again = b.revoke(&json!({"sub": "alice", "ttl": "500s"}));
    assert!([200, 201].contains(&again.status));
    let until = |desk: &super::super::operating::desk::Desk| {
        let row = desk.get("/revocations")["revocations"][0].clone();
        super::super::operating::desk::millis(&row["revocation"]["expires_at"])
    };
    let asked = super::super::operating::desk::millis(&again.json()["revocation"]["expires_at"]);
    eventually("the longer time", || (until(&a).abs_diff(asked) < 3000).then_some(()));
    assert!(until(&a) > super::super::operating::desk::millis(&first["revocation"]["expires_at"]) + 300_000);
    // A short one ends on the other gate too.
    a.revoked(&json!({"sub": "bob", "ttl": "1s"}));
    let token = b.token_of("bob");
    eventually("it to be heard of", || (b.plain(&token).0 == 403).then_some(()));
    eventually("it to end", || (b.plain(&token).0 == 200).then_some(()));
}

#[test]
fn two_prefixes_are_two_worlds() {
    let redis = Redis::start();
    let issuer = Issuer::start();
    let a = replica(&issuer, &redis.url(), "prefix = 'a:'", |config| config);
    let b = replica(&issuer, &redis.url(), "prefix = 'b:'", |config| config);
    a.revoked(&json!({"sub": "alice"}));
    a_while();
    b.assert_welcome(&b.token_of("alice"));
    assert_eq!(redis.say(&["XLEN", "a:{v1}:revocations"]), "1");
}

#[test]
fn in_shadow_mode_the_other_gate_notes_and_closes_nothing() {
    let redis = Redis::start();
    let issuer = Issuer::start();
    let a = replica(&issuer, &redis.url(), "", |config| config);
    let b = replica(&issuer, &redis.url(), "", |config| config.route("path = '/*'\nmode = 'shadow'"));
    let mut live = b.open(&b.token_of("alice"));
    a.revoked(&json!({"sub": "alice"}));
    await_entries(&b, 1);
    eventually("the note", || {
        (b.gate.metric("would_refuse_total{reason=\"user_revoked\"}") == 1).then_some(())
    });
    live.assert_echo();
}
