//! How many at a time.

use std::time::Duration;

use super::super::harness::{Client, Gate, Handshake, Issuer, eventually, masked};
use super::wire::{Upstream, close_payload, good, goodbye};

#[test]
fn one_session_too_many_is_503_for_everybody_and_a_close_makes_room() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    // A peer that does not end its connection keeps nobody out.
    let config = upstream.config(&issuer).set("session.close_timeout", "'4s'");
    let gate = Gate::start(&config.set("limits.sessions", "2"));
    let (mut first, mut wire) = upstream.pair(&gate, &good(&issuer));
    let (_second, _other) = upstream.pair(&gate, &good(&issuer));
    for handshake in [good(&issuer), good(&issuer).page()] {
        let (mut client, answer) = gate.upgrade(&handshake);
        assert_eq!(answer.status, 503);
        assert_eq!(client.json(&answer)["reason"], "sessions_full");
        assert!(
            answer.header("retry-after").is_some_and(|after| after.parse::<u32>().is_ok()),
            "{}",
            answer.text
        );
        assert_eq!(answer.header("connection"), Some("close"));
    }
    upstream.assert_quiet();
    assert_eq!(gate.refused("sessions_full"), 2);
    assert_eq!(gate.metric("websocket_connections_total{status=\"unavailable\"}"), 2);
    // Plain requests need no permit.
    let mut plain = gate.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut backend = upstream.accept();
    backend.head();
    backend.send(b"HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(plain.head().status, 204);

    first.send(&masked(0x88, &close_payload(1000, "")));
    wire.frame();
    wire.send(&goodbye(1000, ""));
    assert_eq!(first.close().0, 1000);
    // Neither end is closed yet.
    eventually("the permit", || (gate.control.gate().permits.taken() == 1).then_some(()));
    let (mut third, mut wire) = upstream.pair(&gate, &good(&issuer));
    third.send(&masked(0x81, b"in"));
    assert_eq!(wire.frame().payload, b"in");
}

#[test]
fn a_handshake_that_fails_gives_its_permit_back() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer).set("limits.sessions", "1"));
    for _ in 0..3 {
        let mut client = gate.send(&good(&issuer).bytes());
        let mut wire = upstream.accept();
        wire.head();
        wire.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(client.head().status, 403);
        // A client that leaves in the middle of it.
        let client = gate.send(&good(&issuer).bytes());
        let mut wire = upstream.accept();
        wire.head();
        drop(client);
        wire.ends();
    }
    upstream.pair(&gate, &good(&issuer));
}

fn answers(gate: &Gate, upstream: &Upstream, client: &mut Client) {
    client.send(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let mut wire = upstream.accept();
    wire.head();
    wire.send(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
    assert_eq!(client.head().status, 204, "{:?}", gate.log());
}

#[test]
fn at_max_connections_accepting_rests_until_one_leaves_and_probes_are_answered() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer).set("listen.max_connections", "2"));
    let (session, wire) = upstream.pair(&gate, &good(&issuer));
    let idle = gate.client();
    eventually("two connections", || (gate.control.gate().connections.taken() == 2).then_some(()));
    let mut waiting = gate.client();
    waiting.send(&good(&issuer).bytes());
    waiting.stays_silent(Duration::from_millis(250));
    upstream.assert_quiet();
    assert_eq!(gate.logged("accept_paused")["level"], "warn");
    assert!(gate.metric("accept_paused_total{cause=\"connections\"}") > 0);
    assert_eq!(gate.metric("accept_paused_total{cause=\"files\"}"), 0);
    assert!(gate.metrics().contains("# EOF"));
    drop(idle);
    let mut backend = upstream.upgrade();
    assert_eq!(waiting.head().status, 101);
    let mut next = gate.client();
    next.stays_silent(Duration::from_millis(150));
    // A session's connection counts until it has ended.
    drop((session, wire));
    answers(&gate, &upstream, &mut next);
    waiting.send(&masked(0x81, b"x"));
    assert_eq!(backend.frame().payload, b"x");
    let warnings = gate.log().iter().filter(|line| line["event"] == "accept_paused").count();
    assert_eq!(warnings, 1, "one warning in ten seconds");
}

#[test]
fn refused_upgrades_and_failed_requests_give_their_connections_back() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer).set("listen.max_connections", "1"));
    for handshake in [Handshake::to("/ws/"), Handshake::to("/ws/").page(), Handshake::to("/ws//")] {
        let (mut client, _) = gate.upgrade(&handshake);
        client.rest();
        drop(client);
        eventually("the place", || (gate.control.gate().connections.taken() == 0).then_some(()));
    }
}
