//! After very many short sockets everything is as it was.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::super::harness::{Handshake, PATIENCE, eventually, masked};
use super::super::sessions::wire::{close_payload, goodbye, reset, switching, unmasked};
use super::watched::Watched;
use serde_json::json;

const SOCKETS: usize = 20_000;
/// Until the gate has the memory that it needs for so many at a time.
const WARM_UP: usize = 2_000;
const CLIENTS: usize = 8;
const USERS: usize = 5;
/// In KiB: fifty bytes left behind by each socket would be as much.
const GROWS_AT_MOST: u64 = 1024;

/// Answers each upgrade, each text with a text, and each Close; one connection a thread at a time.
struct Backend {
    address: SocketAddr,
    gone: Arc<AtomicBool>,
}

impl Backend {
    /// Those that have just ended are still being closed when the next ones come.
    const THREADS: usize = 4 * CLIENTS;

    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, gone) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        for _ in 0..Self::THREADS {
            let (listener, gone) = (listener.try_clone().unwrap(), Arc::clone(&gone));
            std::thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    if gone.load(Ordering::SeqCst) {
                        return;
                    }
                    let _ = answer(stream);
                }
            });
        }
        Self { address, gone }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
        (0..Self::THREADS).for_each(|_| drop(TcpStream::connect(self.address)));
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut seen = [0; 8192];
    // Nobody sends anything before the answer, so this is the head.
    let mut n = 0;
    while !seen[..n].ends_with(b"\r\n\r\n") {
        match stream.read(&mut seen[n..])? {
            0 => return Ok(()),
            more => n += more,
        }
    }
    stream.write_all(switching().as_bytes())?;
    loop {
        match (stream.read(&mut seen)?, seen[0]) {
            (0, _) => return Ok(()),
            // The server is the first to end the connection (RFC 6455 §7.1.1).
            (_, 0x88) => return stream.write_all(&goodbye(1000, "")),
            _ => stream.write_all(&unmasked(0x81, b"yes"))?,
        }
    }
}

/// How a client ends its socket.
#[derive(Clone, Copy)]
enum Ending {
    Close,
    Fin,
    Reset,
    /// A frame that no client may send.
    Broken,
    /// Without having read anything more.
    Leave,
}

const ENDINGS: [Ending; 5] = [Ending::Close, Ending::Fin, Ending::Reset, Ending::Broken, Ending::Leave];

/// A handshake, an echo, and the end.
fn come_and_go(address: SocketAddr, handshake: &[u8], ending: Ending) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(handshake).unwrap();
    let (mut seen, mut n) = ([0; 2048], 0);
    while !seen[..n].ends_with(b"\r\n\r\n") {
        let more = stream.read(&mut seen[n..]).unwrap();
        assert_ne!(more, 0, "{}", String::from_utf8_lossy(&seen[..n]));
        n += more;
    }
    assert!(seen.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&seen[..n]));
    stream.write_all(&masked(0x81, b"?")).unwrap();
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).unwrap();
    assert_eq!(echo[..], unmasked(0x81, b"yes"));
    match ending {
        Ending::Close => {
            stream.write_all(&masked(0x88, &close_payload(1000, ""))).unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).unwrap();
            assert_eq!(rest, goodbye(1000, ""));
        }
        Ending::Fin => stream.shutdown(std::net::Shutdown::Write).unwrap(),
        Ending::Reset => reset(&stream),
        Ending::Broken => stream.write_all(&unmasked(0x81, b"bad")).unwrap(),
        Ending::Leave => {}
    }
}

/// So many in a row, from several clients at once.
fn sockets(gate: &Watched, count: usize, ending: impl Fn(usize) -> Ending + Sync) {
    let user = |n| Handshake::to("/ws/").bearer(&gate.issuer.token(&json!({"sub": format!("user-{n}")})));
    let users: Vec<_> = (0..USERS).map(|n| user(n).bytes()).collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= count {
                        return;
                    }
                    come_and_go(gate.address, &users[n % USERS], ending(n));
                }
            });
        }
    });
    eventually("the end of all", || (gate.metric("websocket_active_connections") == 0).then_some(()));
}

#[test]
fn twenty_thousand_short_sockets_leave_nothing_behind() {
    let backend = Backend::start();
    // Whatever one in five hundred of them kept would be used up before the end.
    let most = 5 * CLIENTS;
    let gate = Watched::start(backend.address, |config| {
        config
            .set("limits.sessions", &most.to_string())
            .set("limits.sessions_per_address", &most.to_string())
            .set("limits.sessions_per_user", &most.to_string())
            .set("listen.max_connections", &(2 * most).to_string())
    });
    let idle = gate.files().len();
    sockets(&gate, WARM_UP, |n| ENDINGS[n % ENDINGS.len()]);
    eventually("all sockets to be closed", || (gate.files().len() <= idle).then_some(()));
    let (threads, memory) = (gate.threads(), gate.memory());
    sockets(&gate, SOCKETS, |_| Ending::Close);
    eventually("all sockets to be closed", || (gate.files().len() <= idle).then_some(()));
    let grown = gate.memory().saturating_sub(memory);
    assert!(grown <= GROWS_AT_MOST, "{grown} KiB more");
    eventually("no more threads", || (gate.threads() <= threads).then_some(()));
    let mut operator = gate.operator();
    assert_eq!(operator.metric("websocket_connected_users"), 0);
    assert!(operator.get("/sessions").contains("\"total\":0"));
    let all = WARM_UP + SOCKETS;
    assert_eq!(operator.metric("websocket_connections_total{status=\"accepted\"}"), all as u64);
    assert_eq!(operator.metric("websocket_connection_duration_seconds_count"), all as u64);
    assert_eq!(operator.metric("accept_paused_total{cause=\"connections\"}"), 0);
    for event in ["session_opened", "session_closed"] {
        gate.says(&format!("\"event\":\"{event}\""), all);
    }
}
