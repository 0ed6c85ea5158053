//! Limits that change: whoever is in stays in, whoever comes is counted by what holds now.

use serde_json::json;

use super::super::harness::{Backend, Config, Followed, Gate, Handshake, Issuer, eventually, masked};
use super::outcome;

fn good(issuer: &Issuer) -> Handshake {
    Handshake::to("/").bearer(&issuer.good_token())
}

fn left(gate: &Gate, sessions: usize) {
    eventually("sessions to leave", || {
        let inner = gate.control.gate();
        (inner.sessions.count() == sessions && inner.permits.taken() as usize == sessions).then_some(())
    });
}

#[test]
fn sessions_in_all_may_be_lowered_below_those_that_there_are() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |n: &str| Config::new(&issuer, &backend).set("limits.sessions", n);
    let gate = Followed::start(&config("4"));
    let mut clients: Vec<_> = (0..4).map(|_| gate.open(&good(&issuer))).collect();
    assert_eq!(outcome(&gate, &good(&issuer)), "503 sessions_full");
    gate.reload(&config("2"));
    clients.iter_mut().for_each(Gate::assert_echo);
    // Three, then two are still too many.
    for left in [3, 2] {
        clients.pop();
        self::left(&gate, left);
        assert_eq!(outcome(&gate, &good(&issuer)), "503 sessions_full");
    }
    clients.pop();
    left(&gate, 1);
    clients.push(gate.open(&good(&issuer)));
    assert_eq!(outcome(&gate, &good(&issuer)), "503 sessions_full");
    gate.reload(&config("3"));
    clients.push(gate.open(&good(&issuer)));
    assert_eq!(outcome(&gate, &good(&issuer)), "503 sessions_full");
    gate.reload(&config("'off'"));
    assert_eq!(outcome(&gate, &good(&issuer)), "101");
    drop(clients);
    left(&gate, 0);
}

#[test]
fn sessions_of_a_user_and_of_an_address_may_be_lowered_and_raised() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    for (key, reason) in [
        ("sessions_per_user", "user_sessions_exceeded"),
        ("sessions_per_address", "address_sessions_exceeded"),
    ] {
        let config = |n: &str| Config::new(&issuer, &backend).set(&format!("limits.{key}"), n);
        let refused = format!("429 {reason}");
        let gate = Followed::start(&config("3"));
        let mut clients: Vec<_> = (0..3).map(|_| gate.open(&good(&issuer))).collect();
        gate.reload(&config("2"));
        clients.iter_mut().for_each(Gate::assert_echo);
        assert_eq!(outcome(&gate, &good(&issuer)), refused);
        clients.pop();
        left(&gate, 2);
        assert_eq!(outcome(&gate, &good(&issuer)), refused);
        clients.pop();
        left(&gate, 1);
        clients.push(gate.open(&good(&issuer)));
        gate.reload(&config("3"));
        clients.push(gate.open(&good(&issuer)));
        assert_eq!(outcome(&gate, &good(&issuer)), refused);
        gate.reload(&config("'off'"));
        clients.push(gate.open(&good(&issuer)));
    }
}

#[test]
fn whom_a_limit_closes_may_change() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |what: &str| {
        Config::new(&issuer, &backend).set("limits.sessions_per_user", "1").set("limits.on_user_limit", what)
    };
    let gate = Followed::start(&config("'refuse'"));
    let mut first = gate.open(&good(&issuer));
    assert_eq!(outcome(&gate, &good(&issuer)), "429 user_sessions_exceeded");
    gate.reload(&config("'close_oldest'"));
    Gate::assert_echo(&mut first);
    let mut second = gate.open(&good(&issuer));
    assert_eq!(first.close(), (4029, "user_sessions_exceeded".into()));
    Gate::assert_echo(&mut second);
}

