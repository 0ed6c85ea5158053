//! Who does not read slows down the one that sends to it, and nobody else; the gate holds one read of it.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::super::harness::{Client, masked};
use super::super::sessions::wire::{Upstream, Wire, pattern, read_exactly, stalled, unmasked};
use super::watched::{Watched, assert_alive};

/// Of 1 MiB each.
const FRAMES: usize = 200;
/// In KiB.
const GROWS_AT_MOST: u64 = 2 * 1024;

/// Sends so many frames of 1 MiB while nobody reads; calls `meanwhile` once it stalls, and then expects
/// all of it at `reader`.
fn send_to_a_wall(
    gate: &Watched,
    writer: &TcpStream,
    reader: &TcpStream,
    frame: &[u8],
    meanwhile: impl FnOnce(),
) {
    let (memory, sent) = (gate.memory(), AtomicUsize::new(0));
    let grown = || gate.memory().saturating_sub(memory);
    std::thread::scope(|scope| {
        let (mut writer, sent) = (writer.try_clone().unwrap(), &sent);
        scope.spawn(move || {
            for piece in frame.chunks(64 * 1024).cycle().take(frame.len().div_ceil(64 * 1024) * FRAMES) {
                writer.write_all(piece).unwrap();
                sent.fetch_add(piece.len(), Ordering::SeqCst);
            }
        });
        stalled(sent);
        meanwhile();
        // What the kernel holds of four sockets; the gate itself adds no more than a read.
        let taken = sent.load(Ordering::SeqCst);
        assert!(taken < 30 << 20, "{taken} bytes were taken");
        assert!(grown() <= GROWS_AT_MOST, "{} KiB more while nobody reads", grown());
        for n in 0..FRAMES {
            assert!(read_exactly(reader, frame.len()) == frame, "frame {n}");
        }
    });
    assert!(grown() <= GROWS_AT_MOST, "{} KiB more after all of it", grown());
}

/// The only worker has time for everybody else.
fn assert_others_are_served(client: &mut Client, wire: &mut Wire) {
    let began = Instant::now();
    (0..20).for_each(|_| assert_alive(client, wire));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn a_client_that_does_not_read_stops_its_backend_and_costs_neither_memory_nor_the_time_of_others() {
    let upstream = Upstream::start();
    let gate = Watched::start(upstream.address, |config| config);
    let (client, wire) = gate.pair(&upstream);
    let (mut other, mut other_wire) = gate.pair(&upstream);
    send_to_a_wall(&gate, &wire.stream, client.stream(), &unmasked(0x82, &pattern(1 << 20)), || {
        assert_others_are_served(&mut other, &mut other_wire);
    });
}

#[test]
fn a_backend_that_does_not_read_stops_its_client_and_costs_neither_memory_nor_the_time_of_others() {
    let upstream = Upstream::start();
    let gate = Watched::start(upstream.address, |config| config);
    let (mut client, mut wire) = gate.pair(&upstream);
    let (mut other, mut other_wire) = gate.pair(&upstream);
    let (sender, receiver) = (client.stream().try_clone().unwrap(), wire.stream.try_clone().unwrap());
    send_to_a_wall(&gate, &sender, &receiver, &masked(0x82, &pattern(1 << 20)), || {
        assert_others_are_served(&mut other, &mut other_wire);
        // The other direction of the same session goes on too.
        wire.send(&unmasked(0x81, b"for you"));
        assert_eq!(client.frame().payload, b"for you");
    });
}
