//! `[session] write_timeout`: a peer that takes nothing of what waits for it.

use std::io::{Read, Write};
use std::time::Duration;

use tokio::time::Instant;

use super::super::harness::{Gate, Issuer, eventually, masked};
use super::wire::{Upstream, good, pattern, read_exactly, unmasked};

/// The kernel takes less than that.
const FRAMES: usize = 50;

fn gate(upstream: &Upstream, issuer: &Issuer) -> Gate {
    Gate::start(&upstream.config(issuer).set("session.write_timeout", "'500ms'"))
}

#[test]
fn a_client_that_takes_nothing_is_closed_and_its_backend_told_why() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = gate(&upstream, &issuer);
    let (client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let frame = unmasked(0x82, &pattern(1 << 20));
    let mut writer = wire.stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        // Once the gate has closed, this fails.
        scope.spawn(move || (0..FRAMES).try_for_each(|_| writer.write_all(&frame)));
        assert_eq!(wire.close(), (1001, "write_timeout".into()));
        let closed = gate.logged("session_closed");
        assert_eq!((&closed["reason"], &closed["code"]), (&"write_timeout".into(), &4008.into()));
        assert_eq!(gate.sessions(), 0);
        drop(client);
    });
    assert_eq!(gate.metric("websocket_errors_total{error_type=\"timeout\"}"), 1);
    assert_eq!(gate.metric("websocket_closes_total{reason=\"write_timeout\"}"), 1);
}

#[test]
fn a_backend_that_takes_nothing_costs_its_client_the_session_with_4008() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = gate(&upstream, &issuer);
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let frame = masked(0x82, &pattern(1 << 20));
    let mut writer = client.stream().try_clone().unwrap();
    std::thread::scope(|scope| {
        let sent = &frame;
        scope.spawn(move || (0..FRAMES).try_for_each(|_| writer.write_all(sent)));
        assert_eq!(client.close(), (4008, "write_timeout".into()));
        assert_eq!(gate.logged("session_closed")["reason"], "write_timeout");
        drop(client);
    });
    // The backend gets a part of it and the end, never a Close inside a frame.
    let mut seen = Vec::new();
    let _ = wire.stream.read_to_end(&mut seen);
    assert!(!seen.is_empty() && seen.len() < frame.len() * FRAMES);
    assert!(seen.chunks(frame.len()).all(|piece| *piece == frame[..piece.len()]));
}

#[test]
fn who_reads_again_within_the_close_timeout_gets_whole_frames_and_the_close() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = upstream.config(&issuer).set("session.close_timeout", "'3s'");
    let gate = Gate::start(&config.set("session.write_timeout", "'300ms'"));
    let (client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let frame = unmasked(0x82, &pattern(1 << 20));
    let mut writer = wire.stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        let said = &frame;
        scope.spawn(move || (0..FRAMES).try_for_each(|_| writer.write_all(said)));
        assert_eq!(wire.close(), (1001, "write_timeout".into()));
        let mut seen = Vec::new();
        client.stream().read_to_end(&mut seen).unwrap();
        let close = unmasked(0x88, &[&4008_u16.to_be_bytes()[..], b"write_timeout"].concat());
        assert!(seen.ends_with(&close), "{} bytes, no Close at their end", seen.len());
        let frames = &seen[..seen.len() - close.len()];
        assert_eq!(frames.len() % frame.len(), 0, "not at a boundary");
        assert!(frames.chunks(frame.len()).all(|piece| piece == frame));
        client.stream().shutdown(std::net::Shutdown::Write).unwrap();
    });
}

#[test]
fn who_takes_a_little_now_and_then_is_not_cut() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = gate(&upstream, &issuer);
    let (client, wire) = upstream.pair(&gate, &good(&issuer));
    let frame = unmasked(0x82, &pattern(1 << 20));
    let mut writer = wire.stream.try_clone().unwrap();
    let began = Instant::now();
    std::thread::scope(|scope| {
        let said = &frame;
        scope.spawn(move || (0..FRAMES).try_for_each(|_| writer.write_all(said)).unwrap());
        let mut left = frame.len() * FRAMES;
        while left > 0 {
            let piece = if began.elapsed() < Duration::from_millis(1500) { 1 << 20 } else { left };
            left -= read_exactly(client.stream(), piece.min(left)).len();
            std::thread::sleep(Duration::from_millis(60));
        }
    });
    assert_eq!(gate.sessions(), 1, "{:?}", gate.log());
    drop((client, wire));
    eventually("the end of the session", || (gate.sessions() == 0).then_some(()));
}
