//! A session ends with its token.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::harness::{Gate, Handshake, Issuer, eventually, masked};
use super::wire::{Upstream, bare_config};

/// `exp` so long from now.
fn expires_in(seconds: f64) -> Value {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64();
    json!({"exp": now + seconds})
}

/// A gate whose issuer has these lines, and these keys elsewhere.
fn gate(upstream: &Upstream, issuer: &Issuer, lines: &str, keys: &[(&str, &str)]) -> Gate {
    let config = bare_config(&format!("http://{}", upstream.address)).issuer(issuer, lines);
    Gate::start(&keys.iter().fold(config, |config, (path, value)| config.set(path, value)))
}

fn short_lived(issuer: &Issuer, seconds: f64) -> Handshake {
    Handshake::to("/ws/").bearer(&issuer.token(&expires_in(seconds)))
}

#[test]
fn a_session_is_closed_with_4001_when_its_token_expires_whatever_is_going_on() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = gate(&upstream, &issuer, "leeway = '0s'\n", &[]);
    let (mut client, mut wire) = upstream.pair(&gate, &short_lived(&issuer, 0.6));
    let began = Instant::now();
    // Traffic does not put it off.
    while began.elapsed() < Duration::from_millis(450) {
        client.send(&masked(0x81, b"x"));
        assert_eq!(wire.frame().payload, b"x");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(client.close(), (4001, "token_expired".into()));
    let lived = began.elapsed();
    assert!(Duration::from_millis(450) < lived && lived < Duration::from_millis(1200), "{lived:?}");
    assert_eq!(client.rest(), b"");
    assert_eq!(wire.close(), (1001, "token_expired".into()));
    assert_eq!(wire.rest(), b"");
    let closed = gate.logged("session_closed");
    assert_eq!((&closed["reason"], &closed["code"]), (&"token_expired".into(), &4001.into()));
    assert_eq!(gate.metric("websocket_closes_total{reason=\"token_expired\"}"), 1);
    // It ended a session; it refused nothing.
    assert_eq!(gate.refused("token_expired"), 0);
}

#[test]
fn the_longer_of_leeway_and_grace_is_waited_for() {
    let lives_a_second = |lines: &str, keys: &[(&str, &str)]| {
        let (issuer, upstream) = (Issuer::start(), Upstream::start());
        let gate = gate(&upstream, &issuer, lines, keys);
        let token = issuer.token(&expires_in(0.2));
        let began = Instant::now();
        let (mut client, _wire) = upstream.pair(&gate, &Handshake::to("/ws/").bearer(&token));
        assert_eq!(client.close(), (4001, "token_expired".into()));
        let lived = began.elapsed();
        assert!(
            Duration::from_millis(1100) < lived && lived < Duration::from_millis(1650),
            "{lived:?} {lines}"
        );
    };
    std::thread::scope(|scope| {
        scope.spawn(|| lives_a_second("leeway = '1s'\n", &[]));
        scope.spawn(|| lives_a_second("leeway = '0s'\n", &[("session.expiry_grace", "'1s'")]));
        scope.spawn(|| lives_a_second("leeway = '1s'\n", &[("session.expiry_grace", "'500ms'")]));
        scope.spawn(|| lives_a_second("leeway = '700ms'\n", &[("session.expiry_grace", "'1s'")]));
    });
}

#[test]
fn grace_lets_nobody_in_whose_token_has_expired() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = gate(&upstream, &issuer, "leeway = '0s'\n", &[("session.expiry_grace", "'1h'")]);
    assert_eq!(gate.refusal(&short_lived(&issuer, -1.0)), (401, "token_expired".into()));
    upstream.assert_quiet();
}

#[test]
fn with_keep_a_session_outlives_its_token() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = bare_config(&format!("http://{}", upstream.address)).issuer(&issuer, "leeway = '0s'\n");
    let gate = Gate::start(
        &config.route("path = '/keep'\n[route.session]\non_expiry = 'keep'").route("path = '/close'"),
    );
    let token = issuer.token(&expires_in(0.4));
    let (mut kept, mut wire) = upstream.pair(&gate, &Handshake::to("/keep").bearer(&token));
    let (mut closed, _other) = upstream.pair(&gate, &Handshake::to("/close").bearer(&token));
    assert_eq!(closed.close(), (4001, "token_expired".into()));
    std::thread::sleep(Duration::from_millis(200));
    kept.send(&masked(0x81, b"still here"));
    assert_eq!(wire.frame().payload, b"still here");
}

#[test]
fn sessions_without_a_token_have_no_expiry_and_optional_ones_with_one_have() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = bare_config(&format!("http://{}", upstream.address)).issuer(&issuer, "leeway = '0s'\n");
    let gate = Gate::start(
        &config.route("path = '/optional'\nauth = 'optional'").route("path = '/none'\nauth = 'none'"),
    );
    let token = issuer.token(&expires_in(0.4));
    let mut staying: Vec<_> = [
        Handshake::to("/optional"),
        Handshake::to("/none"),
        // No token is looked for there.
        Handshake::to("/none").bearer(&token),
    ]
    .iter()
    .map(|handshake| upstream.pair(&gate, handshake))
    .collect();
    let (mut client, _wire) = upstream.pair(&gate, &Handshake::to("/optional").bearer(&token));
    assert_eq!(client.close(), (4001, "token_expired".into()));
    for (client, wire) in &mut staying {
        client.send(&masked(0x81, b"still here"));
        assert_eq!(wire.frame().payload, b"still here");
    }
    let opened: Vec<_> = gate
        .log()
        .into_iter()
        .filter(|line| line["event"] == "session_opened")
        .map(|l| l.get("sub").is_some())
        .collect();
    assert_eq!(opened, [false, false, false, true]);
    assert_eq!(gate.metric("websocket_connected_users"), 0);
    eventually("three sessions", || (gate.sessions() == 3).then_some(()));
}

#[test]
fn an_expiry_during_the_handshake_is_not_forgotten() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = gate(&upstream, &issuer, "leeway = '0s'\n", &[]);
    let mut client = gate.send(&short_lived(&issuer, 0.3).bytes());
    let mut wire = upstream.accept();
    wire.head();
    std::thread::sleep(Duration::from_millis(500));
    wire.send(super::wire::switching().as_bytes());
    assert_eq!(client.head().status, 101);
    assert_eq!(client.close(), (4001, "token_expired".into()));
}
