//! Bytes go from socket to socket untouched.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::harness::{Gate, Issuer, masked};
use super::wire::{Upstream, good, pattern, read_exactly, switching, unmasked, while_writing};

const SIZES: [usize; 8] = [0, 1, 125, 126, 127, 65535, 65536, 1 << 20];

#[test]
fn frames_of_every_length_pass_untouched_both_ways() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (client, mut wire) = upstream.pair(&gate, &good(&issuer));
    for size in SIZES {
        for first in [0x81, 0x82] {
            let frame = masked(first, &pattern(size));
            let seen = while_writing(client.stream(), &frame, || wire.exactly(frame.len()));
            assert!(seen == frame, "{size} bytes from the client");
            let frame = unmasked(first, &pattern(size));
            let seen = while_writing(&wire.stream, &frame, || read_exactly(client.stream(), frame.len()));
            assert!(seen == frame, "{size} bytes from the backend");
        }
    }
}

/// A fragmented text with control frames in between, a binary message, an empty one.
fn conversation(frame: fn(u8, &[u8]) -> Vec<u8>) -> Vec<u8> {
    [
        frame(0x01, b"one "),
        frame(0x89, b"ping"),
        frame(0x00, b"two "),
        frame(0x8a, b""),
        frame(0x00, &pattern(300)),
        frame(0x89, &pattern(125)),
        frame(0x80, b"three"),
        frame(0x82, &pattern(126)),
        frame(0x81, b""),
    ]
    .concat()
}

#[test]
fn fragments_with_pings_in_between_pass_untouched_and_are_counted_once() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let (from_client, from_backend) = (conversation(masked), conversation(unmasked));
    client.send(&from_client);
    assert_eq!(wire.exactly(from_client.len()), from_client);
    wire.send(&from_backend);
    assert_eq!(client.exactly(from_backend.len()), from_backend);
    for way in ["received", "sent"] {
        for (kind, count) in [("text", 2), ("binary", 1), ("ping", 2), ("pong", 1), ("close", 0)] {
            let series = format!("websocket_messages_{way}_total{{message_type=\"{kind}\"}}");
            assert_eq!(gate.metric(&series), count, "{series}");
        }
    }
    let bytes = |way| gate.metric(&format!("websocket_bytes_total{{direction=\"{way}\"}}"));
    assert_eq!(bytes("received"), from_client.len() as u64);
    assert_eq!(bytes("sent"), from_backend.len() as u64);
}

#[test]
fn one_byte_at_a_time_arrives_as_it_was() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let pause = || std::thread::sleep(Duration::from_micros(100));
    let bytes = conversation(masked);
    for byte in &bytes {
        client.send(std::slice::from_ref(byte));
        pause();
    }
    assert_eq!(wire.exactly(bytes.len()), bytes);
    let bytes = conversation(unmasked);
    for byte in &bytes {
        wire.send(std::slice::from_ref(byte));
        pause();
    }
    assert_eq!(client.exactly(bytes.len()), bytes);
}

#[test]
fn a_header_is_not_forwarded_in_part_and_payload_is_not_waited_for() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let frame = masked(0x82, &pattern(70_000));
    client.send(&frame[..13]);
    wire.stays_silent(Duration::from_millis(50));
    client.send(&frame[13..20]);
    assert_eq!(wire.exactly(20), frame[..20], "what has come of the frame goes on at once");
    client.send(&frame[20..]);
    assert_eq!(wire.exactly(frame.len() - 20), frame[20..]);
    let frame = unmasked(0x82, &pattern(70_000));
    wire.send(&frame[..9]);
    client.stays_silent(Duration::from_millis(50));
    wire.send(&frame[9..]);
    assert_eq!(client.exactly(frame.len()), frame);
}

#[test]
fn many_frames_in_one_write_all_arrive() {
    const COUNT: u64 = 3000;
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let all = |frame: fn(u8, &[u8]) -> Vec<u8>| -> Vec<u8> {
        (0..COUNT).flat_map(|n| frame(0x81, &pattern(usize::try_from(n % 140).unwrap()))).collect()
    };
    let bytes = all(masked);
    let seen = while_writing(client.stream(), &bytes, || wire.exactly(bytes.len()));
    assert!(seen == bytes);
    let bytes = all(unmasked);
    assert!(while_writing(&wire.stream, &bytes, || client.exactly(bytes.len())) == bytes);
    assert_eq!(gate.metric("websocket_messages_received_total{message_type=\"text\"}"), COUNT);
    assert_eq!(gate.metric("websocket_messages_sent_total{message_type=\"text\"}"), COUNT);
}

#[test]
fn reserved_bits_reserved_opcodes_and_broken_utf8_are_the_receivers_affair() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    for first in [0xc1, 0xf2, 0x83, 0x87, 0x8b, 0x8f, 0x81] {
        let frame = masked(first, b"\xff\xfe");
        client.send(&frame);
        assert_eq!(wire.exactly(frame.len()), frame, "{first:#x}");
        let frame = unmasked(first, b"\xff\xfe");
        wire.send(&frame);
        assert_eq!(client.exactly(frame.len()), frame, "{first:#x}");
    }
}

#[test]
fn frames_that_come_with_the_heads_are_not_lost() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let early = conversation(masked);
    let split = early.len() - 3;
    let mut client = gate.send(&[&good(&issuer).bytes(), &early[..split]].concat());
    let mut wire = upstream.accept();
    wire.head();
    wire.stays_silent(Duration::from_millis(50));
    let said = conversation(unmasked);
    wire.send(&[switching().as_bytes(), &said[..said.len() - 1]].concat());
    assert_eq!(client.head().status, 101);
    // The last three bytes are half a header.
    assert_eq!(wire.exactly(split - 3), early[..split - 3]);
    client.send(&early[split..]);
    assert_eq!(wire.exactly(6), early[split - 3..]);
    wire.send(&said[said.len() - 1..]);
    assert_eq!(client.exactly(said.len()), said);
}

#[test]
fn megabytes_before_the_101_meet_back_pressure_and_none_is_lost() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let early = masked(0x82, &pattern(1 << 20)).repeat(24);
    let client = gate.send(&good(&issuer).bytes());
    let mut wire = upstream.accept();
    wire.head();
    let all_sent = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (mut writer, all_sent, early) = (client.stream().try_clone().unwrap(), &all_sent, &early);
        scope.spawn(move || {
            writer.write_all(early).unwrap();
            all_sent.store(true, Ordering::SeqCst);
        });
        std::thread::sleep(Duration::from_millis(300));
        assert!(!all_sent.load(Ordering::SeqCst), "the gate took 24 MiB before the 101");
        wire.send(switching().as_bytes());
        assert!(read_exactly(&wire.stream, early.len()) == *early);
    });
}

#[test]
fn several_workers_share_an_address() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer).set("runtime.workers", "3"));
    let mut pairs: Vec<_> = (0..24).map(|_| upstream.pair(&gate, &good(&issuer))).collect();
    for (client, wire) in &mut pairs {
        let frame = masked(0x81, b"hello");
        client.send(&frame);
        assert_eq!(wire.exactly(frame.len()), frame);
    }
    assert_eq!(gate.sessions(), pairs.len());
    assert_eq!(gate.metric("websocket_active_connections"), pairs.len() as u64);
}
