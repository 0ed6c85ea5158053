//! `mode = "shadow"`: all checks run, nothing is refused or closed, what would have been is told.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::harness::{Config, Gate, Handshake, Issuer, Key, masked};
use super::wire::{Upstream, bare_config, pattern, unmasked};

fn config(upstream: &Upstream, issuer: &Issuer) -> Config {
    bare_config(&format!("http://{}", upstream.address)).issuer(issuer, "leeway = '0s'\n")
}

fn would(gate: &Gate, reason: &str) -> u64 {
    gate.metric(&format!("would_refuse_total{{reason=\"{reason}\"}}"))
}

/// It is counted once, as soon as the bytes that it is about have gone by.
fn told(gate: &Gate, reason: &str) {
    super::super::harness::eventually(reason, || (would(gate, reason) == 1).then_some(()));
}

fn nth(gate: &Gate, event: &str, n: usize) -> Value {
    super::super::harness::eventually(&format!("{event} number {n}"), || {
        gate.log().into_iter().filter(|line| line["event"] == event).nth(n)
    })
}

#[test]
fn who_would_be_refused_passes_as_nobody_is_counted_and_logged() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = config(&upstream, &issuer);
    let gate = Gate::start(&config.route("path = '/ws/'\nmode = 'shadow'\nroles = ['admin']"));
    let to = || Handshake::to("/ws/");
    let stranger = Key::new("k1");
    let admin = json!({"realm_access": {"roles": ["admin"]}});
    let table = [
        (to(), "token_missing"),
        (to().bearer("nonsense"), "token_malformed"),
        (to().bearer(&issuer.token(&json!({"exp": super::super::harness::now() - 60}))), "token_expired"),
        (to().bearer(&issuer.token(&json!({"aud": "other"}))), "token_audience"),
        (to().bearer(&stranger.sign(&stranger.header(), &issuer.claims(&json!({})))), "token_signature"),
        (to().bearer(&issuer.good_token()), "rule_denied"),
        (to().bearer(&issuer.token(&admin)).origin("https://evil.example"), "origin_denied"),
        (to().bearer(&issuer.token(&admin)).bearer(&issuer.good_token()), "token_ambiguous"),
    ];
    for (n, (handshake, reason)) in table.iter().enumerate() {
        let handshake = handshake.clone().with("X-Auth-Subject: root");
        let mut client = gate.send(&handshake.bytes());
        let mut wire = upstream.accept();
        let head = wire.head();
        wire.send(super::wire::switching().as_bytes());
        assert_eq!(client.head().status, 101, "{reason}");
        client.send(&masked(0x81, b"in"));
        assert_eq!(wire.frame().payload, b"in");
        // Only a good token makes somebody.
        let verified = matches!(*reason, "rule_denied" | "origin_denied");
        assert_eq!(head.to_lowercase().contains("x-auth-subject: alice-sub"), verified, "{reason}: {head}");
        assert!(!head.contains("root"), "{head}");
        assert_eq!(would(&gate, reason), 1, "{reason}");
        assert_eq!(gate.refused(reason), 0, "{reason}");
        let opened = nth(&gate, "session_opened", n);
        assert_eq!((&opened["would_refuse"], &opened["mode"]), (&(*reason).into(), &"shadow".into()));
        client.send(&masked(0x88, &super::wire::close_payload(1000, "")));
        wire.frame();
        wire.send(&super::wire::goodbye(1000, ""));
        let closed = nth(&gate, "session_closed", n);
        assert_eq!(
            (&closed["would_refuse"], &closed["reason"]),
            (&(*reason).into(), &"client_closed".into())
        );
    }
    assert_eq!(gate.metric("websocket_connections_total{status=\"accepted\"}"), table.len() as u64);
    assert!(gate.log().iter().all(|line| line["event"] != "handshake_refused"));
}

#[test]
fn who_is_allowed_leaves_no_trace_of_shadow() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&config(&upstream, &issuer).route("path = '/ws/'\nmode = 'shadow'"));
    let (client, _wire) = upstream.pair(&gate, &super::wire::good(&issuer));
    let opened = gate.logged("session_opened");
    assert_eq!((opened.get("would_refuse"), &opened["mode"]), (None, &"shadow".into()));
    assert!(
        gate.metrics()
            .lines()
            .filter(|line| line.contains("would_refuse"))
            .all(|line| { line.starts_with('#') || line.ends_with(" 0") })
    );
    drop(client);
}

