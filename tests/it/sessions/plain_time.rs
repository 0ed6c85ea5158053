//! Time limits around plain requests.

use std::net::TcpListener;
use std::time::Duration;

use tokio::time::Instant;

use super::super::harness::{Client, Gate, Issuer, eventually};
use super::plain::{ask, passing};
use super::wire::{Upstream, Wire, bare_config, good};

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// An address that refuses connections.
fn nowhere() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn a_backend_that_does_not_answer_in_time_is_504() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer).set("upstream.response_timeout", "'300ms'"));
    let mut client = gate.client();
    let began = Instant::now();
    let (mut wire, _) = ask(&mut client, &upstream, REQUEST);
    let answer = client.head();
    assert_eq!(answer.status, 504);
    assert_eq!(client.json(&answer)["reason"], "upstream_timeout");
    assert!(began.elapsed() >= Duration::from_millis(290), "{:?}", began.elapsed());
    // Nobody must ever get its late answer.
    wire.ends();
    let (mut wire, _) = ask(&mut client, &upstream, REQUEST);
    // Once there is a head the body may take its time.
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n");
    let answer = client.head();
    std::thread::sleep(Duration::from_millis(500));
    wire.send(b"slow");
    assert_eq!(client.body(&answer), b"slow");
}

#[test]
fn a_slow_upload_is_no_slow_answer() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer).set("upstream.response_timeout", "'300ms'"));
    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, &upstream, "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n");
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(100));
        client.send(b"x");
    }
    assert_eq!(wire.exactly(6), b"xxxxxx");
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.head().status, 200);
}

#[test]
fn a_backend_that_refuses_connections_is_502_after_the_connect_timeout() {
    let issuer = Issuer::start();
    let config = bare_config(&format!("http://{}", nowhere())).issuer(&issuer, "");
    let gate = Gate::start(&config.set("upstream.connect_timeout", "'300ms'"));
    for request in [REQUEST.as_bytes(), &good(&issuer).bytes()] {
        let began = Instant::now();
        let mut client = gate.send(request);
        let answer = client.head();
        let took = began.elapsed();
        assert_eq!(answer.status, 502);
        assert_eq!(client.json(&answer)["reason"], "upstream_unreachable");
        assert!(Duration::from_millis(150) < took && took < Duration::from_millis(900), "{took:?}");
    }
    assert_eq!(gate.refused("upstream_unreachable"), 2);
}

#[test]
fn a_backend_that_comes_up_within_the_connect_timeout_is_waited_for() {
    let issuer = Issuer::start();
    for request in [REQUEST.as_bytes(), &good(&issuer).bytes()] {
        let address = nowhere();
        let gate = Gate::start(&bare_config(&format!("http://{address}")).issuer(&issuer, ""));
        let mut client = gate.send(request);
        std::thread::sleep(Duration::from_millis(250));
        let upstream = Upstream::at(address);
        let mut wire = upstream.accept();
        wire.head();
        wire.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(client.head().status, 404);
    }
}

#[test]
fn a_name_that_does_not_resolve_is_502() {
    let issuer = Issuer::start();
    let config = bare_config("http://sidegate.invalid:80").issuer(&issuer, "");
    let gate = Gate::start(&config.set("upstream.connect_timeout", "'2s'"));
    let mut client = gate.send(REQUEST.as_bytes());
    let answer = client.head();
    assert_eq!(answer.status, 502);
    assert_eq!(client.json(&answer)["reason"], "upstream_unreachable");
}

#[test]
fn an_upgrade_has_its_own_time_for_the_backend_and_one_for_all() {
    for (key, value) in [("upstream.handshake_timeout", "'300ms'"), ("listen.handshake_timeout", "'300ms'")] {
        let (issuer, upstream) = (Issuer::start(), Upstream::start());
        let gate = Gate::start(&passing(&upstream, &issuer).set(key, value));
        let began = Instant::now();
        let mut client = gate.send(&good(&issuer).bytes());
        let mut wire = upstream.accept();
        wire.head();
        let answer = client.head();
        assert_eq!(answer.status, 504, "{key}");
        assert_eq!(client.json(&answer)["reason"], "upstream_timeout");
        assert!(began.elapsed() >= Duration::from_millis(290), "{:?}", began.elapsed());
        wire.ends();
        eventually("the permit", || (gate.control.gate().permits.taken() == 0).then_some(()));
    }
}

#[test]
fn an_idle_connection_may_rest_longer_than_a_head_may_take() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = passing(&upstream, &issuer).set("listen.header_timeout", "'300ms'");
    let gate = Gate::start(&config.set("listen.keep_alive", "'900ms'"));
    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, &upstream, REQUEST);
    let answer = |client: &mut Client, wire: &mut Wire| {
        wire.send(b"HTTP/1.1 204 No Content\r\n\r\n");
        assert_eq!(client.head().status, 204);
    };
    answer(&mut client, &mut wire);
    std::thread::sleep(Duration::from_millis(600));
    client.send(REQUEST.as_bytes());
    wire.head();
    answer(&mut client, &mut wire);
    // A head that has begun is not idle any more.
    client.send(b"GET / HT");
    let began = Instant::now();
    client.ends_silently();
    let took = began.elapsed();
    assert!(Duration::from_millis(250) < took && took < Duration::from_millis(700), "{took:?}");
}

#[test]
fn an_idle_connection_is_closed_after_keep_alive() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = passing(&upstream, &issuer).set("listen.keep_alive", "'300ms'");
    let gate = Gate::start(&config.set("log.requests", "true"));
    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, &upstream, REQUEST);
    // An answer that takes longer is not idleness.
    std::thread::sleep(Duration::from_millis(500));
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n");
    let answer = client.head();
    std::thread::sleep(Duration::from_millis(500));
    wire.send(b"slow");
    assert_eq!(client.body(&answer), b"slow");
    let began = Instant::now();
    client.ends_silently();
    let took = began.elapsed();
    assert!(Duration::from_millis(250) < took && took < Duration::from_millis(900), "{took:?}");
    // It has refused nobody.
    assert_eq!(gate.refused("header_timeout"), 0);
}
