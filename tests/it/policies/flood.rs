//! Refusals from more addresses than anybody can remember.

use std::io::{Read, Write};
use std::net::TcpStream;

use tokio::time::Instant;

use super::super::harness::{Gate, Handshake, PATIENCE, eventually};
use super::{Scene, from};

/// Through the whole gate; as a debug build would take too long for all 100,000, the others are counted
/// where the gate counts them.
const THROUGH_THE_GATE: u32 = 20_000;
const BATCH: u32 = 200;

/// `n` as an address of the internet.
fn nth(n: u32) -> std::net::Ipv4Addr {
    (0x2d00_0000 + n).into()
}

/// One kept connection of the proxy: refused requests of all these addresses.
fn refusals_of(gate: &Gate, addresses: std::ops::Range<u32>) {
    let mut stream = TcpStream::connect(gate.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut answers, mut chunk) = (Vec::new(), vec![0; 1 << 16]);
    for begin in addresses.step_by(BATCH as usize) {
        let requests: Vec<String> = (begin..begin + BATCH)
            .map(|n| format!("GET /x HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {}\r\n\r\n", nth(n)))
            .collect();
        let mut writer = stream.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || writer.write_all(requests.concat().as_bytes()).unwrap());
            answers.clear();
            let refused = |answers: &[u8]| answers.windows(12).filter(|part| part == b"HTTP/1.1 401").count();
            while refused(&answers) < BATCH as usize || !answers.ends_with(b"}") {
                let n = stream.read(&mut chunk).unwrap();
                assert_ne!(n, 0, "the gate has hung up");
                answers.extend_from_slice(&chunk[..n]);
            }
        });
    }
}

#[test]
fn a_flood_of_refusals_from_100_000_addresses_is_bounded_and_the_gate_serves_on() {
    let scene = Scene::behind_a_proxy(|config| {
        config
            .set("limits.attempts_per_address", "'3/60s'")
            .set("http.auth", "'required'")
            .set("runtime.workers", "2")
            .set("log.level", "'warn'")
    });
    let status = |handshake: Handshake| scene.gate.upgrade(&from("203.0.113.7", handshake)).1.status;
    for expected in [401, 401, 401, 429] {
        assert_eq!(status(Handshake::to("/ws/")), expected);
    }
    let gate = &scene.gate;
    std::thread::scope(|scope| {
        let floods: Vec<_> = (0..2)
            .map(|half| {
                scope.spawn(move || {
                    let each = THROUGH_THE_GATE / 2;
                    refusals_of(gate, half * each..(half + 1) * each);
                })
            })
            .collect();
        // Meanwhile others are served.
        let mut served = 0;
        while floods.iter().any(|flood| !flood.is_finished()) {
            Gate::assert_echo(&mut gate.open(&from("203.0.113.8", scene.good("/ws/"))));
            served += 1;
        }
        assert!(served > 0, "nobody was served");
    });
    assert_eq!(gate.refused("token_missing"), u64::from(THROUGH_THE_GATE) + 3);
    let counted = || gate.control.gate().attempts.tracked();
    assert!(counted() > THROUGH_THE_GATE as usize * 9 / 10, "{}", counted());
    let rate = gate.control.gate().snapshot.load().settings.limits.attempts.unwrap();
    for n in THROUGH_THE_GATE..120_000 {
        gate.control.gate().attempts.count(nth(n).into(), rate, Instant::now());
    }
    assert!((90_000..=100_000).contains(&counted()), "{}", counted());
    refusals_of(gate, 500_000..500_000 + 2 * BATCH);
    assert!(counted() <= 100_000, "{}", counted());
    let told = eventually("the gauge", || {
        Some(gate.metric("limit_tracked_addresses")).filter(|told| *told > u64::from(THROUGH_THE_GATE) * 2)
    });
    assert!(told <= 100_000, "{told}");
    // Who was banned before the flood has not been washed out by it.
    assert_eq!(status(scene.good("/ws/")), 429);
    Gate::assert_echo(&mut gate.open(&from("203.0.113.8", scene.good("/ws/"))));
}
