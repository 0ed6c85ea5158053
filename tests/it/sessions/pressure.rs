//! Who does not read slows down the one that sends to it, and nobody else.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::super::harness::{Gate, Issuer, eventually, masked};
use super::wire::{Upstream, good, pattern, read_exactly, unmasked};

const FRAMES: usize = 50;

/// Sends so many frames of 1 MiB while nobody reads; calls `meanwhile` once it stalls, and then expects
/// all of it at `reader`.
fn send_to_a_wall(writer: &TcpStream, reader: &TcpStream, frame: &[u8], meanwhile: impl FnOnce()) {
    let sent = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (mut writer, sent) = (writer.try_clone().unwrap(), &sent);
        scope.spawn(move || {
            for piece in frame.chunks(64 * 1024).cycle().take(frame.len().div_ceil(64 * 1024) * FRAMES) {
                writer.write_all(piece).unwrap();
                sent.fetch_add(piece.len(), Ordering::SeqCst);
            }
        });
        let mut before = 0;
        eventually("the writes to stall", || {
            std::thread::sleep(Duration::from_millis(150));
            let now = sent.load(Ordering::SeqCst);
            (now > 0 && now == std::mem::replace(&mut before, now)).then_some(())
        });
        meanwhile();
        // What the kernel holds of four sockets; the gate itself adds no more than a read.
        let taken = sent.load(Ordering::SeqCst);
        assert!(taken < 30 << 20, "{taken} bytes were taken");
        for n in 0..FRAMES {
            assert!(read_exactly(reader, frame.len()) == frame, "frame {n}");
        }
    });
}

#[test]
fn a_client_that_does_not_read_stops_its_backend_and_no_other_session() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (client, wire) = upstream.pair(&gate, &good(&issuer));
    let (mut other, mut other_wire) = upstream.pair(&gate, &good(&issuer));
    send_to_a_wall(&wire.stream, client.stream(), &unmasked(0x82, &pattern(1 << 20)), || {
        for _ in 0..20 {
            other.send(&masked(0x81, b"still here"));
            assert_eq!(other_wire.frame().payload, b"still here");
            other_wire.send(&unmasked(0x81, b"me too"));
            assert_eq!(other.frame().payload, b"me too");
        }
    });
}

#[test]
fn a_backend_that_does_not_read_stops_its_client_and_no_other_session() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let (mut other, mut other_wire) = upstream.pair(&gate, &good(&issuer));
    let (sender, receiver) = (client.stream().try_clone().unwrap(), wire.stream.try_clone().unwrap());
    send_to_a_wall(&sender, &receiver, &masked(0x82, &pattern(1 << 20)), || {
        other.send(&masked(0x81, b"still here"));
        assert_eq!(other_wire.frame().payload, b"still here");
        // The other direction of the same session goes on too.
        wire.send(&unmasked(0x81, b"for you"));
        assert_eq!(client.frame().payload, b"for you");
    });
}
