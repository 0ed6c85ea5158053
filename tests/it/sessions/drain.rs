//! The end of the gate.

use std::time::Duration;

use tokio::time::Instant;

use super::super::harness::{Client, Config, Gate, Issuer, eventually, masked};
use super::keys::page;
use super::plain::ask;
use super::wire::{Upstream, close_payload, good, unmasked};

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn config(upstream: &Upstream, issuer: &Issuer, delay: &str, deadline: &str) -> Config {
    upstream
        .config(issuer)
        .set("drain.delay", &format!("'{delay}'"))
        .set("drain.deadline", &format!("'{deadline}'"))
}

fn drained(gate: &Gate) -> Client {
    let mut client = Client::connect(gate.admin, std::sync::Arc::default());
    client.send(b"GET /drained HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    client
}

#[test]
fn during_the_delay_it_is_not_ready_but_serves_and_then_it_closes() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&config(&upstream, &issuer, "500ms", "3s"));
    let (mut before, mut before_wire) = upstream.pair(&gate, &good(&issuer));
    let mut ended = drained(&gate);
    let began = Instant::now();
    gate.control.drain();
    let (status, body) = page(&gate, "/readyz");
    assert_eq!((status, &body["missing"][0]), (503, &"draining".into()));
    let (mut after, mut after_wire) = upstream.pair(&gate, &good(&issuer));
    let mut kept = gate.client();
    let (mut backend, _) = ask(&mut kept, &upstream, REQUEST);
    backend.send(b"HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(kept.head().status, 204);
    before.send(&masked(0x81, b"still"));
    assert_eq!(before_wire.frame().payload, b"still");
    assert!(began.elapsed() < Duration::from_millis(450), "too slow to tell: {:?}", began.elapsed());
    for (client, wire) in [(&mut before, &mut before_wire), (&mut after, &mut after_wire)] {
        assert_eq!(client.close(), (1012, "draining".into()));
        assert!(began.elapsed() >= Duration::from_millis(490), "{:?}", began.elapsed());
        assert_eq!(wire.close(), (1001, "draining".into()));
        assert_eq!(client.rest(), b"");
        client.send(&masked(0x88, &close_payload(1012, "")));
        client.finish();
        wire.finish();
    }
    assert_eq!(kept.rest(), b"", "an idle connection is closed");
    drop(kept);
    assert_eq!(ended.head().status, 200);
    assert!(began.elapsed() < Duration::from_secs(2), "with the last session, not at the deadline");
    assert_eq!(gate.metric("websocket_closes_total{reason=\"draining\"}"), 2);
    upstream.assert_quiet();
}

#[test]
fn the_deadline_holds_whatever_clients_do() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&config(&upstream, &issuer, "0s", "700ms").set("session.close_timeout", "'30s'"));
    // One that never answers, one inside a frame of its backend, one that takes nothing, a half request.
    let (mut deaf, _wire) = upstream.pair(&gate, &good(&issuer));
    let (_inside, mut inside_wire) = upstream.pair(&gate, &good(&issuer));
    inside_wire.send(&unmasked(0x82, &[0; 100])[..50]);
    let mut half = gate.client();
    half.send(b"GET / HT");
    let mut ended = drained(&gate);
    let began = Instant::now();
    gate.control.drain();
    assert_eq!(deaf.close().0, 1012);
    assert_eq!(ended.head().status, 200);
    let took = began.elapsed();
    assert!(Duration::from_millis(650) < took && took < Duration::from_millis(1300), "{took:?}");
    gate.logged("drain_deadline");
}

#[test]
fn a_request_in_flight_is_answered_and_its_connection_closed() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&config(&upstream, &issuer, "0s", "4s"));
    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, &upstream, REQUEST);
    let mut ended = drained(&gate);
    gate.control.drain();
    ended.stays_silent(Duration::from_millis(150));
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlast");
    let answer = client.head();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{}", answer.text);
    assert_eq!(client.body(&answer), b"last");
    assert_eq!(client.rest(), b"");
    drop(client);
    assert_eq!(ended.head().status, 200);
}

#[test]
fn a_handshake_in_flight_is_told_and_its_backend_left() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&config(&upstream, &issuer, "0s", "3s"));
    let mut client = gate.send(&good(&issuer).bytes());
    let mut wire = upstream.accept();
    wire.head();
    gate.control.drain();
    let answer = client.head();
    assert_eq!((answer.status, client.json(&answer)["reason"].as_str()), (503, Some("draining")));
    wire.ends();
}

#[test]
fn many_sessions_are_all_told() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&config(&upstream, &issuer, "0s", "4s"));
    let mut pairs: Vec<_> = (0..100).map(|_| upstream.pair(&gate, &good(&issuer))).collect();
    gate.control.drain();
    for (client, wire) in &mut pairs {
        assert_eq!(client.close(), (1012, "draining".into()));
        assert_eq!(wire.close(), (1001, "draining".into()));
        client.finish();
        wire.finish();
    }
    assert_eq!(drained(&gate).head().status, 200);
    assert_eq!(gate.sessions(), 0);
    eventually("the counter", || {
        (gate.metric("websocket_closes_total{reason=\"draining\"}") == 100).then_some(())
    });
}

#[test]
fn from_the_end_of_the_delay_to_the_exit_everybody_is_told() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&config(&upstream, &issuer, "0s", "3s"));
    gate.control.drain();
    assert_eq!(drained(&gate).head().status, 200);
    let requests = [REQUEST.as_bytes().to_vec(), good(&issuer).bytes(), good(&issuer).page().bytes()];
    for n in 0..30 {
        let mut client = gate.client();
        if n % 2 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        client.try_send(&requests[n % requests.len()]);
        let answer = client.head();
        assert_eq!((answer.status, answer.header("connection")), (503, Some("close")), "{}", answer.text);
        assert!(answer.header("retry-after").is_some());
        assert_eq!(client.json(&answer)["reason"], "draining");
        assert_eq!(client.rest(), b"");
    }
    assert_eq!(gate.refused("draining"), 30);
    upstream.assert_quiet();
}

#[test]
fn a_second_drain_changes_nothing() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&config(&upstream, &issuer, "300ms", "3s"));
    let (mut client, _wire) = upstream.pair(&gate, &good(&issuer));
    let began = Instant::now();
    gate.control.drain();
    gate.control.drain();
    assert_eq!(client.close().0, 1012);
    assert!(began.elapsed() >= Duration::from_millis(290));
    drop(client);
    assert_eq!(drained(&gate).head().status, 200);
    gate.control.drain();
    assert_eq!(gate.log().iter().filter(|line| line["event"] == "drain_started").count(), 1);
}
