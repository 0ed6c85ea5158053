//! The blacklist that a backend keeps itself.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::json;
use tokio::time::Instant;

use super::super::harness::{Config, Handshake, Issuer, eventually};
use super::super::operating::desk::Desk;
use super::replicas::{await_loss, lonely, replica};
use super::server::{Redis, a_while};

fn desk(redis: &Redis, more: &str, configure: impl FnOnce(Config) -> Config) -> Desk {
    replica(&Issuer::start(), &redis.url(), more, configure)
}

fn sha256(token: &str) -> String {
    let digest = digest(&SHA256, token.as_bytes());
    digest.as_ref().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

const ALL: &str =
    "keys = ['j:{jti}', 's:{iss}:{sid}', 'u:{sub}', 't:{token}', 'h:{token_sha256}'], sweep = 'off'";

#[test]
fn each_kind_of_key_is_honoured_at_the_handshake_whatever_its_value() {
    let redis = Redis::start();
    let desk = desk(&redis, ALL, |config| config);
    let iss = desk.issuer.url();
    for (name, key, reason) in [
        ("alice", "j:alice-jti".to_owned(), "token_revoked"),
        ("bob", format!("s:{iss}:bob-sid"), "token_revoked"),
        ("carol", "u:carol".to_owned(), "user_revoked"),
        ("dave", "t:TOKEN".to_owned(), "token_revoked"),
        ("erin", "h:SHA256".to_owned(), "token_revoked"),
    ] {
        let token = desk.token_of(name);
        desk.assert_welcome(&token);
        let key = key.replace("TOKEN", &token).replace("SHA256", &sha256(&token));
        assert_eq!(redis.say(&["SET", &key, "0", "EX", "600"]), "OK");
        desk.assert_unwelcome(&token, reason);
        // Another type of value, and the key gone.
        redis.say(&["DEL", &key]);
        redis.say(&["LPUSH", &key, "x"]);
        desk.assert_unwelcome(&token, reason);
        redis.say(&["DEL", &key]);
        desk.assert_welcome(&token);
    }
}

#[test]
fn a_token_without_the_claim_is_not_asked_for() {
    let redis = Redis::start();
    let desk = desk(&redis, "keys = ['u:{sub}', 's:{sid}']", |config| config);
    redis.say(&["SET", "u:", "1"]);
    redis.say(&["SET", "s:", "1"]);
    desk.assert_welcome(&desk.token(&json!({"sub": null, "sid": null})));
    // What a claim says is no pattern.
    redis.say(&["SET", "u:alice", "1"]);
    for sub in ["*", "alic?", "{sub}", "alice\r\nx"] {
        desk.assert_welcome(&desk.token(&json!({"sub": sub})));
    }
}

#[test]
fn live_sessions_are_swept_also_those_whose_token_was_renewed() {
    let redis = Redis::start();
    let desk =
        desk(&redis, "keys = ['u:{sub}', 't:{token}', 'h:{token_sha256}'], sweep = '200ms'", |config| config);
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| desk.token_of(name));
    let [live_alice, live_bob, mut live_carol] = [&alice, &bob, &carol].map(|token| desk.open(token));
    redis.say(&["SET", "u:alice", "1"]);
    live_alice.assert_closed(&desk, 4003, "user_revoked");
    redis.say(&["SET", &format!("t:{bob}"), "1"]);
    live_bob.assert_closed(&desk, 4001, "token_revoked");
    live_carol.assert_echo();
    let line = desk.lines("revocation").remove(1);
    assert_eq!((&line["by"], &line["sub"], &line["closed"]), (&json!("keys"), &json!("bob"), &json!(1)));
    // Carol lives by a newer token: it is that one that counts.
    let newer = desk.token(
        &json!({"sub": "carol", "jti": "2", "sid": "carol-sid", "exp": super::super::harness::now() + 900}),
    );
    assert_eq!(desk.plain(&newer).0, 200);
    redis.say(&["SET", &format!("h:{}", sha256(&carol)), "1"]);
    a_while();
    a_while();
    live_carol.assert_echo();
    redis.say(&["SET", &format!("h:{}", sha256(&newer)), "1"]);
    live_carol.assert_closed(&desk, 4001, "token_revoked");
    desk.assert_metric("revocation_to_close_seconds_count", 3);
}

#[test]
fn a_handshake_that_still_dials_is_swept_too() {
    let redis = Redis::start();
    let desk = desk(&redis, "keys = ['u:{sub}'], sweep = '100ms'", |config| config);
    desk.backend.hold();
    let mut client = desk.gate.send(&Handshake::to("/ws/").bearer(&desk.token_of("alice")).bytes());
    desk.backend.request(0);
    redis.say(&["SET", "u:alice", "1"]);
    let answer = client.head();
    assert_eq!((answer.status, client.json(&answer)["reason"].as_str()), (403, Some("user_revoked")));
}

