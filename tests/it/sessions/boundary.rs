//! A Close of the gate never falls into a frame of the backend, and nothing is padded to make room for it.

use std::time::Duration;

use tokio::time::Instant;

use super::super::harness::{Gate, Issuer, eventually, masked};
use super::wire::{Upstream, good, pattern, unmasked};

#[test]
fn a_close_waits_for_the_end_of_the_backends_frame_and_for_no_more() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let frame = unmasked(0x82, &pattern(9000));
    wire.send(&frame[..4000]);
    assert_eq!(client.exactly(4000), frame[..4000]);
    gate.control.drain();
    assert_eq!(wire.close(), (1001, "draining".into()));
    client.stays_silent(Duration::from_millis(100));
    wire.send(&[&frame[4000..], &unmasked(0x81, b"one more message")].concat());
    assert_eq!(client.exactly(5000 + 4), frame[4000..]);
    assert_eq!(client.close(), (1012, "draining".into()));
    assert_eq!(client.rest(), b"");
}

#[test]
fn what_the_backend_still_says_before_its_close_reaches_a_client_whose_frame_was_refused() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    client.send(&[masked(0x81, b"good"), unmasked(0x81, b"bad")].concat());
    assert_eq!(wire.frame().payload, b"good");
    assert_eq!(wire.close(), (1001, "frame_malformed".into()));
    // Its answers, the last one together with its Close.
    let answer = unmasked(0x81, b"the answer");
    wire.send(&answer);
    assert_eq!(client.exactly(answer.len()), answer);
    wire.send(&[&answer[..], &unmasked(0x88, &[3, 233]), &answer].concat());
    assert_eq!(client.exactly(answer.len()), answer);
    assert_eq!(client.close(), (1002, "frame_malformed".into()));
    assert_eq!(client.rest(), b"");
}

#[test]
fn a_frame_that_the_backend_never_finishes_is_cut_after_the_close_timeout_and_not_padded() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let frame = unmasked(0x82, &pattern(9000));
    wire.send(&frame[..4000]);
    assert_eq!(client.exactly(4000), frame[..4000]);
    client.send(&unmasked(0x81, b"bad"));
    let began = Instant::now();
    assert_eq!(wire.close().0, 1001);
    assert_eq!(client.rest(), b"");
    let took = began.elapsed();
    assert!(Duration::from_millis(450) < took && took < Duration::from_millis(1500), "{took:?}");
    assert_eq!(gate.logged("session_closed")["reason"], "frame_malformed");
}

#[test]
fn a_close_may_stand_between_the_fragments_of_the_backends_message() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    wire.send(&unmasked(0x01, b"first part"));
    assert_eq!(client.frame().payload, b"first part");
    client.send(&unmasked(0x81, b"bad"));
    assert_eq!(client.close().0, 1002);
    assert_eq!(wire.close().0, 1001);
}

#[test]
fn inside_a_frame_of_the_client_the_backend_gets_no_close_but_the_end() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let frame = masked(0x82, &pattern(9000));
    client.send(&frame[..4000]);
    assert_eq!(wire.exactly(4000), frame[..4000]);
    wire.send(&masked(0x81, b"masked by a server"));
    assert_eq!(wire.rest(), b"", "a Close here would be read as payload");
    assert_eq!(client.close(), (1013, "upstream_malformed".into()));
    assert_eq!(client.rest(), b"");
}

#[test]
fn once_the_gate_has_ended_a_session_nothing_of_the_client_reaches_the_backend() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    // The client is in the middle of a frame, and the gate in the middle of one of the backend's.
    let (from_client, from_backend) = (masked(0x82, &pattern(9000)), unmasked(0x82, &pattern(9000)));
    client.send(&from_client[..4000]);
    wire.send(&from_backend[..4000]);
    assert_eq!(wire.exactly(4000), from_client[..4000]);
    assert_eq!(client.exactly(4000), from_backend[..4000]);
    gate.control.drain();
    eventually("the drain", || gate.log().into_iter().find(|line| line["event"] == "drain_started"));
    std::thread::sleep(Duration::from_millis(50));
    client.try_send(&from_client[4000..]);
    wire.send(&from_backend[4000..]);
    assert_eq!(client.exactly(from_backend.len() - 4000), from_backend[4000..]);
    assert_eq!(client.close(), (1012, "draining".into()));
    assert_eq!(wire.rest(), b"");
}
