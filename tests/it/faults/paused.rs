//! The gate itself is stopped and continued: by its node, by a debugger, by a neighbour that takes all CPUs.
//! All its timers are over then, and all that was said meanwhile waits to be read.

use std::io::Write;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::super::harness::{Handshake, eventually, masked, now};
use super::super::sessions::wire::{Upstream, close_payload, goodbye, pattern, read_exactly, unmasked};
use super::watched::{Watched, assert_alive};

const FRAMES: usize = 50;
/// Longer than any timeout here.
const PAUSE: Duration = Duration::from_millis(2500);

/// Stopped for longer than all timeouts.
fn paused(gate: &Watched, meanwhile: impl FnOnce()) {
    gate.stop();
    meanwhile();
    std::thread::sleep(PAUSE);
    gate.resume();
}

#[test]
fn a_pong_that_came_while_the_gate_was_stopped_is_not_missed_and_a_client_that_is_gone_still_is() {
    let upstream = Upstream::start();
    let gate = Watched::start(upstream.address, |config| {
        config
            .set("heartbeat.interval", "'300ms'")
            .set("heartbeat.timeout", "'1200ms'")
            .set("heartbeat.missed", "1")
    });
    let (mut client, mut wire) = gate.pair(&upstream);
    let ping = client.frame();
    assert_eq!(ping.first, 0x89);
    paused(&gate, || client.send(&masked(0x8a, &ping.payload)));
    assert_alive(&mut client, &mut wire);
    let mut operator = gate.operator();
    assert_eq!(operator.metric("websocket_missed_pongs_total"), 0);
    assert_eq!(operator.metric("websocket_ping_rtt_seconds_count"), 1);
    // Now it says nothing; a gate that is held up again and again notices all the same.
    assert_eq!(client.frame().first, 0x89);
    let noticed = (0..20).any(|_| {
        gate.stop();
        std::thread::sleep(Duration::from_millis(700));
        gate.resume();
        gate.said().contains("\"reason\":\"pong_timeout\"")
    });
    assert!(noticed, "{}", gate.said());
    assert_eq!(client.close(), (4008, "pong_timeout".into()));
    assert_eq!(wire.close(), (1001, "pong_timeout".into()));
}

#[test]
fn messages_that_came_while_the_gate_was_stopped_count_against_idle_timeout() {
    let upstream = Upstream::start();
    let gate = Watched::start(upstream.address, |config| config.set("session.idle_timeout", "'1500ms'"));
    let (mut client, mut wire) = gate.pair(&upstream);
    let (mut listener, mut speaker) = gate.pair(&upstream);
    paused(&gate, || {
        client.send(&masked(0x81, b"meanwhile"));
        speaker.send(&unmasked(0x81, b"meanwhile"));
    });
    assert_eq!(wire.frame().payload, b"meanwhile");
    assert_eq!(listener.frame().payload, b"meanwhile");
    assert_alive(&mut client, &mut wire);
    assert_alive(&mut listener, &mut speaker);
    let quiet = Instant::now();
    assert_eq!(client.close(), (4008, "idle_timeout".into()));
    assert!(quiet.elapsed() > Duration::from_millis(1300), "{:?}", quiet.elapsed());
}

#[test]
fn who_reads_while_the_gate_is_stopped_is_not_cut_by_write_timeout() {
    let upstream = Upstream::start();
    let gate = Watched::start(upstream.address, |config| config.set("session.write_timeout", "'2s'"));
    let (client, wire) = gate.pair(&upstream);
    let frame = unmasked(0x82, &pattern(1 << 20));
    let mut writer = wire.stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        let sent = &frame;
        scope.spawn(move || (0..FRAMES).try_for_each(|_| writer.write_all(sent)).unwrap());
        // It stalls; how long it does is the gate's to count, so nobody waits to be sure of it.
        std::thread::sleep(Duration::from_millis(400));
        // All that the kernel has of the gate's.
        paused(&gate, || drop(read_exactly(client.stream(), frame.len())));
        for n in 1..FRAMES {
            assert!(read_exactly(client.stream(), frame.len()) == frame, "frame {n}");
        }
    });
    assert_eq!(gate.metric("websocket_active_connections"), 1);
}

#[test]
fn a_close_that_was_answered_while_the_gate_was_stopped_is_answered_by_the_peer_itself() {
    let upstream = Upstream::start();
    let gate = Watched::start(upstream.address, |config| config);
    let (mut client, mut wire) = gate.pair(&upstream);
    client.send(&masked(0x88, &close_payload(1000, "")));
    assert_eq!(wire.close().0, 1000);
    paused(&gate, || wire.send(&goodbye(1000, "farewell")));
    assert_eq!(client.close(), (1000, "farewell".into()));
}

#[test]
fn a_token_that_expired_while_the_gate_was_stopped_is_over_at_once_and_nothing_more_passes() {
    let upstream = Upstream::start();
    let gate = Watched::start(upstream.address, |config| config);
    let exp = now() + 2;
    let token = gate.issuer.token(&json!({"exp": exp}));
    let (mut client, mut wire) = gate.pair_by(&upstream, &Handshake::to("/ws/").bearer(&token));
    assert_alive(&mut client, &mut wire);
    gate.stop();
    client.send(&masked(0x81, b"too late"));
    eventually("the end of the token", || (now() > exp).then_some(()));
    let continued = Instant::now();
    gate.resume();
    assert_eq!(client.close(), (4001, "token_expired".into()));
    assert_eq!(wire.close(), (1001, "token_expired".into()));
    assert!(continued.elapsed() < Duration::from_secs(1), "{:?}", continued.elapsed());
}
