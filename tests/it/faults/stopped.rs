//! A peer that is stopped: its kernel still takes what comes, as long as there is room, and nobody ends the
//! connection.

use std::io::Write;
use std::time::Duration;

use tokio::time::Instant;

use super::super::harness::{eventually, masked, take_frames};
use super::super::sessions::wire::{Upstream, pattern};
use super::watched::{Peer, Watched, assert_alive};

const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// What a busy machine may add to any time.
const SLACK: Duration = Duration::from_millis(1500);

/// The kernel takes less than that.
const FRAMES: usize = 50;

#[test]
fn a_stopped_client_is_given_up_after_its_pings_and_both_sockets_are_let_go_while_it_sleeps() {
    let upstream = Upstream::start();
    let gate = Watched::start(upstream.address, |config| {
        config.set("heartbeat.interval", "'400ms'").set("heartbeat.timeout", "'300ms'")
    });
    let before = gate.files().len();
    let (mut client, mut wire) = gate.pair(&upstream);
    // Awake it is not given up.
    for _ in 0..3 {
        let ping = client.frame();
        assert_eq!(ping.first, 0x89);
        client.send(&masked(0x8a, &ping.payload));
    }
    let began = Instant::now();
    assert_alive(&mut client, &mut wire);
    let peer = Peer::of(client.stream());
    drop(client);
    peer.stop();
    assert_eq!(wire.close(), (1001, "pong_timeout".into()));
    let (took, due) = (began.elapsed(), Duration::from_millis(400 + 3 * 300));
    assert!(due <= took && took < due + SLACK, "{took:?}, not {due:?}");
    assert_eq!(wire.rest(), b"");
    drop(wire);
    let told = Instant::now();
    eventually("both sockets to be closed", || (gate.files().len() <= before).then_some(()));
    assert!(told.elapsed() < CLOSE_TIMEOUT + SLACK, "{:?}", told.elapsed());
    gate.says("\"reason\":\"pong_timeout\"", 1);
    assert_eq!(gate.metric("websocket_closes_total{reason=\"pong_timeout\"}"), 1);
    assert_eq!(gate.metric("websocket_active_connections"), 0);
    // What it finds when it wakes up: the pings, why it was left, and the end.
    let frames = take_frames(peer.resume());
    assert_eq!(frames.iter().map(|frame| frame.first).collect::<Vec<_>>(), [0x89, 0x89, 0x89, 0x88]);
    assert_eq!(frames[3].close(), Some((4008, "pong_timeout".into())));
}

#[test]
fn a_stopped_backend_costs_a_client_that_sends_the_session_and_both_sockets_are_let_go_while_it_sleeps() {
    let upstream = Upstream::start();
    let gate = Watched::start(upstream.address, |config| config.set("session.write_timeout", "'600ms'"));
    let before = gate.files().len();
    let (mut client, mut wire) = gate.pair(&upstream);
    assert_alive(&mut client, &mut wire);
    let peer = Peer::of(&wire.stream);
    drop(wire);
    peer.stop();
    let frame = masked(0x82, &pattern(1 << 20));
    let mut writer = client.stream().try_clone().unwrap();
    std::thread::scope(|scope| {
        let sent = &frame;
        // Once the gate has closed, this fails.
        scope.spawn(move || (0..FRAMES).try_for_each(|_| writer.write_all(sent)));
        assert_eq!(client.close(), (4008, "write_timeout".into()));
        let told = Instant::now();
        eventually("both sockets to be closed", || (gate.files().len() <= before).then_some(()));
        assert!(told.elapsed() < CLOSE_TIMEOUT + SLACK, "{:?}", told.elapsed());
        drop(client);
    });
    gate.says("\"reason\":\"write_timeout\"", 1);
    assert_eq!(gate.metric("websocket_closes_total{reason=\"write_timeout\"}"), 1);
    assert_eq!(gate.metric("websocket_active_connections"), 0);
    // It wakes up to a part of it, never a Close inside a frame, and to the end.
    let seen = peer.resume();
    assert!(!seen.is_empty() && seen.len() < frame.len() * FRAMES, "{} bytes", seen.len());
    assert!(seen.chunks(frame.len()).all(|piece| *piece == frame[..piece.len()]));
}