#[test]
fn without_an_answer_nobody_is_let_in_and_within_100_ms() {
    let redis = Redis::start();
    let desk = desk(&redis, "keys = ['u:{sub}']", |config| config.set("session.on_expiry", "'keep'"));
    let lenient = replica(&desk.issuer, &redis.url(), "keys = ['u:{sub}']", |config| {
        config.set("blacklist.on_stale", "'allow'")
    });
    let token = desk.token_of("alice");
    let mut live = desk.open(&token);
    let refused = (503, "blacklist_unavailable".to_owned());
    redis.pause();
    let asked = Instant::now();
    assert_eq!(desk.plain(&token), refused);
    let took = asked.elapsed();
    assert!((90..1000).contains(&took.as_millis()), "{took:?}");
    assert_eq!(lenient.plain(&token).0, 200, "told to rather let in");
    live.assert_echo();
    redis.resume();
    eventually("the next answer", || (desk.plain(&token).0 == 200).then_some(()));
}

#[test]
fn out_of_touch_nobody_is_let_in_at_once_and_live_sessions_stay() {
    let mut redis = Redis::start();
    let desk = desk(&redis, "keys = ['u:{sub}'], sweep = '100ms'", |config| config);
    let token = desk.token_of("alice");
    let mut live = desk.open(&token);
    redis.kill();
    await_loss(&desk);
    assert_eq!(desk.plain(&token), (503, "blacklist_unavailable".to_owned()));
    assert_eq!(desk.gate.refusal(&Handshake::to("/ws/").bearer(&token)).1, "blacklist_unavailable");
    live.assert_echo();
    redis.restart();
    eventually("it to be back", || (desk.plain(&token).0 == 200).then_some(()));
}

#[test]
fn slow_is_as_good_as_away_for_a_handshake() {
    let redis = Redis::start();
    let desk = desk(&redis, "keys = ['u:{sub}']", |config| config);
    let token = desk.token_of("alice");
    // For half a second it answers nobody.
    let debug = redis.say(&["CONFIG", "GET", "enable-debug-command"]);
    assert!(debug.contains("enable-debug-command"), "{debug}");
    let slow = std::thread::spawn({
        let port = redis.port.to_string();
        move || {
            let script = "local t = redis.call('TIME')[1] * 1 local u = redis.call('TIME')[2] * 1 repeat local n = redis.call('TIME') until (n[1] - t) * 1000000 + n[2] - u > 600000 return 1";
            std::process::Command::new("redis-cli")
                .args(["-p", &port, "EVAL", script, "0"])
                .output()
                .unwrap();
        }
    });
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(desk.plain(&token), (503, "blacklist_unavailable".to_owned()));
    slow.join().unwrap();
    eventually("it to be quick again", || (desk.plain(&token).0 == 200).then_some(()));
}

#[test]
fn in_shadow_mode_it_is_noted_once_and_closed_never() {
    let redis = Redis::start();
    let desk = desk(&redis, "keys = ['u:{sub}'], sweep = '100ms'", |config| {
        config.route("path = '/*'\nmode = 'shadow'")
    });
    let mut live = desk.open(&desk.token_of("alice"));
    redis.say(&["SET", "u:alice", "1"]);
    desk.assert_metric("would_refuse_total{reason=\"user_revoked\"}", 1);
    a_while();
    desk.assert_metric("would_refuse_total{reason=\"user_revoked\"}", 1);
    live.assert_echo();
}

#[test]
fn a_password_and_a_user_who_may_do_no_more_than_is_needed_are_enough() {
    let redis = Redis::start();
    let rules = [
        "ACL",
        "SETUSER",
        "gate",
        "on",
        ">s3cret",
        "~sidegate:*",
        "%R~u:*",
        "+@connection",
        "+info",
        "+time",
        "+exists",
        "+xadd",
        "+xrange",
        "+xrevrange",
        "+xread",
        "+xdel",
        "+set",
        "+del",
        "+eval",
        "+evalsha",
        "+script|load",
        "+zadd",
        "+zrem",
        "+zrange",
        "+zscore",
        "+zlexcount",
        "+zrangebylex",
        "+pexpire",
        "+sadd",
        "+srem",
        "+smembers",
        "+multi",
        "+exec",
    ];
    assert_eq!(redis.say(&rules), "OK");
    redis.say(&["ACL", "SETUSER", "default", "-@all", "+ping"]);
    let url = redis.url().replace("redis://", "redis://gate:s3cret@");
    let a = replica(&Issuer::start(), &url, "keys = ['u:{sub}']", |config| {
        config.set("limits.sessions_per_user", "1")
    });
    let live = a.open(&a.token_of("alice"));
    assert_eq!(
        a.gate.refusal(&Handshake::to("/ws/").bearer(&a.token_of("alice"))).1,
        "user_sessions_exceeded"
    );
    assert_eq!(a.revoked(&json!({"sub": "alice"}))["scope"], "shared");
    live.assert_closed(&a, 4003, "user_revoked");
    assert_eq!(a.gate.metric("limit_alone_total"), 0);
    assert!(a.lines("blacklist_redis_lost").is_empty());
    // Without the password there is nothing.
    let b = lonely(&a.issuer, &redis.url(), "", |config| config);
    assert_eq!(b.plain(&b.token_of("bob")).0, 503);
    let told = b.gate.logged("blacklist_redis_lost");
    assert!(told["message"].as_str().unwrap().contains("permissions"), "{told}");
}
