//! Messages without an end, in very many fragments.

use super::super::harness::masked;
use super::super::sessions::wire::{Upstream, while_writing};
use super::watched::{Watched, assert_alive};

/// `[limits] fragments`, as it is by default.
const BOUND: usize = 65_536;
/// In KiB.
const GROWS_AT_MOST: u64 = 2 * 1024;

/// The first fragments of a message, a byte in each.
fn fragments(count: usize) -> Vec<u8> {
    [masked(0x01, b"x"), masked(0x00, b"x").repeat(count - 1)].concat()
}

#[test]
fn fragments_without_end_stop_at_their_bound_and_cost_no_memory() {
    let upstream = Upstream::start();
    let gate = Watched::start(upstream.address, |config| config);
    let (mut client, mut wire) = gate.pair(&upstream);
    let memory = gate.memory();
    let passes = fragments(BOUND);
    assert!(while_writing(client.stream(), &passes, || wire.exactly(passes.len())) == passes);
    // Control frames between them are none of them.
    client.send(&masked(0x89, b""));
    wire.frame();
    client.send(&masked(0x00, b"one more"));
    assert_eq!(client.close(), (1009, "message_too_big".into()));
    assert_eq!(wire.close(), (1001, "message_too_big".into()));
    assert_eq!(wire.rest(), b"");
    let grown = gate.memory().saturating_sub(memory);
    assert!(grown <= GROWS_AT_MOST, "{grown} KiB more");
}

#[test]
fn without_a_bound_fragments_pass_as_long_as_they_come_and_cost_no_memory() {
    let upstream = Upstream::start();
    let gate = Watched::start(upstream.address, |config| {
        config.set("limits.fragments", "'off'").set("limits.message", "'off'")
    });
    let (mut client, mut wire) = gate.pair(&upstream);
    let memory = gate.memory();
    let passes = fragments(4 * BOUND);
    assert!(while_writing(client.stream(), &passes, || wire.exactly(passes.len())) == passes);
    let grown = gate.memory().saturating_sub(memory);
    assert!(grown <= GROWS_AT_MOST, "{grown} KiB more");
    let end = masked(0x80, b"");
    client.send(&end);
    assert_eq!(wire.exactly(end.len()), end);
    assert_alive(&mut client, &mut wire);
    assert_eq!(gate.metric("websocket_messages_received_total{message_type=\"text\"}"), 2);
}
