//! Connections by the thousand that say nothing, or only half of what they should.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use tokio::time::Instant;

use super::super::harness::{PATIENCE, eventually};
use super::super::sessions::wire::Upstream;
use super::watched::{Watched, assert_alive, limit_files};

const CONNECTIONS: usize = 2000;
/// Longer than it takes to open them all.
const HEADER_TIMEOUT: Duration = Duration::from_secs(3);

/// For both ends of what is opened here, and for the tests that run beside this one.
fn enough_files() {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let mut numbers = files.split_whitespace().map(|word| word.parse::<usize>().unwrap_or(usize::MAX));
    let (now, most) = (numbers.next().unwrap(), numbers.next().unwrap());
    if now < 5 * CONNECTIONS {
        limit_files(std::process::id(), most.min(5 * CONNECTIONS));
    }
}

#[test]
fn two_thousand_silent_connections_are_reclaimed_and_others_served_meanwhile() {
    enough_files();
    let upstream = Upstream::start();
    let gate = Watched::start(upstream.address, |config| {
        config.set("listen.header_timeout", &format!("'{}s'", HEADER_TIMEOUT.as_secs()))
    });
    let (mut client, mut wire) = gate.pair(&upstream);
    let before = gate.files().len();
    let began = Instant::now();
    let connect = |n: usize| {
        let mut stream = TcpStream::connect(gate.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        if n.is_multiple_of(2) {
            stream.write_all(b"GET /ws/ HTTP/1.1\r\nHost: chat.exam").unwrap();
        }
        stream
    };
    let silent: Vec<_> = (0..CONNECTIONS).map(connect).collect();
    let opened = Instant::now();
    eventually("all of them", || (gate.files().len() >= before + CONNECTIONS).then_some(()));
    assert!(began.elapsed() < HEADER_TIMEOUT, "too slow to be told from their end: {:?}", began.elapsed());
    // Who has something to say is served as if they were not there.
    for _ in 0..20 {
        let asked = Instant::now();
        assert_alive(&mut client, &mut wire);
        let (mut other, mut other_wire) = gate.pair(&upstream);
        assert_alive(&mut other, &mut other_wire);
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    }
    for mut stream in silent {
        match stream.read(&mut [0]) {
            Ok(n) => assert_eq!(n, 0, "there is nothing to say"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
        }
    }
    eventually("their sockets", || (gate.files().len() <= before).then_some(()));
    let took = opened.elapsed();
    assert!(took < HEADER_TIMEOUT + Duration::from_secs(2), "{took:?}");
    assert_eq!(gate.metric("websocket_auth_failures_total{reason=\"header_timeout\"}"), CONNECTIONS as u64);
    assert_alive(&mut client, &mut wire);
}
