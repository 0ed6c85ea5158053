//! Single moments at which a revocation is hard to obey.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use serde_json::json;
use socket2::{Domain, Socket, Type};
use tokio::time::Instant;

use super::super::harness::{Gate, Handshake, Key, PATIENCE, eventually};
use super::desk::Desk;

#[test]
fn those_who_wait_for_keys_while_they_are_revoked_are_refused() {
    const WAITING: usize = 30;
    let desk = Desk::new();
    let key = Key::new("k2");
    desk.issuer.publish(&[&desk.issuer.key, &key]);
    desk.issuer.change(|answers| answers.delay = Duration::from_millis(500));
    let fetches = desk.issuer.fetches();
    let token = |n: usize| key.sign(&key.header(), &desk.issuer.claims(&json!({"sub": format!("user-{n}")})));
    let send = |n| desk.gate.send(&Handshake::to("/ws/").bearer(&token(n)).bytes());
    let mut waiting: Vec<_> = (0..WAITING).map(send).collect();
    eventually("the fetch", || (desk.issuer.fetches() > fetches).then_some(()));
    // All of them are there, and nobody knows yet who they are.
    assert_eq!(desk.gate.sessions(), 0);
    for n in (0..WAITING).step_by(2) {
        assert_eq!(desk.revoked(&json!({"sub": format!("user-{n}")}))["closed"], 0);
    }
    for (n, client) in waiting.iter_mut().enumerate() {
        let answer = client.head();
        if n % 2 == 0 {
            assert_eq!(
                (answer.status, &client.json(&answer)["reason"]),
                (403, &json!("user_revoked")),
                "{n}"
            );
        } else {
            assert_eq!(answer.status, 101, "{n}");
            Gate::assert_echo(client);
        }
    }
    assert_eq!(desk.backend.connections(), WAITING / 2);
}

#[test]
fn one_whose_backend_does_not_accept_is_refused_at_once() {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    // The only place in its queue is taken: whoever comes now waits for the kernel.
    let _first = TcpStream::connect(address).unwrap();
    let url = format!("'http://{address}'");
    let desk = Desk::with(|config| config.set("upstream.url", &url).set("upstream.connect_timeout", "'30s'"));
    let mut client = desk.gate.send(&Handshake::to("/ws/").bearer(&desk.token_of("alice")).bytes());
    eventually("its registration", || (desk.gate.sessions() == 1).then_some(()));
    client.stays_silent(Duration::from_millis(100));
    let asked = Instant::now();
    assert_eq!(desk.revoked(&json!({"sub": "alice"}))["closed"], 1);
    assert_eq!(client.head().status, 403);
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    assert_eq!(desk.gate.sessions(), 0);
}

/// The 101 that an upgrade by [`Handshake::KEY`] is due.
fn switching() -> String {
    let accept = Handshake::ACCEPT;
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}

/// The next connection of the gate, after its upgrade has been answered.
fn accept(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    stream.write_all(switching().as_bytes()).unwrap();
    stream
}

#[test]
fn what_a_busy_client_says_after_the_answer_does_not_pass() {
    /// The smallest frames there are, less of them than a turn takes: it takes its time, and goes on.
    const BURST: usize = 32 * 1024;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("'http://{}'", listener.local_addr().unwrap());
    let desk = Desk::with(|config| config.set("upstream.url", &url).set("session.close_timeout", "'50ms'"));
    for n in 0..20_u64 {
        let name = format!("user-{n}");
        let client = desk.gate.send(&Handshake::to("/ws/").bearer(&desk.token_of(&name)).bytes());
        socket2::SockRef::from(client.stream()).set_send_buffer_size(1 << 20).unwrap();
        let mut backend = accept(&listener);
        let burst = [0x82, 0x80, 0, 0, 0, 0].repeat(BURST);
        let (heard, seen) = (AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut chunk = vec![0; 1 << 20];
                while let Ok(n @ 1..) = backend.read(&mut chunk) {
                    heard.fetch_add(n, SeqCst);
                    if chunk[..n].windows(4).any(|four| four == b"LATE") {
                        seen.store(true, SeqCst);
                    }
                }
                heard.store(usize::MAX, SeqCst);
            });
            scope.spawn(|| {
                let mut sent = 0;
                while client.stream().write_all(&burst).is_ok() {
                    sent += burst.len();
                    while heard.load(SeqCst) < sent {
                        std::thread::yield_now();
                    }
                }
            });
            std::thread::sleep(Duration::from_millis(30 + n));
            desk.revoked(&json!({"sub": name}));
            let late = [&[0x82, 0x84, 0, 0, 0, 0][..], b"LATE"].concat();
            let _ = client.stream().write_all(&late);
        });
        assert!(!seen.load(SeqCst), "round {n}: a frame that came after the answer");
    }
}
