//! Frames that announce more than anybody has, and then nothing comes.

use std::time::Duration;

use super::super::harness::{Client, Gate, Issuer, masked};
use super::super::sessions::wire::{Upstream, Wire, good, unmasked};

const HUGE: u64 = 1 << 62;

/// Header of a client's frame of this length; the mask is of zeros.
fn header(first: u8, length: u64) -> Vec<u8> {
    [&[first, 0xff][..], &length.to_be_bytes(), &[0; 4]].concat()
}

#[test]
fn a_huge_length_is_refused_at_its_header_also_where_lengths_add_up() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    // The longest that a frame may have: a sum with anything would not fit.
    for length in [HUGE, (1 << 63) - 1] {
        for begun in [Vec::new(), masked(0x02, b"begun")] {
            let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
            client.send(&begun);
            client.send(&header(if begun.is_empty() { 0x82 } else { 0x80 }, length));
            assert_eq!(client.close(), (1009, "message_too_big".into()), "{length}");
            assert_eq!(wire.exactly(begun.len()), begun);
            assert_eq!(wire.close(), (1001, "message_too_big".into()), "{length}");
            assert_eq!(wire.rest(), b"");
        }
    }
}

/// A client announces a huge frame, sends a little of it, and falls silent.
fn begin(gate: &Gate, upstream: &Upstream, issuer: &Issuer) -> (Client, Wire) {
    let (mut client, mut wire) = upstream.pair(gate, &good(issuer));
    let begun = [header(0x82, HUGE), b"a little".to_vec()].concat();
    client.send(&begun);
    assert_eq!(wire.exactly(begun.len()), begun);
    // Meanwhile the other direction is as it was.
    wire.send(&unmasked(0x81, b"go on"));
    assert_eq!(client.frame().payload, b"go on");
    (client, wire)
}

#[test]
fn with_message_off_a_huge_frame_is_waited_for_until_idle_timeout() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = upstream.config(&issuer).set("limits.message", "'off'");
    let gate = Gate::start(&config.set("session.idle_timeout", "'600ms'"));
    let (mut client, mut wire) = begin(&gate, &upstream, &issuer);
    // Every byte of it counts as data.
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(300));
        client.send(b"x");
        assert_eq!(wire.exactly(1), b"x");
    }
    assert_eq!(client.close(), (4008, "idle_timeout".into()));
    assert_eq!(wire.rest(), b"", "a Close here would be read as payload");
}

#[test]
fn with_message_off_a_client_silent_within_a_huge_frame_is_given_up_by_the_heartbeat() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = upstream
        .config(&issuer)
        .set("limits.message", "'off'")
        .set("heartbeat.interval", "'200ms'")
        .set("heartbeat.timeout", "'200ms'");
    let gate = Gate::start(&config);
    let (mut client, mut wire) = begin(&gate, &upstream, &issuer);
    for _ in 0..3 {
        assert_eq!(client.frame().first, 0x89);
    }
    assert_eq!(client.close(), (4008, "pong_timeout".into()));
    assert_eq!(wire.rest(), b"", "a Close here would be read as payload");
}

#[test]
fn a_backend_silent_within_a_huge_frame_costs_its_client_the_close_at_idle_timeout() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer).set("session.idle_timeout", "'400ms'"));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let begun = [&[0x82, 0x7f][..], &HUGE.to_be_bytes(), b"a little"].concat();
    wire.send(&begun);
    assert_eq!(client.exactly(begun.len()), begun);
    assert_eq!(wire.close(), (1001, "idle_timeout".into()));
    assert_eq!(client.rest(), b"", "a Close here would be read as payload");
}
