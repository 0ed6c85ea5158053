//! The server is killed, paused, restarted empty, throws things out, is full, has another password.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::super::harness::{Config, Handshake, Issuer, eventually};
use super::catching_up::Wire;
use super::replicas::{await_entries, await_loss, await_touch, lonely, reach, replica, two};
use super::server::{Redis, a_while};

fn impatient(config: Config) -> Config {
    config.set("blacklist.stale_after", "'1s'")
}

#[test]
fn killed_what_is_known_holds_and_what_is_posted_holds_here() {
    let mut redis = Redis::start();
    let (a, b) = two(&redis.url());
    a.revoked(&json!({"sub": "alice"}));
    await_entries(&b, 1);
    redis.kill();
    await_loss(&a);
    await_loss(&b);
    for desk in [&a, &b] {
        desk.assert_unwelcome(&desk.token_of("alice"), "user_revoked");
        desk.assert_welcome(&desk.token_of("carol"));
    }
    let live = a.open(&a.token_of("bob"));
    let asked = Instant::now();
    let said = a.revoked(&json!({"sub": "bob"}));
    assert!(asked.elapsed() < Duration::from_secs(1), "nobody waits for who is away: {:?}", asked.elapsed());
    assert_eq!(reach(&said), ("replica", false), "{said}");
    live.assert_closed(&a, 4003, "user_revoked");
    assert_eq!(a.lines("revocation_not_shared").len(), 1);
    assert_eq!(a.lines("blacklist_redis_lost").len(), 1, "once, not at each attempt");
    b.assert_welcome(&b.token_of("bob"));
    // It comes back empty: all that still holds is told again, and by one of them.
    redis.restart();
    await_entries(&b, 2);
    b.assert_unwelcome(&b.token_of("bob"), "user_revoked");
    eventually("both entries in the stream", || {
        (redis.say(&["XLEN", "sidegate:{v1}:revocations"]) == "2").then_some(())
    });
    let c = replica(&a.issuer, &redis.url(), "", |config| config);
    await_entries(&c, 2);
    assert_eq!(reach(&c.revoked(&json!({"sub": "dave"}))), ("shared", true));
    await_entries(&a, 3);
}

#[test]
fn what_was_asked_for_while_it_was_away_is_not_what_was_taken_back_before_or_elsewhere() {
    let redis = Redis::start();
    let issuer = Issuer::start();
    let wires = [Wire::to(redis.port), Wire::to(redis.port)];
    let [a, b] = [&wires[0], &wires[1]].map(|wire| replica(&issuer, &wire.url(), "", |config| config));
    // Revoked and taken back: both stand in the stream.
    let alice = a.revoked(&json!({"sub": "alice"}))["id"].clone();
    let bob = a.revoked(&json!({"sub": "bob"}))["id"].clone();
    await_entries(&b, 2);
    assert_eq!(a.withdraw(&alice).status, 204);
    await_entries(&b, 1);
    // Revoked again where nobody else hears of it; and bob here and there, where he is let in again.
    wires[1].cut();
    await_loss(&b);
    assert_eq!(reach(&b.revoked(&json!({"sub": "alice"}))), ("replica", false));
    assert_eq!(reach(&b.revoke(&json!({"sub": "bob", "ttl": "2h"})).json()), ("replica", false));
    assert_eq!(a.withdraw(&bob).status, 204);
    wires[1].mend();
    await_touch(&b);
    await_entries(&a, 2);
    for desk in [&a, &b] {
        desk.assert_unwelcome(&desk.token_of("alice"), "user_revoked");
        desk.assert_unwelcome(&desk.token_of("bob"), "user_revoked");
    }
    // Who starts now finds the same.
    let c = replica(&issuer, &redis.url(), "", |config| config);
    await_entries(&c, 2);
    // And told once, it can be taken back by anybody.
    assert_eq!(c.withdraw(&bob).status, 204);
    await_entries(&b, 1);
}

#[test]
fn a_server_that_kept_all_is_read_as_a_whole_and_what_was_taken_back_closes_nobody() {
    let mut redis = Redis::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (a, b) = two(&redis.url());
    for name in ["alice", "bob"] {
        let id = a.revoked(&json!({"sub": name}))["id"].clone();
        await_entries(&b, 1);
        assert_eq!(a.withdraw(&id).status, 204);
        await_entries(&b, 0);
    }
    a.revoked(&json!({"sub": "carol"}));
    await_entries(&b, 1);
    let mut bob = b.open(&b.token_of("bob"));
    redis.kill();
    await_loss(&a);
    await_loss(&b);
    assert_eq!(reach(&b.revoked(&json!({"sub": "alice"}))), ("replica", false));
    redis.restart();
    for desk in [&a, &b] {
        await_touch(desk);
        await_entries(desk, 2);
        for name in ["alice", "carol"] {
            desk.assert_unwelcome(&desk.token_of(name), "user_revoked");
        }
        desk.assert_welcome(&desk.token_of("bob"));
    }
    bob.assert_echo();
}

