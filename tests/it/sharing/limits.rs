//! Sessions of one user over all replicas.

use std::time::Duration;

use tokio::time::Instant;

use super::super::harness::{Config, Gate, Handshake, Issuer, Running, eventually};
use super::super::operating::desk::{Desk, Live};
use super::replicas::{await_loss, await_touch, replica, with_redis};
use super::server::{Redis, a_while};

fn limited(limit: u32) -> impl Fn(Config) -> Config {
    move |config| config.set("limits.sessions_per_user", &limit.to_string())
}

fn two(redis: &Redis, configure: impl Fn(Config) -> Config) -> (Desk, Desk) {
    let issuer = Issuer::start();
    (replica(&issuer, &redis.url(), "", &configure), replica(&issuer, &redis.url(), "", &configure))
}

fn refused(desk: &Desk, name: &str) -> bool {
    let (_, answer) = desk.gate.upgrade(&Handshake::to("/ws/").bearer(&desk.token_of(name)));
    assert!([101, 429].contains(&answer.status), "{}", answer.text);
    answer.status == 429
}

fn close(mut live: Live) {
    live.client.send(&super::super::harness::masked(0x88, &1000_u16.to_be_bytes()));
    live.client.close();
}

#[test]
fn they_are_counted_over_both_gates_and_freed_at_the_close() {
    let redis = Redis::start();
    let (a, b) = two(&redis, limited(3));
    let alice = [a.open(&a.token_of("alice")), b.open(&b.token_of("alice")), a.open(&a.token_of("alice"))];
    for desk in [&a, &b] {
        let token = desk.token_of("alice");
        assert_eq!(
            desk.refusals(&token),
            ((429, "user_sessions_exceeded".into()), (4029, "user_sessions_exceeded".into()))
        );
        desk.assert_welcome(&desk.token_of("bob"));
    }
    let [first, ..] = alice;
    close(first);
    eventually("the place to be free on the other gate", || (!refused(&b, "alice")).then_some(()));
    assert_eq!(a.gate.metric("limit_alone_total") + b.gate.metric("limit_alone_total"), 0);
}

#[test]
fn of_fifty_at_once_over_two_gates_no_more_than_the_limit_get_in() {
    let redis = Redis::start();
    let (a, b) = two(&redis, limited(5));
    let token = a.token_of("alice");
    let answers: Vec<_> = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..50)
            .map(|n| {
                let (gate, token): (&Gate, _) = (if n % 2 == 0 { &a.gate } else { &b.gate }, &token);
                scope.spawn(move || gate.upgrade(&Handshake::to("/ws/").bearer(token)))
            })
            .collect();
        tries.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(answers.iter().filter(|(_, answer)| answer.status == 101).count(), 5);
    drop(answers);
    eventually("all places to be free", || (!refused(&a, "alice")).then_some(()));
}

#[test]
fn the_oldest_gives_way_wherever_it_is() {
    let redis = Redis::start();
    let (a, b) = two(&redis, |config| limited(2)(config).set("limits.on_user_limit", "'close_oldest'"));
    let oldest = a.open(&a.token_of("alice"));
    a_while();
    let second = b.open(&b.token_of("alice"));
    a_while();
    let mut third = b.open(&b.token_of("alice"));
    oldest.assert_closed(&a, 4029, "user_sessions_exceeded");
    let mut fourth = a.open(&a.token_of("alice"));
    second.assert_closed(&b, 4029, "user_sessions_exceeded");
    third.assert_echo();
    fourth.assert_echo();
    assert_eq!(redis.say(&["EXISTS", "sidegate:{v1}:replicas"]), "1");
}

#[test]
fn on_a_route_in_shadow_mode_nobody_gives_way() {
    let redis = Redis::start();
    let (a, b) = two(&redis, |config| {
        limited(1)(config)
            .set("limits.on_user_limit", "'close_oldest'")
            .route("path = '/ws/'")
            .route("path = '/shadow'\nmode = 'shadow'")
    });
    let mut shadowed = a.live(&Handshake::to("/shadow").bearer(&a.token_of("alice")));
    let mut second = b.open(&b.token_of("alice"));
    a_while();
    shadowed.assert_echo();
    second.assert_echo();
}

#[test]
fn out_of_touch_each_counts_its_own_refuses_nobody_for_that_and_says_so() {
    let mut redis = Redis::start();
    let (a, b) = two(&redis, limited(2));
    let _held = [a.open(&a.token_of("alice")), b.open(&b.token_of("alice"))];
    assert!(refused(&a, "alice"));
    redis.kill();
    await_loss(&a);
    let _more = a.open(&a.token_of("alice"));
    assert!(refused(&a, "alice"), "its own are two");
    assert_eq!(a.gate.metric("limit_alone_total"), 2);
    redis.restart();
    await_touch(&a);
    await_touch(&b);
    // Whoever was let in alone is counted with all others.
    assert!(refused(&b, "alice"));
}

#[test]
fn paused_a_handshake_waits_no_longer_than_100_ms() {
    let redis = Redis::start();
    let (a, _b) = two(&redis, limited(2));
    redis.pause();
    let asked = Instant::now();
    let mut live = a.open(&a.token_of("alice"));
    assert!(asked.elapsed() < Duration::from_millis(1000), "{:?}", asked.elapsed());
    live.assert_echo();
    redis.resume();
}

#[test]
fn a_lease_that_was_lost_is_begun_anew_with_all_that_is_held() {
    let redis = Redis::start();
    let (a, b) = two(&redis, limited(1));
    let _live = a.open(&a.token_of("alice"));
    // As an eviction does it, or the end of a lease while the gate was stopped.
    for key in redis.say(&["KEYS", "sidegate:{v1}:sessions:*"]).lines() {
        redis.say(&["DEL", key]);
    }
    // Who asks finds out.
    let _bob = a.open(&a.token_of("bob"));
    let since = Instant::now();
    while !refused(&b, "alice") {
        assert!(since.elapsed() < Duration::from_secs(12), "never told again");
        a_while();
    }
}

#[test]
fn a_gate_that_goes_takes_its_sessions_along_at_once_and_one_that_is_killed_within_30_s() {
    const SESSIONS: usize = 1000;
    let redis = Redis::start();
    let (a, b) = two(&redis, limited(1000));
    let text = with_redis(Config::new(&a.issuer, &a.backend), &redis.url(), "")
        .set("limits.sessions_per_user", "1000")
        .text();
    let mut program = Some(Running::start(&text, &[], &[]));
    program.as_ref().unwrap().says("blacklist_redis_in_touch", 1);
    let token = a.token_of("alice");
    let held: Vec<_> = (0..SESSIONS)
        .map(|_| {
            let (client, answer) = program.as_ref().unwrap().upgrade(&Handshake::to("/ws/").bearer(&token));
            assert_eq!(answer.status, 101, "{}", answer.text);
            client
        })
        .collect();
    assert!(refused(&b, "alice"));
    // SIGKILL: nobody says goodbye.
    let killed = Instant::now();
    drop(program.take());
    assert!(refused(&b, "alice"), "its lease holds on");
    while refused(&b, "alice") {
        assert!(killed.elapsed() < Duration::from_secs(32), "counted for ever");
        a_while();
    }
    drop(held);
    // One that drains says so.
    let _one = a.open(&a.token_of("alice"));
    drop(a);
    eventually("its lease to end", || {
        (redis.say(&["KEYS", "sidegate:{v1}:sessions:*"]).lines().count() == 1).then_some(())
    });
}
