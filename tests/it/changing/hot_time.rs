//! Bounds of time and size of heads, handshakes, sessions and the drain.

use std::time::Duration;

use tokio::time::Instant;

use super::super::harness::{Backend, Config, Followed, Gate, Handshake, Issuer, Script, eventually};
use super::super::sessions::wire::{Upstream, good};
use super::outcome;

fn asks(client: &mut super::super::harness::Client, padding: usize) -> u16 {
    let padding = "x".repeat(padding);
    client
        .send(format!("GET / HTTP/1.1\r\nHost: chat.example.com\r\nX-Padding: {padding}\r\n\r\n").as_bytes());
    let answer = client.head();
    client.body(&answer);
    answer.status
}

#[test]
fn the_size_of_heads_changes_for_new_connections_alone() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |size: &str| Config::new(&issuer, &backend).set("listen.header_size", size);
    let gate = Followed::start(&config("'32KiB'"));
    let mut old = gate.client();
    assert_eq!(asks(&mut old, 16_000), 200);
    gate.reload(&config("'8KiB'"));
    assert_eq!(asks(&mut old, 16_000), 200);
    assert_eq!(asks(&mut gate.client(), 16_000), 431);
    assert_eq!(asks(&mut gate.client(), 4_000), 200);
    gate.reload(&config("'32KiB'"));
    assert_eq!(asks(&mut gate.client(), 16_000), 200);
}

#[test]
fn the_time_for_heads_and_between_requests_changes_for_new_connections_alone() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |key: &str, time: &str| Config::new(&issuer, &backend).set(&format!("listen.{key}"), time);
    let gate = Followed::start(&config("header_timeout", "'20s'"));
    let mut old = gate.send(b"GET /");
    eventually("its connection", || (gate.control.gate().connections.taken() == 1).then_some(()));
    gate.reload(&config("header_timeout", "'200ms'"));
    gate.send(b"GET /").ends_silently();
    gate.reload(&config("keep_alive", "'200ms'"));
    let mut kept = gate.client();
    assert_eq!(asks(&mut kept, 1), 200);
    assert_eq!(kept.rest(), b"");
    // The one of the beginning has its twenty seconds.
    old.send(b" HTTP/1.1\r\nHost: chat.example.com\r\n\r\n");
    assert_eq!(old.head().status, 200);
}

#[test]
fn the_time_for_a_handshake_changes() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::new(&issuer, &backend);
    backend.script(Script::Silence);
    let gate = Followed::start(&config);
    for key in ["listen.handshake_timeout", "upstream.handshake_timeout"] {
        gate.reload(&config.clone().set(key, "'200ms'"));
        let began = Instant::now();
        assert_eq!(outcome(&gate, &good(&issuer)), "504 upstream_timeout", "{key}");
        assert!(began.elapsed() < Duration::from_secs(3), "{key}: {:?}", began.elapsed());
    }
    gate.reload(&config.set("upstream.response_timeout", "'200ms'"));
    let silent = Upstream::start();
    gate.reload(&silent.config(&issuer).set("upstream.response_timeout", "'200ms'"));
    let (answer, _) = gate.ask(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!(answer.status, 504);
}

#[test]
fn a_new_session_has_the_new_times_and_an_old_one_its_own() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |lines: &str| {
        let config = Config::without_issuer(&backend).issuer(&issuer, "leeway = '0s'\n");
        config.route(&format!("path = '/ws/'\nsession = {{ {lines} }}"))
    };
    let exp = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap() + Duration::from_millis(700);
    let token = issuer.token(&serde_json::json!({"exp": exp.as_secs_f64()}));
    let handshake = Handshake::to("/ws/").bearer(&token);
    let gate = Followed::start(&config("on_expiry = 'keep'"));
    let mut keeps = gate.open(&handshake);
    gate.reload(&config("on_expiry = 'close'"));
    let mut ends = gate.open(&handshake);
    gate.reload(&config("on_expiry = 'keep'"));
    assert_eq!(ends.close(), (4001, "token_expired".into()));
    Gate::assert_echo(&mut keeps);
}

#[test]
fn the_drain_goes_by_what_holds_when_it_begins() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config =
        |delay: &str| Config::new(&issuer, &backend).set("drain.delay", delay).set("drain.deadline", "'30s'");
    let gate = Followed::start(&config("'20s'"));
    let mut client = gate.open(&good(&issuer));
    gate.reload(&config("'300ms'"));
    let began = Instant::now();
    gate.control.drain_and_leave();
    // Not ready, but serving.
    assert_eq!(outcome(&gate, &good(&issuer)), "101");
    assert_eq!(client.close(), (1012, "draining".into()));
    let took = began.elapsed();
    assert!(Duration::from_millis(300) <= took && took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_reload_does_not_stop_a_drain() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::new(&issuer, &backend).set("drain.delay", "'600ms'").set("drain.deadline", "'20s'");
    let gate = Followed::start(&config);
    let mut client = gate.open(&good(&issuer));
    gate.control.drain_and_leave();
    gate.reload(&config.clone().set("token.cache", "99"));
    Gate::assert_echo(&mut client);
    assert_eq!(client.close(), (1012, "draining".into()));
    assert_eq!(outcome(&gate, &good(&issuer)), "503 draining");
}
