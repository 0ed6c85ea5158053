//! After many short sockets everything is as it was.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::super::harness::{Gate, Handshake, Issuer, PATIENCE, eventually, masked};
use super::wire::{bare_config, close_payload, goodbye, reset, switching, unmasked};

const SOCKETS: usize = 2000;
const AT_A_TIME: usize = 50;

/// Our sockets of these ports: inodes of `/proc/self/fd` that the kernel lists with one of them.
fn open_sockets(ports: &[u16]) -> usize {
    let ours: HashSet<String> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| {
            let target = std::fs::read_link(entry.ok()?.path()).ok()?;
            Some(target.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned())
        })
        .collect();
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let is_ours = |line: &&str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let port = |address: &str| u16::from_str_radix(address.rsplit(':').next().unwrap(), 16).unwrap();
        (ports.contains(&port(fields[1])) || ports.contains(&port(fields[2]))) && ours.contains(fields[9])
    };
    table.lines().skip(1).filter(is_ours).count()
}

/// Answers each upgrade, each text with a text, and each Close; keeps nothing.
fn short_backend(gone: &Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let gone = Arc::clone(gone);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            if gone.load(Ordering::SeqCst) {
                return;
            }
            std::thread::Builder::new()
                .stack_size(128 * 1024)
                .spawn(move || {
                    let mut stream = stream.unwrap();
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    let mut seen = [0; 8192];
                    // Nobody sends anything before the answer, so this is the head.
                    let mut n = 0;
                    while !seen[..n].ends_with(b"\r\n\r\n") {
                        match stream.read(&mut seen[n..]) {
                            Ok(more) if more > 0 => n += more,
                            _ => return,
                        }
                    }
                    let _ = stream.write_all(switching().as_bytes());
                    while let Ok(n) = stream.read(&mut seen) {
                        let answer = match seen[0] {
                            _ if n == 0 => return,
                            0x88 => goodbye(1000, ""),
                            _ => unmasked(0x81, b"yes"),
                        };
                        let _ = stream.write_all(&answer);
                    }
                })
                .unwrap();
        }
    });
    address
}

#[test]
fn two_thousand_short_sockets_leave_nothing_behind() {
    let issuer = Issuer::start();
    let gone = Arc::new(AtomicBool::new(false));
    let backend = short_backend(&gone);
    let gate = Gate::start(&bare_config(&format!("http://{backend}")).issuer(&issuer, ""));
    let ports = [gate.address.port(), backend.port()];
    let before = open_sockets(&ports);
    let tokens: Vec<_> = (0..5).map(|n| issuer.token(&json!({"sub": format!("user-{n}")}))).collect();
    for round in 0..SOCKETS / AT_A_TIME {
        let handshakes = tokens.iter().map(|token| Handshake::to("/ws/").bearer(token)).cycle();
        let mut clients: Vec<_> =
            handshakes.take(AT_A_TIME).map(|handshake| gate.send(&handshake.bytes())).collect();
        for client in &mut clients {
            assert_eq!(client.head().status, 101);
        }
        if round == 0 {
            assert_eq!(gate.metric("websocket_active_connections"), AT_A_TIME as u64);
            assert_eq!(gate.metric("websocket_connected_users"), tokens.len() as u64);
        }
        for (n, client) in clients.iter_mut().enumerate() {
            match n % 5 {
                // All ways to end.
                0 => client.send(&masked(0x88, &close_payload(1000, ""))),
                1 => client.finish(),
                2 => reset(client.stream()),
                3 => client.send(&unmasked(0x81, b"bad")),
                _ => {
                    client.send(&masked(0x81, b"?"));
                    assert_eq!(client.frame().payload, b"yes");
                }
            }
        }
    }
    eventually("all places to be free", || {
        let inner = gate.control.gate();
        let left =
            [inner.sessions.count(), inner.permits.taken() as usize, inner.connections.taken() as usize];
        (left == [0, 0, 0]).then_some(())
    });
    assert_eq!(gate.metric("websocket_active_connections"), 0);
    assert_eq!(gate.metric("websocket_connected_users"), 0);
    assert_eq!(gate.metric("websocket_connections_total{status=\"accepted\"}"), SOCKETS as u64);
    assert_eq!(gate.metric("websocket_connection_duration_seconds_count"), SOCKETS as u64);
    let lines = gate.log();
    for event in ["session_opened", "session_closed"] {
        assert_eq!(lines.iter().filter(|line| line["event"] == event).count(), SOCKETS, "{event}");
    }
    eventually("all sockets to be closed", || (open_sockets(&ports) <= before).then_some(()));
    gone.store(true, Ordering::SeqCst);
    drop(TcpStream::connect(backend));
}
