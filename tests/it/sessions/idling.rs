//! Sessions that say nothing, and sessions that are too old.

use std::time::Duration;

use tokio::time::Instant;

use super::super::harness::{Gate, Issuer, masked};
use super::wire::{Upstream, good, unmasked};

#[test]
fn a_session_without_messages_ends_and_control_frames_are_none() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer).set("session.idle_timeout", "'600ms'"));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    // Either side keeps it alive.
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(200));
        client.send(&masked(0x81, b"a"));
        assert_eq!(wire.frame().payload, b"a");
        std::thread::sleep(Duration::from_millis(200));
        wire.send(&unmasked(0x82, b"b"));
        assert_eq!(client.frame().payload, b"b");
    }
    let quiet = Instant::now();
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(100));
        client.send(&masked(0x89, b"ping"));
        assert_eq!(wire.frame().payload, b"ping");
    }
    assert_eq!(client.close(), (4008, "idle_timeout".into()));
    let lived = quiet.elapsed();
    assert!(Duration::from_millis(550) < lived && lived < Duration::from_millis(1400), "{lived:?}");
    assert_eq!(wire.close(), (1001, "idle_timeout".into()));
}

#[test]
fn a_session_that_is_too_old_ends_whatever_goes_on_give_or_take_a_tenth() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer).set("session.max_age", "'1s'"));
    let began = Instant::now();
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    while began.elapsed() < Duration::from_millis(800) {
        client.send(&masked(0x81, b"x"));
        assert_eq!(wire.frame().payload, b"x");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(client.close(), (4008, "session_too_long".into()));
    let lived = began.elapsed();
    assert!(Duration::from_millis(880) < lived && lived < Duration::from_millis(1900), "{lived:?}");
}

#[test]
fn in_shadow_mode_both_are_told_once_and_close_nothing() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = upstream
        .config(&issuer)
        .set("session.idle_timeout", "'200ms'")
        .set("session.max_age", "'200ms'")
        .route("path = '/ws/'\nmode = 'shadow'");
    let gate = Gate::start(&config);
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    std::thread::sleep(Duration::from_millis(900));
    client.send(&masked(0x81, b"still here"));
    assert_eq!(wire.frame().payload, b"still here");
    for reason in ["idle_timeout", "session_too_long"] {
        assert_eq!(gate.metric(&format!("would_refuse_total{{reason=\"{reason}\"}}")), 1, "{reason}");
    }
}
