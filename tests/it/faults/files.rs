//! No file descriptors left. The gate takes no more connections than they carry, so its limit is lowered
//! while it runs: what a leak, or a neighbour in the same limit, would come to.

use std::time::Duration;

use tokio::time::Instant;

use super::super::harness::{Client, eventually};
use super::super::sessions::wire::{Upstream, good};
use super::watched::{Watched, assert_alive, limit_files};

const PAUSES: &str = "accept_paused_total{cause=\"files\"}";

/// Leaves it so many that it can still open.
fn leave(gate: &Watched, files: usize) {
    // One that is open only for a moment, while a file is read, would be one too many later.
    let (before, after) = (gate.files(), gate.files());
    let open: Vec<_> = before.into_iter().filter(|number| after.contains(number)).collect();
    let free = (0..).filter(|number| !open.contains(number)).nth(files).unwrap();
    limit_files(gate.id(), free);
}

fn knock(gate: &Watched) -> Client {
    let mut client = gate.client();
    client.send(&good(&gate.issuer).bytes());
    client
}

#[test]
fn without_file_descriptors_accepting_rests_without_a_spin_and_goes_on_when_some_are_free() {
    let upstream = Upstream::start();
    let gate = Watched::start(upstream.address, |config| config);
    let mut operator = gate.operator();
    let (mut client, mut wire) = gate.pair(&upstream);
    let other = gate.pair(&upstream);
    leave(&gate, 0);
    let mut waiting = knock(&gate);
    eventually("a pause", || (operator.metric(PAUSES) > 0).then_some(()));
    gate.says("no file descriptors left", 1);
    let (ticks, pauses) = (gate.ticks(), operator.metric(PAUSES));
    std::thread::sleep(Duration::from_secs(1));
    let (ticks, pauses) = (gate.ticks() - ticks, operator.metric(PAUSES) - pauses);
    assert!(ticks <= 20, "busy for {ticks} hundredths of a second");
    assert!((5..=11).contains(&pauses), "{pauses} rests of 100 ms in a second");
    assert_eq!(operator.metric("accept_paused_total{cause=\"connections\"}"), 0);
    waiting.stays_silent(Duration::from_millis(50));
    // Who is on it notices nothing.
    assert_alive(&mut client, &mut wire);
    // Two are free, and who has waited gets them: one for himself, one for his backend.
    drop(other);
    let mut waited_for = upstream.upgrade();
    assert_eq!(waiting.head().status, 101);
    assert_alive(&mut waiting, &mut waited_for);
    leave(&gate, 100);
    let pauses = operator.metric(PAUSES);
    let (mut next, mut next_wire) = gate.pair(&upstream);
    assert_alive(&mut next, &mut next_wire);
    assert_eq!(operator.metric(PAUSES), pauses);
    assert_eq!(gate.said().matches("accept_paused").count(), 1, "one warning in ten seconds");
}

#[test]
fn a_backend_that_cannot_be_dialled_for_want_of_a_file_descriptor_is_502() {
    let upstream = Upstream::start();
    let gate = Watched::start(upstream.address, |config| config);
    let mut operator = gate.operator();
    let (mut client, mut wire) = gate.pair(&upstream);
    leave(&gate, 1);
    for handshake in [good(&gate.issuer), good(&gate.issuer).page()] {
        let asked = Instant::now();
        let (mut refused, answer) = gate.upgrade(&handshake);
        assert_eq!(answer.status, 502);
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        assert_eq!(refused.json(&answer)["reason"], "upstream_unreachable");
        let left = gate.files().len();
        drop(refused);
        eventually("his place", || (gate.files().len() < left).then_some(()));
    }
    let mut plain = gate.client();
    plain.send(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!(plain.head().status, 502);
    upstream.assert_quiet();
    assert_alive(&mut client, &mut wire);
    leave(&gate, 100);
    assert_eq!(operator.metric("websocket_auth_failures_total{reason=\"upstream_unreachable\"}"), 3);
    assert_eq!(operator.metric("websocket_active_connections"), 1);
    let (mut next, mut next_wire) = gate.pair(&upstream);
    assert_alive(&mut next, &mut next_wire);
}
