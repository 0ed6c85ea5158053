//! A connection that ends without a Close ends both sides.

use super::super::harness::{Gate, Issuer, eventually, masked};
use super::wire::{Upstream, good, pattern, reset, unmasked};

fn ended_by(gate: &Gate, reason: &str) {
    assert_eq!(gate.logged("session_closed")["reason"], reason);
    assert_eq!(gate.metric(&format!("websocket_closes_total{{reason=\"{reason}\"}}")), 1);
    eventually("all to be let go", || {
        let gate = gate.control.gate();
        (gate.sessions.count() == 0 && gate.connections.taken() == 0).then_some(())
    });
}

#[test]
fn a_client_that_ends_without_a_close_is_client_lost() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let last = masked(0x81, b"last words");
    client.send(&last);
    client.finish();
    assert_eq!(wire.exactly(last.len()), last);
    assert_eq!(wire.close(), (1001, "client_lost".into()));
    assert_eq!(wire.rest(), b"");
    wire.finish();
    assert_eq!(client.rest(), b"");
    ended_by(&gate, "client_lost");
    assert_eq!(gate.metric("websocket_errors_total{error_type=\"client_io\"}"), 1);
}

#[test]
fn a_client_that_resets_is_client_lost() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (client, mut wire) = upstream.pair(&gate, &good(&issuer));
    reset(client.stream());
    drop(client);
    assert_eq!(wire.close(), (1001, "client_lost".into()));
    assert_eq!(wire.rest(), b"");
    wire.finish();
    ended_by(&gate, "client_lost");
}

#[test]
fn a_client_that_ends_inside_a_frame_costs_its_backend_the_close() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let frame = masked(0x82, &pattern(1000));
    client.send(&frame[..500]);
    assert_eq!(wire.exactly(500), frame[..500]);
    client.finish();
    assert_eq!(wire.rest(), b"", "a Close here would be read as payload");
    ended_by(&gate, "client_lost");
}

#[test]
fn a_client_that_ends_inside_a_header_leaves_its_backend_at_a_boundary() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    client.send(&masked(0x82, &pattern(1000))[..7]);
    client.finish();
    assert_eq!(wire.close(), (1001, "client_lost".into()));
    assert_eq!(wire.rest(), b"");
}

#[test]
fn a_backend_that_ends_without_a_close_is_upstream_lost() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    wire.send(&unmasked(0x81, b"last words"));
    wire.finish();
    assert_eq!(client.frame().payload, b"last words");
    assert_eq!(client.close(), (1013, "upstream_lost".into()));
    assert_eq!(client.rest(), b"");
    client.finish();
    ended_by(&gate, "upstream_lost");
    assert_eq!(gate.metric("websocket_errors_total{error_type=\"upstream_io\"}"), 1);
    // Whoever still reads there is told as well.
    assert_eq!(wire.close(), (1001, "upstream_lost".into()));
}

#[test]
fn a_backend_that_resets_is_upstream_lost() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, wire) = upstream.pair(&gate, &good(&issuer));
    wire.reset();
    assert_eq!(client.close(), (1013, "upstream_lost".into()));
    assert_eq!(client.rest(), b"");
    client.finish();
    ended_by(&gate, "upstream_lost");
}

#[test]
fn a_backend_that_ends_inside_a_frame_costs_its_client_the_close() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    for by_reset in [false, true] {
        let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
        let frame = unmasked(0x82, &pattern(1000));
        wire.send(&frame[..500]);
        assert_eq!(client.exactly(500), frame[..500]);
        if by_reset {
            wire.reset();
        } else {
            wire.finish();
        }
        assert_eq!(client.rest(), b"", "a Close here would be read as payload");
    }
}

#[test]
fn a_backend_that_answers_101_and_leaves_is_upstream_lost() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let mut client = gate.send(&good(&issuer).bytes());
    drop(upstream.upgrade());
    assert_eq!(client.head().status, 101);
    assert_eq!(client.close(), (1013, "upstream_lost".into()));
    assert_eq!(client.rest(), b"");
}
