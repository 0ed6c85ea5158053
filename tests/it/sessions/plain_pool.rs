//! Connections of plain requests: kept on both sides, and never a request twice.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::super::harness::{Client, Gate, Issuer};
use super::plain::{ask, passing};
use super::wire::{Upstream, Wire};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn answer(client: &mut Client) {
    let answer = client.head();
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(client.body(&answer), b"ok");
}

#[test]
fn connections_are_kept_on_both_sides() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, &upstream, "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.send(OK);
    answer(&mut client);
    for n in 2..6 {
        client.send(format!("POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").as_bytes());
        assert!(wire.head().starts_with(&format!("POST /{n} ")));
        assert_eq!(wire.exactly(2), b"hi");
        wire.send(OK);
        answer(&mut client);
    }
    // Another client uses the same connection to the backend.
    let mut other = gate.send(b"GET /other HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(wire.head().starts_with("GET /other "));
    wire.send(OK);
    answer(&mut other);
    upstream.assert_quiet();
}

#[test]
fn a_connection_is_kept_after_a_long_answer_too() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, &upstream, "GET /long HTTP/1.1\r\nHost: a\r\n\r\n");
    let long = vec![b'x'; 300_000];
    wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", long.len()).as_bytes());
    for part in long.chunks(100_000) {
        std::thread::sleep(Duration::from_millis(10));
        wire.send(part);
    }
    let head = client.head();
    assert_eq!(client.body(&head), long);
    client.send(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(wire.head().starts_with("GET /next "));
    wire.send(OK);
    answer(&mut client);
    upstream.assert_quiet();
}

#[test]
fn requests_in_one_write_are_answered_in_their_order() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let request = |n| format!("POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n{n}");
    client.send((1..=3).map(request).collect::<String>().as_bytes());
    let mut wire = upstream.accept();
    for n in 1..=3 {
        assert!(wire.head().starts_with(&format!("POST /{n} ")));
        assert_eq!(wire.exactly(1), n.to_string().as_bytes());
        wire.send(format!("HTTP/1.1 20{n} X\r\nContent-Length: 0\r\n\r\n").as_bytes());
    }
    for n in 1..=3 {
        assert_eq!(client.head().status, 200 + n);
    }
}

#[test]
fn a_client_that_wants_it_closed_gets_it_closed() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, &upstream, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    wire.send(OK);
    answer(&mut client);
    assert_eq!(client.rest(), b"");
    // That was the client's wish and concerns the backend's connection not at all.
    let mut client = gate.send(b"GET /again HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(wire.head().starts_with("GET /again "));
    wire.send(OK);
    answer(&mut client);
}

#[test]
fn a_backend_that_closes_after_each_answer_closes_for_nobody_else() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    for n in 0..3 {
        let (mut wire, _) = ask(&mut client, &upstream, &format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"));
        wire.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        answer(&mut client);
        drop(wire);
    }
}

/// A kept connection, known to the gate as a good one.
fn kept(gate: &Gate, upstream: &Upstream) -> (Client, Wire) {
    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, upstream, "GET /first HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.send(OK);
    answer(&mut client);
    (client, wire)
}

#[test]
fn a_connection_that_the_backend_has_closed_meanwhile_is_not_used() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    for method in ["GET", "POST"] {
        let (mut client, wire) = kept(&gate, &upstream);
        drop(wire);
        std::thread::sleep(Duration::from_millis(50));
        let (mut wire, _) = ask(
            &mut client,
            &upstream,
            &format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"),
        );
        wire.send(OK);
        answer(&mut client);
        drop(wire);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The gate has sent a request on a kept connection when the backend ends it: it may have been carried out.
fn ended_in_between(method: &str, by_reset: bool) -> (Client, Upstream, Gate, Issuer) {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let (mut client, mut wire) = kept(&gate, &upstream);
    client.send(format!("{method} /second HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").as_bytes());
    assert!(wire.head().starts_with(&format!("{method} /second ")));
    if by_reset {
        wire.reset();
    } else {
        drop(wire);
    }
    (client, upstream, gate, issuer)
}

#[test]
fn a_post_is_never_sent_twice() {
    for by_reset in [false, true] {
        let (mut client, upstream, _gate, _issuer) = ended_in_between("POST", by_reset);
        let answer = client.head();
        assert_eq!(answer.status, 502);
        assert_eq!(client.json(&answer)["reason"], "upstream_malformed");
        std::thread::sleep(Duration::from_millis(50));
        upstream.assert_quiet();
    }
}

#[test]
fn a_get_on_a_connection_that_turns_out_to_be_stale_works() {
    for by_reset in [false, true] {
        let (mut client, upstream, _gate, _issuer) = ended_in_between("GET", by_reset);
        let mut wire = upstream.accept();
        assert!(wire.head().starts_with("GET /second "));
        wire.send(OK);
        answer(&mut client);
    }
}

#[test]
fn a_get_that_a_fresh_connection_did_not_answer_is_not_repeated_for_ever() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let (wire, _) = ask(&mut client, &upstream, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    drop(wire);
    let answer = client.head();
    assert_eq!(answer.status, 502);
    upstream.assert_quiet();
}

#[test]
fn a_get_that_ends_every_connection_is_not_sent_over_all_of_them() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    // Six idle connections.
    let mut pairs: Vec<_> = (0..6)
        .map(|n| {
            let mut client = gate.client();
            let (wire, _) = ask(&mut client, &upstream, &format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"));
            (client, wire)
        })
        .collect();
    for (client, wire) in &mut pairs {
        wire.send(OK);
        answer(client);
    }
    let asked = AtomicUsize::new(0);
    let mut client = gate.client();
    std::thread::scope(|scope| {
        let asked = &asked;
        for (_, mut wire) in pairs {
            scope.spawn(move || {
                if wire.stays_open_until_a_request() {
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        client.send(b"GET /deadly HTTP/1.1\r\nHost: a\r\n\r\n");
        if let Some(wire) = soon(&upstream) {
            asked.fetch_add(1, Ordering::SeqCst);
            drop(wire);
        }
        assert_eq!(client.head().status, 502);
    });
    let asked = asked.load(Ordering::SeqCst);
    assert!(asked <= 2, "RFC 9110 section 9.2.2: no retry of a retry, but it was sent {asked} times");
}

/// A connection that comes within a moment.
fn soon(upstream: &Upstream) -> Option<Wire> {
    (0..20).find_map(|_| {
        std::thread::sleep(Duration::from_millis(10));
        upstream.try_accept()
    })
}

#[test]
fn bytes_after_an_answer_close_the_backends_connection_and_answer_nobody() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, &upstream, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.send(&[OK, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"].concat());
    answer(&mut client);
    wire.ends();
    let (mut wire, _) = ask(&mut client, &upstream, "GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.send(OK);
    answer(&mut client);
    // Also when they come later, onto an idle connection.
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
    wire.ends();
    let (mut wire, _) = ask(&mut client, &upstream, "GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.send(OK);
    answer(&mut client);
}

#[test]
fn the_answer_to_head_cannot_smuggle_a_body() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, &upstream, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.send(
        b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    );
    assert_eq!(client.head().status, 200);
    wire.ends();
    let (mut wire, _) = ask(&mut client, &upstream, "GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.send(OK);
    answer(&mut client);
}
