//! Upgrades that are not the first request of their connection, and heads that come in pieces.

use std::time::Duration;

use super::super::harness::{Client, Gate, Handshake, Issuer, eventually, masked};
use super::plain::{ask, chunk};
use super::wire::{
    Upstream, Wire, close_payload, good, goodbye, pattern, switching, unmasked, while_writing,
};

const REQUEST: &str = "GET /first HTTP/1.1\r\nHost: chat.example.com\r\n\r\n";

/// A connection that has had an answer already.
fn warm(gate: &Gate, upstream: &Upstream) -> (Client, Wire) {
    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, upstream, REQUEST);
    wire.send(b"HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(client.head().status, 204);
    (client, wire)
}

fn is_gone(gate: &Gate) -> Option<()> {
    let gate = gate.control.gate();
    let left = (gate.sessions.count(), gate.permits.taken(), gate.connections.taken());
    (left == (0, 0, 0)).then_some(())
}

#[test]
fn an_upgrade_after_a_plain_request_is_a_session_like_any_other() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, _kept) = warm(&gate, &upstream);
    let early = masked(0x81, b"early");
    client.send(&[good(&issuer).bytes(), early.clone()].concat());
    let mut wire = upstream.accept();
    wire.head();
    wire.send(&[switching().as_bytes(), &unmasked(0x81, b"welcome")].concat());
    assert_eq!(client.head().status, 101);
    assert_eq!(client.frame().payload, b"welcome");
    assert_eq!(wire.exactly(early.len()), early);
    let large = masked(0x82, &pattern(1 << 20));
    assert!(while_writing(client.stream(), &large, || wire.exactly(large.len())) == large);
    client.send(&masked(0x88, &close_payload(4000, "")));
    assert_eq!(wire.close().0, 4000);
    wire.send(&goodbye(4000, ""));
    assert_eq!(client.close().0, 4000);
    assert_eq!(client.rest(), b"");
    drop((client, wire));
    eventually("all to be let go", || is_gone(&gate));
    assert_eq!(gate.logged("session_closed")["reason"], "client_closed");
}

#[test]
fn a_request_an_upgrade_and_a_frame_may_come_in_one_write() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let frame = masked(0x81, b"early");
    let mut client = gate.send(&[REQUEST.as_bytes(), &good(&issuer).bytes(), &frame].concat());
    let mut plain = upstream.accept();
    plain.head();
    plain.send(b"HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(client.head().status, 204);
    let mut wire = upstream.upgrade();
    assert_eq!(client.head().status, 101);
    assert_eq!(wire.exactly(frame.len()), frame);
}

#[test]
fn a_later_upgrade_is_refused_as_a_first_one_would_be() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, kept) = warm(&gate, &upstream);
    client.send(&Handshake::to("/ws/").bytes());
    let answer = client.head();
    assert_eq!((answer.status, answer.header("connection")), (401, Some("close")), "{}", answer.text);
    assert_eq!(client.json(&answer)["reason"], "token_missing");
    assert_eq!(client.rest(), b"", "one upgrade per connection");
    let (mut client, _again) = warm_again(&gate, kept);
    client.send(&[Handshake::to("/ws/").page().bytes(), masked(0x81, b"early")].concat());
    assert_eq!(client.head().status, 101);
    assert_eq!(client.close(), (4001, "token_missing".into()));
    assert_eq!(client.rest(), b"");
    drop(client);
    eventually("all to be let go", || is_gone(&gate));
}

/// Another one, over the same connection to the backend.
fn warm_again(gate: &Gate, mut wire: Wire) -> (Client, Wire) {
    let mut client = gate.send(REQUEST.as_bytes());
    wire.head();
    wire.send(b"HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(client.head().status, 204);
    (client, wire)
}

#[test]
fn a_client_that_leaves_during_a_later_handshake_lets_all_go() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, _kept) = warm(&gate, &upstream);
    client.send(&good(&issuer).bytes());
    let mut wire = upstream.accept();
    wire.head();
    drop(client);
    wire.ends();
    assert_eq!(gate.logged("handshake_refused")["reason"], "client_lost");
    eventually("all to be let go", || is_gone(&gate));
}

#[test]
fn a_head_in_single_bytes_is_a_head() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let mut client = gate.client();
    for byte in good(&issuer).bytes() {
        client.send(&[byte]);
    }
    let mut wire = upstream.upgrade();
    assert_eq!(client.head().status, 101);
    client.send(&masked(0x81, b"in"));
    assert_eq!(wire.frame().payload, b"in");
}