#[test]
fn an_expired_token_does_not_close_and_is_told() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&config(&upstream, &issuer).route("path = '/ws/'\nmode = 'shadow'"));
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64();
    let token = issuer.token(&json!({"exp": now + 0.3}));
    let (mut client, mut wire) = upstream.pair(&gate, &Handshake::to("/ws/").bearer(&token));
    std::thread::sleep(Duration::from_millis(600));
    client.send(&masked(0x81, b"still here"));
    assert_eq!(wire.frame().payload, b"still here");
    told(&gate, "token_expired");
    client.finish();
    wire.close();
    let closed = gate.logged("session_closed");
    assert_eq!(
        (&closed["would_refuse"], &closed["reason"]),
        (&"token_expired".into(), &"client_lost".into())
    );
}

#[test]
fn too_big_messages_pass_and_are_told_once() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = config(&upstream, &issuer).set("limits.message", "'1KiB'");
    let gate = Gate::start(&config.route("path = '/ws/'\nmode = 'shadow'"));
    let (mut client, mut wire) = upstream.pair(&gate, &super::wire::good(&issuer));
    let frame = masked(0x82, &pattern(5000));
    for _ in 0..3 {
        client.send(&frame);
        assert_eq!(wire.exactly(frame.len()), frame);
    }
    told(&gate, "message_too_big");
    // Frames are still followed: a Close is one.
    let close = masked(0x88, &super::wire::close_payload(1000, ""));
    client.send(&[&close[..], b"garbage"].concat());
    assert_eq!(wire.exactly(close.len()), close);
    wire.send(&super::wire::goodbye(1000, ""));
    assert_eq!(client.close().0, 1000);
    let closed = gate.logged("session_closed");
    assert_eq!(
        (&closed["would_refuse"], &closed["reason"]),
        (&"message_too_big".into(), &"client_closed".into())
    );
    assert_eq!(closed["received_messages"], 3);
}

#[test]
fn broken_frames_and_rates_pass_and_are_told() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = config(&upstream, &issuer).set("limits.messages_per_session", "'2/10s'");
    let gate = Gate::start(&config.route("path = '/ws/'\nmode = 'shadow'"));
    let (mut client, mut wire) = upstream.pair(&gate, &super::wire::good(&issuer));
    let many = masked(0x81, b"a").repeat(5);
    client.send(&many);
    assert_eq!(wire.exactly(many.len()), many);
    told(&gate, "message_rate_exceeded");
    let broken = [unmasked(0x81, b"no mask"), pattern(1000)].concat();
    client.send(&broken);
    assert_eq!(wire.exactly(broken.len()), broken);
    told(&gate, "frame_malformed");
    let broken = masked(0x81, b"masked by a server");
    wire.send(&broken);
    assert_eq!(client.exactly(broken.len()), broken);
    told(&gate, "upstream_malformed");
    // Where frames cannot be told apart no Close can be placed either: the end is passed on as such.
    wire.finish();
    assert_eq!(client.rest(), b"");
    assert_eq!(wire.rest(), b"");
    assert_eq!(gate.logged("session_closed")["reason"], "upstream_lost");
}

#[test]
fn what_comes_first_is_not_forgotten_over_what_comes_next() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = config(&upstream, &issuer).set("limits.message", "'1KiB'");
    let gate = Gate::start(&config.route("path = '/ws/'\nmode = 'shadow'"));
    let (mut client, mut wire) = upstream.pair(&gate, &super::wire::good(&issuer));
    let sent = [masked(0x82, &pattern(5000)), unmasked(0x81, b"no mask")].concat();
    client.send(&sent);
    assert_eq!(wire.exactly(sent.len()), sent);
    told(&gate, "frame_malformed");
    told(&gate, "message_too_big");
    client.finish();
    assert_eq!(gate.logged("session_closed")["would_refuse"], "message_too_big");
}

#[test]
fn plain_requests_pass_and_are_counted() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = config(&upstream, &issuer).set("log.requests", "true");
    let gate = Gate::start(&config.route("path = '/api/*'\nmode = 'shadow'"));
    let mut client = gate.send(b"GET /api/x HTTP/1.1\r\nHost: a\r\nX-Auth-Subject: root\r\n\r\n");
    let mut wire = upstream.accept();
    assert!(!wire.head().contains("root"));
    wire.send(b"HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(client.head().status, 204);
    assert_eq!(would(&gate, "token_missing"), 1);
    assert_eq!(gate.refused("token_missing"), 0);
    assert_eq!(gate.logged("request")["mode"], "shadow");
}

#[test]
fn plain_requests_that_would_be_refused_say_so_in_their_line() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = config(&upstream, &issuer).set("log.requests", "true");
    let gate = Gate::start(&config.route("path = '/api/*'\nmode = 'shadow'"));
    let mut client = gate.send(b"GET /api/x HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut wire = upstream.accept();
    wire.head();
    wire.send(b"HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(client.head().status, 204);
    assert_eq!(gate.logged("request")["would_refuse"], "token_missing");
}