#[test]
fn sessions_that_began_while_a_limit_was_off_do_not_count_under_it() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    for (key, reason) in [
        ("sessions_per_user", "user_sessions_exceeded"),
        ("sessions_per_address", "address_sessions_exceeded"),
    ] {
        let config = Config::new(&issuer, &backend);
        let gate = Followed::start(&config);
        let mut before = [(); 2].map(|()| gate.open(&good(&issuer)));
        gate.reload(&config.set(&format!("limits.{key}"), "2"));
        let _after = [(); 2].map(|()| gate.open(&good(&issuer)));
        before.iter_mut().for_each(Gate::assert_echo);
        assert_eq!(outcome(&gate, &good(&issuer)), format!("429 {reason}"));
    }
}

#[test]
fn attempts_are_limited_by_what_holds_now() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |rate: &str| Config::new(&issuer, &backend).set("limits.attempts_per_address", rate);
    let gate = Followed::start(&config("'off'"));
    let bad = Handshake::to("/");
    for _ in 0..30 {
        assert_eq!(outcome(&gate, &bad), "401 token_missing");
    }
    gate.reload(&config("'3/60s'"));
    for _ in 0..3 {
        assert_eq!(outcome(&gate, &bad), "401 token_missing");
    }
    assert_eq!(outcome(&gate, &bad), "429 attempts_exceeded");
    assert_eq!(outcome(&gate, &good(&issuer)), "429 attempts_exceeded");
    gate.reload(&config("'50/60s'"));
    assert_eq!(outcome(&gate, &bad), "401 token_missing");
    assert_eq!(outcome(&gate, &good(&issuer)), "101");
    gate.reload(&config("'2/60s'"));
    assert_eq!(
        outcome(&gate, &good(&issuer)),
        "429 attempts_exceeded",
        "what was refused before is not forgotten"
    );
    gate.reload(&config("'off'"));
    assert_eq!(outcome(&gate, &good(&issuer)), "101");
}

#[test]
fn a_session_keeps_the_limits_that_it_began_with_and_the_next_one_has_the_new() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |size: &str| Config::new(&issuer, &backend).set("limits.message", size);
    let gate = Followed::start(&config("'1KiB'"));
    let large = masked(0x82, &[b'x'; 1500]);
    let mut small = gate.open(&good(&issuer));
    gate.reload(&config("'2KiB'"));
    let mut wide = gate.open(&good(&issuer));
    gate.reload(&config("'512B'"));
    wide.send(&large);
    assert_eq!(wide.frame().payload.len(), 1500);
    small.send(&masked(0x82, &[b'x'; 900]));
    assert_eq!(small.frame().payload.len(), 900);
    small.send(&large);
    assert_eq!(small.close(), (1009, "message_too_big".into()));
    let mut narrow = gate.open(&good(&issuer));
    narrow.send(&masked(0x82, &[b'x'; 900]));
    assert_eq!(narrow.close(), (1009, "message_too_big".into()));
}

#[test]
fn connections_in_all_may_be_lowered_and_raised() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |n: &str| Config::new(&issuer, &backend).set("listen.max_connections", n);
    let gate = Followed::start(&config("3"));
    let mut clients = [(); 2].map(|()| gate.open(&good(&issuer)));
    gate.reload(&config("2"));
    let mut waiting = gate.send(&good(&issuer).bytes());
    eventually("accepting to rest", || gate.log_text().contains("accept_paused").then_some(()));
    waiting.stays_silent(std::time::Duration::from_millis(150));
    clients.iter_mut().for_each(Gate::assert_echo);
    gate.reload(&config("3"));
    assert_eq!(waiting.head().status, 101);
}

#[test]
fn a_route_that_gets_a_limit_of_its_own_counts_apart() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |lines: &str| {
        let config = Config::new(&issuer, &backend).set("limits.sessions_per_user", "1");
        config.route("path = '/a/'").route(&format!("path = '/b/'\n{lines}"))
    };
    let to = |path: &str| Handshake::to(path).bearer(&issuer.token(&json!({})));
    let gate = Followed::start(&config(""));
    let _first = gate.open(&to("/a/"));
    assert_eq!(outcome(&gate, &to("/b/")), "429 user_sessions_exceeded");
    gate.reload(&config("limits = { sessions_per_user = 1 }"));
    let _second = gate.open(&to("/b/"));
    assert_eq!(outcome(&gate, &to("/b/")), "429 user_sessions_exceeded");
}