#[test]
fn a_long_head_passes_up_to_the_limit() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let cookie = format!("Cookie: a={}", "x".repeat(30_000));
    // Megabytes behind it do not make it longer.
    let frame = masked(0x82, &pattern(1 << 20));
    let mut client = gate.client();
    let sent = [good(&issuer).with(&cookie).bytes(), frame.clone()].concat();
    let stream = client.stream().try_clone().unwrap();
    while_writing(&stream, &sent, || {
        let mut wire = upstream.accept();
        assert!(wire.head().contains(&"x".repeat(30_000)));
        wire.send(switching().as_bytes());
        assert_eq!(client.head().status, 101);
        assert!(wire.exactly(frame.len()) == frame);
    });
    let (mut client, answer) =
        gate.upgrade(&good(&issuer).with(&cookie).with(&format!("X: {}", "y".repeat(4000))));
    assert_eq!(answer.status, 431);
    client.rest();
}

/// An upgrade that the backend answers itself.
fn answered(gate: &Gate, upstream: &Upstream, issuer: &Issuer, bytes: &[u8]) -> (Client, Wire) {
    let client = gate.send(&good(issuer).bytes());
    let mut wire = upstream.accept();
    wire.head();
    wire.send(bytes);
    (client, wire)
}

#[test]
fn the_backends_own_refusal_passes_whole() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, _wire) = answered(
        &gate,
        &upstream,
        &issuer,
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\nX-Own: 1\r\nKeep-Alive: timeout=5\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\nno!!",
    );
    let answer = client.head();
    assert_eq!((answer.status, answer.header("connection")), (403, Some("close")), "{}", answer.text);
    assert_eq!((answer.header("x-own"), answer.header("keep-alive")), (Some("1"), None));
    assert_eq!(answer.all("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(client.rest(), b"no!!");

    let chunked = b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nno!!\r\n0\r\n\r\n";
    let (mut client, _wire) = answered(&gate, &upstream, &issuer, chunked);
    assert_eq!(client.head().header("transfer-encoding"), Some("chunked"));
    assert_eq!(chunk(&mut client), b"no!!");
    assert_eq!(client.rest(), b"0\r\n\r\n");

    let (mut client, wire) = answered(
        &gate,
        &upstream,
        &issuer,
        b"HTTP/1.1 302 Found\r\nLocation: /login\r\nConnection: close\r\n\r\ngo there",
    );
    drop(wire);
    let answer = client.head();
    assert_eq!((answer.status, answer.header("location")), (302, Some("/login")));
    assert_eq!(chunk(&mut client), b"go there");
    assert_eq!(client.rest(), b"0\r\n\r\n");
}

#[test]
fn a_304_to_an_upgrade_has_no_body() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, _wire) =
        answered(&gate, &upstream, &issuer, b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n");
    let answer = client.head();
    assert_eq!(answer.status, 304);
    assert_eq!(answer.header("transfer-encoding"), None, "{}", answer.text);
    assert_eq!(client.rest(), b"");
}

#[test]
fn the_backends_refusal_cut_short_does_not_look_whole() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, wire) = answered(
        &gate,
        &upstream,
        &issuer,
        b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    );
    client.head();
    assert_eq!(chunk(&mut client), b"half");
    drop(wire);
    assert_eq!(client.rest(), b"");
}

#[test]
fn a_client_that_leaves_in_the_middle_of_the_backends_refusal_takes_it_along() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) =
        answered(&gate, &upstream, &issuer, b"HTTP/1.1 403 Forbidden\r\nContent-Length: 100\r\n\r\nhalf");
    let answer = client.head();
    assert_eq!(answer.status, 403);
    assert_eq!(client.exactly(4), b"half");
    drop(client);
    assert!(wire.has_ended(Duration::from_secs(2)), "the backend's connection is kept for nobody");
    eventually("all to be let go", || is_gone(&gate));
}

#[test]
fn a_page_gets_the_backends_refusal_as_a_close_and_its_body_is_not_waited_for() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let mut client = gate.send(&good(&issuer).page().bytes());
    let mut wire = upstream.accept();
    wire.head();
    wire.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 100\r\n\r\nhalf");
    assert_eq!(client.head().status, 101);
    assert_eq!(client.close(), (4003, "upstream_refused".into()));
    assert_eq!(client.rest(), b"");
    assert!(wire.has_ended(Duration::from_secs(2)));
}