#[test]
fn restarted_empty_it_is_told_again_what_holds_and_each_thing_once() {
    let mut redis = Redis::start();
    let (a, b) = two(&redis.url());
    let c = replica(&a.issuer, &redis.url(), "", |config| config);
    for name in ["alice", "bob", "carol"] {
        a.revoked(&json!({"sub": name}));
    }
    for desk in [&a, &b, &c] {
        await_entries(desk, 3);
    }
    redis.kill();
    for desk in [&a, &b, &c] {
        await_loss(desk);
    }
    redis.restart();
    let there = || redis.say(&["XLEN", "sidegate:{v1}:revocations"]);
    eventually("all three in the stream", || (there() == "3").then_some(()));
    // Whoever else was about to do so has looked again.
    for desk in [&a, &b, &c] {
        await_touch(desk);
    }
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(there(), "3", "each once");
    let again = [&a, &b, &c].map(|desk| desk.lines("revocations_published_again").len());
    assert_eq!(again.iter().sum::<usize>(), 1, "{again:?}");
    let late = replica(&a.issuer, &redis.url(), "", |config| config);
    await_entries(&late, 3);
}

#[test]
fn in_touch_it_is_never_stale_however_short_the_time_and_quiet_the_stream() {
    let redis = Redis::start();
    let desk =
        replica(&Issuer::start(), &redis.url(), "", |config| config.set("blacklist.stale_after", "'2s'"));
    let token = desk.token_of("alice");
    for _ in 0..45 {
        assert_eq!(desk.plain(&token).0, 200);
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn out_of_touch_for_too_long_nobody_new_is_let_in() {
    let mut redis = Redis::start();
    let issuer = Issuer::start();
    let strict = replica(&issuer, &redis.url(), "", impatient);
    let lenient =
        replica(&issuer, &redis.url(), "", |config| impatient(config).set("blacklist.on_stale", "'allow'"));
    let mut live = strict.open(&strict.token_of("alice"));
    redis.kill();
    let handshake = || Handshake::to("/ws/").bearer(&strict.token_of("bob"));
    let refused = (503, "blacklist_unavailable".to_owned());
    eventually("it to be stale", || (strict.gate.upgrade(&handshake()).1.status == 503).then_some(()));
    assert_eq!(strict.gate.refusal(&handshake()), refused);
    live.assert_echo();
    let ready = strict.ask("GET /readyz");
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("[blacklist] redis"), "{ready:?}");
    lenient.assert_welcome(&lenient.token_of("bob"));
    assert_eq!(lenient.ask("GET /readyz").status, 200);
    redis.restart();
    await_touch(&strict);
    eventually("it to be fresh again", || (strict.plain(&strict.token_of("bob")).0 == 200).then_some(()));
    assert_eq!(strict.ask("GET /readyz").status, 200);
}

#[test]
fn never_in_touch_is_stale_from_the_start() {
    let issuer = Issuer::start();
    let url = format!("redis://127.0.0.1:{}", super::server::port());
    let desk = lonely(&issuer, &url, "", |config| config);
    let handshake = Handshake::to("/ws/").bearer(&desk.token_of("alice"));
    assert_eq!(desk.gate.refusal(&handshake), (503, "blacklist_unavailable".into()));
    assert_eq!(desk.ask("GET /readyz").status, 503);
    assert_eq!(desk.gate.logged("blacklist_redis_lost")["level"], "warn");
    // For the alert: since the epoch.
    let contact = "sidegate_blacklist_last_contact_timestamp_seconds{feed=\"redis\"} 0.0\n";
    assert!(desk.gate.metrics().contains(contact), "{}", desk.gate.metrics());
    let lenient = lonely(&issuer, &url, "", |config| config.set("blacklist.on_stale", "'allow'"));
    lenient.assert_welcome(&lenient.token_of("alice"));
}

#[test]
fn paused_it_is_noticed_and_afterwards_all_is_caught_up() {
    let redis = Redis::start();
    let (a, b) = two(&redis.url());
    redis.pause();
    let asked = Instant::now();
    let said = a.revoked(&json!({"sub": "alice"}));
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    assert_eq!(reach(&said), ("replica", false));
    a.assert_unwelcome(&a.token_of("alice"), "user_revoked");
    b.assert_welcome(&b.token_of("alice"));
    redis.resume();
    await_entries(&b, 1);
    b.assert_unwelcome(&b.token_of("alice"), "user_revoked");
    // What was asked twice, before and after, is one.
    a_while();
    assert_eq!(a.get("/revocations")["total"], 1);
}

#[test]
fn thrown_out_the_stream_is_told_again() {
    let redis = Redis::start();
    let (a, b) = two(&redis.url());
    a.revoked(&json!({"sub": "alice"}));
    b.revoked(&json!({"jti": "x"}));
    await_entries(&a, 2);
    // As an eviction does it.
    assert_eq!(redis.say(&["DEL", "sidegate:{v1}:revocations"]), "1");
    a.revoked(&json!({"jti": "y"}));
    let since = Instant::now();
    while redis.say(&["XLEN", "sidegate:{v1}:revocations"]) != "3" {
        assert!(since.elapsed() < Duration::from_secs(12), "not told again");
        a_while();
    }
    let c = replica(&a.issuer, &redis.url(), "", |config| config);
    await_entries(&c, 3);
}

#[test]
fn evicted_for_want_of_memory_it_is_told_again() {
    let redis = Redis::with(&["--maxmemory-policy", "allkeys-random"]);
    let (a, b) = two(&redis.url());
    a.revoked(&json!({"sub": "alice"}));
    await_entries(&b, 1);
    redis.say(&["CONFIG", "SET", "maxmemory", "4mb"]);
    let fill =
        "for i = 1, 2000 do redis.call('SET', 'other:' .. ARGV[1] .. ':' .. i, string.rep('x', 1000)) end";
    let since = Instant::now();
    for n in 0.. {
        redis.say(&["EVAL", fill, "0", &n.to_string()]);
        if redis.say(&["EXISTS", "sidegate:{v1}:revocations"]) == "0" {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(20), "never evicted");
    }
    redis.say(&["CONFIG", "SET", "maxmemory", "0"]);
    let since = Instant::now();
    while redis.say(&["XLEN", "sidegate:{v1}:revocations"]) == "0" {
        assert!(since.elapsed() < Duration::from_secs(15), "not told again");
        a_while();
    }
    let late = replica(&a.issuer, &redis.url(), "", |config| config);
    late.assert_unwelcome(&late.token_of("alice"), "user_revoked");
}

#[test]
fn who_may_throw_out_is_warned_of() {
    let redis = Redis::with(&["--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru"]);
    let desk = replica(&Issuer::start(), &redis.url(), "", |config| config);
    let line = desk.gate.logged("blacklist_redis_may_evict");
    assert!(line["message"].as_str().unwrap().contains("allkeys-lru"), "{line}");
    let redis = Redis::with(&["--maxmemory", "50mb", "--maxmemory-policy", "noeviction"]);
    let desk = replica(&Issuer::start(), &redis.url(), "", |config| config);
    assert!(desk.lines("blacklist_redis_may_evict").is_empty());
}

#[test]
fn full_it_takes_nothing_and_the_answer_says_so() {
    let redis = Redis::start();
    let (a, b) = two(&redis.url());
    redis.say(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(reach(&a.revoked(&json!({"sub": "alice"}))), ("replica", false));
    a.assert_unwelcome(&a.token_of("alice"), "user_revoked");
    assert!(super::replicas::is_in_touch(&b), "it answers all the same");
    redis.say(&["CONFIG", "SET", "maxmemory", "0"]);
    let since = Instant::now();
    while b.gate.control.gate().blacklist.len() == 0 {
        assert!(since.elapsed() < Duration::from_secs(15), "not told later");
        a_while();
    }
}

#[test]
fn a_wrong_password_is_told_in_the_servers_words() {
    let redis = Redis::with(&["--requirepass", "right"]);
    let issuer = Issuer::start();
    let wrong = redis.url().replace("redis://", "redis://:wr0ng@");
    let desk = lonely(&issuer, &wrong, "", |config| config);
    let line = desk.gate.logged("blacklist_redis_lost").to_string();
    assert!(line.contains("WRONGPASS") || line.contains("uthentication"), "{line}");
    assert!(!line.contains("wr0ng") && line.contains(&redis.port.to_string()), "{line}");
    assert_eq!(desk.plain(&desk.token_of("alice")), (503, "blacklist_unavailable".into()));
    assert!(!desk.ask("GET /config").body.contains("wr0ng"));
    let right = redis.url().replace("redis://", "redis://:right@");
    let desk = replica(&issuer, &right, "", |config| config);
    desk.assert_welcome(&desk.token_of("alice"));
}
