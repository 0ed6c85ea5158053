//! Silent clients are pinged; the backend sees neither ping nor pong.

use std::time::Duration;

use tokio::time::Instant;

use super::super::harness::{Client, Frame, Gate, Issuer, eventually, masked};
use super::wire::{Upstream, good, unmasked};

fn gate(upstream: &Upstream, issuer: &Issuer, keys: &[(&str, &str)]) -> Gate {
    let config =
        upstream.config(issuer).set("heartbeat.interval", "'200ms'").set("heartbeat.timeout", "'200ms'");
    Gate::start(&keys.iter().fold(config, |config, (path, value)| config.set(path, value)))
}

fn ping(client: &mut Client) -> Vec<u8> {
    let Frame { first, payload } = client.frame();
    assert_eq!((first, payload.len()), (0x89, 10));
    payload
}

#[test]
fn a_silent_client_is_pinged_and_given_up_after_three_pings() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = gate(&upstream, &issuer, &[]);
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let began = Instant::now();
    let pings = [ping(&mut client), ping(&mut client), ping(&mut client)];
    assert!(pings.iter().all(|ping| ping[..8] == pings[0][..8]), "one tag for a session");
    assert_eq!(pings.map(|ping| ping[9]), [1, 2, 3]);
    assert_eq!(client.close(), (4008, "pong_timeout".into()));
    let lived = began.elapsed();
    assert!(Duration::from_millis(750) < lived && lived < Duration::from_millis(2000), "{lived:?}");
    assert_eq!(wire.close(), (1001, "pong_timeout".into()));
    assert_eq!(gate.metric("websocket_missed_pongs_total"), 3);
    assert_eq!(gate.metric("websocket_closes_total{reason=\"pong_timeout\"}"), 1);
    assert_eq!(gate.metric("websocket_errors_total{error_type=\"timeout\"}"), 1);
    assert_eq!(
        gate.metric("websocket_messages_sent_total{message_type=\"ping\"}"),
        0,
        "its own are not counted"
    );
}

#[test]
fn a_pong_keeps_it_and_the_backend_hears_nothing_of_it() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = gate(&upstream, &issuer, &[]);
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    for _ in 0..6 {
        let payload = ping(&mut client);
        // In pieces, and once too often.
        let pong = masked(0x8a, &payload);
        client.send(&pong[..7]);
        std::thread::sleep(Duration::from_millis(10));
        client.send(&pong[7..]);
        client.send(&pong);
    }
    client.send(&masked(0x8a, b"its own"));
    client.send(&masked(0x81, b"hello"));
    let seen = wire.frame();
    assert_eq!((seen.first, &seen.payload[..]), (0x8a, &b"its own"[..]));
    assert_eq!(wire.frame().payload, b"hello");
    assert_eq!(gate.metric("websocket_missed_pongs_total"), 0);
    assert_eq!(gate.metric("websocket_messages_received_total{message_type=\"pong\"}"), 1);
    eventually("six round trips", || (gate.metric("websocket_ping_rtt_seconds_count") == 6).then_some(()));
    assert_eq!(gate.sessions(), 1);
}

#[test]
fn who_is_not_silent_is_never_pinged_whatever_it_says() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = gate(&upstream, &issuer, &[("heartbeat.interval", "'400ms'")]);
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    for n in 0..10 {
        // A byte of a frame is life as well.
        let frame = masked(0x82, &[n]);
        for byte in frame.chunks(1) {
            client.send(byte);
            std::thread::sleep(Duration::from_millis(15));
        }
        assert_eq!(wire.frame().payload, [n]);
    }
    wire.send(&unmasked(0x81, b"first"));
    assert_eq!(client.frame(), Frame { first: 0x81, payload: b"first".to_vec() });
}

#[test]
fn what_the_backend_says_is_no_sign_of_the_client_and_no_ping_stands_within_a_frame() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = gate(&upstream, &issuer, &[]);
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let frame = unmasked(0x82, &[7; 1000]);
    wire.send(&frame[..500]);
    assert_eq!(client.exactly(500), frame[..500]);
    // A ping that cannot be placed is not missed, however long it takes.
    std::thread::sleep(Duration::from_millis(1500));
    wire.send(&frame[500..]);
    assert_eq!(client.exactly(frame.len() - 500), frame[500..]);
    ping(&mut client);
    assert_eq!(gate.metric("websocket_missed_pongs_total"), 0);
}

#[test]
fn off_is_off_also_for_one_route() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = upstream
        .config(&issuer)
        .set("heartbeat.interval", "'100ms'")
        .set("heartbeat.timeout", "'100ms'")
        .route("path = '/ws/'\nheartbeat = { interval = 'off' }");
    let gate = Gate::start(&config);
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    std::thread::sleep(Duration::from_millis(700));
    wire.send(&unmasked(0x81, b"still here"));
    assert_eq!(client.frame().payload, b"still here");
}
