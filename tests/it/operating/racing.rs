//! Revocations against handshakes and sessions, at any moment of their lives.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::super::harness::{Handshake, PATIENCE, eventually, take_frame};
use super::desk::{Desk, LOCAL, SECRET, request};

const ROUNDS: usize = 10_000;
/// So many rounds are under way at a time.
const LANES: u64 = 64;

/// What no backend may ever see: a client says it once it is known that its revocation has been answered.
const LATE: &[u8] = b"LATE";
const EARLY: &[u8] = b"early";

/// What happened at the backend.
#[derive(Default)]
pub struct Heard {
    late: AtomicUsize,
    messages: AtomicUsize,
    open: AtomicUsize,
}

/// A backend in a runtime of its own. `/ws/7` is answered after 7 ms; each read brings a frame back.
pub fn backend(heard: &Arc<Heard>) -> SocketAddr {
    let (heard, (tell, told)) = (Arc::clone(heard), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            loop {
                let Ok(accepted) = timeout(2 * PATIENCE, listener.accept()).await else { return };
                let heard = Arc::clone(&heard);
                tokio::spawn(async move {
                    heard.open.fetch_add(1, SeqCst);
                    let _ = hear(accepted.unwrap().0, &heard).await;
                    heard.open.fetch_sub(1, SeqCst);
                });
            }
        });
    });
    told.recv().unwrap()
}

async fn hear(mut stream: TcpStream, heard: &Heard) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|four| four == b"\r\n\r\n") {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    }
    let line = String::from_utf8_lossy(&bytes).into_owned();
    let millis = line.split(' ').nth(1).and_then(|path| path.rsplit('/').next()?.parse().ok()).unwrap_or(0);
    if millis > 0 {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
    let switching = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        Handshake::ACCEPT
    );
    stream.write_all(switching.as_bytes()).await?;
    loop {
        bytes.clear();
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
        // Frames are small and written whole, so none is cut in two.
        heard.late.fetch_add(usize::from(bytes.windows(4).any(|four| four == LATE)), SeqCst);
        heard.messages.fetch_add(usize::from(bytes.windows(5).any(|five| five == EARLY)), SeqCst);
        stream.write_all(b"\x81\x00").await?;
    }
}

/// A frame whose payload stands in it as it is: the mask is of zeros.
fn plain(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x82, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    frame
}

/// Where a handshake is when its user is revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Half of the head has been sent.
    Unread,
    /// All of it has, a moment ago.
    Judged,
    /// The backend takes its time, and the client does not wait for it.
    Dialling,
    /// The client has just got its 101.
    Opened,
    /// Frames go both ways.
    Busy,
}

const PHASES: [Phase; 5] = [Phase::Unread, Phase::Judged, Phase::Dialling, Phase::Opened, Phase::Busy];

/// Small numbers without a pattern (xorshift).
pub struct Dice(Cell<u64>);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(Cell::new(0x9e37_79b9_7f4a_7c15 ^ seed))
    }

    pub fn roll(&self, sides: u64) -> u64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        x % sides
    }

    /// Waits for anything between nothing and a few milliseconds.
    async fn moment(&self) {
        match self.roll(3) {
            0 => {}
            1 => {
                for _ in 0..self.roll(50) {
                    tokio::task::yield_now().await;
                }
            }
            _ => tokio::time::sleep(Duration::from_millis(self.roll(4))).await,
        }
    }
}

/// What a client and whoever revokes it know of each other.
#[derive(Default)]
struct Between {
    /// The client has come as far as its phase says.
    there: Notify,
    /// The revocation has been answered.
    answered: Cell<bool>,
    changed: Notify,
}

/// A kept connection of the operator.
pub struct Operator(TcpStream);

impl Operator {
    pub async fn connect(desk: &Desk) -> Self {
        Self(TcpStream::connect(desk.gate.admin).await.unwrap())
    }

    pub async fn revoke(&mut self, what: &Value) -> (u16, Value) {
        let bearer = format!("Authorization: Bearer {SECRET}");
        let bytes = request("POST /revocations", &[LOCAL, &bearer], &what.to_string());
        self.0.write_all(&bytes).await.unwrap();
        let mut answer = Vec::new();
        loop {
            assert!(self.0.read_buf(&mut answer).await.unwrap() > 0, "the operator was hung up on");
            let text = std::str::from_utf8(&answer).unwrap();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()).unwrap();
            if body.len() == length.parse::<usize>().unwrap() {
                return (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap());
            }
        }
    }
}

/// How it ended for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Refused(u16, String),
    Closed(u16, String),
}

/// Reads the answer, frames, and the end.
async fn read(mut stream: impl AsyncReadExt + Unpin, between: &Between, phase: Phase) -> Outcome {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "ended without an answer");
    };
    let head = String::from_utf8(bytes.drain(..end).collect()).unwrap();
    let status = head[9..12].parse().unwrap();
    if status != 101 {
        while stream.read_buf(&mut bytes).await.unwrap() > 0 {}
        let problem: Value = serde_json::from_slice(&bytes).unwrap();
        return Outcome::Refused(status, problem["reason"].as_str().unwrap().into());
    }
    if phase == Phase::Opened {
        between.there.notify_one();
    }
    let mut messages = 0;
    loop {
        while let Some(frame) = take_frame(&mut bytes) {
            if let Some((code, reason)) = frame.close() {
                return Outcome::Closed(code, reason);
            }
            messages += 1;
            if phase == Phase::Busy && messages == 2 {
                between.there.notify_one();
            }
            between.changed.notify_one();
        }
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "ended without a Close");
    }
}

/// Says what there is to say, and the forbidden word once it is known to be one.
async fn write(
    mut stream: impl AsyncWriteExt + Unpin,
    between: &Between,
    phase: Phase,
    handshake: &[u8],
    dice: &Dice,
) {
    let half = handshake.len() / 2;
    stream.write_all(&handshake[..half]).await.unwrap();
    if phase == Phase::Unread {
        between.there.notify_one();
        dice.moment().await;
    }
    stream.write_all(&handshake[half..]).await.unwrap();
    if matches!(phase, Phase::Judged | Phase::Dialling) {
        between.there.notify_one();
    }
    let mut left = if matches!(phase, Phase::Opened) { 0 } else { 40 };
    // Whoever has been closed already cannot be written to.
    while !between.answered.get() {
        if left > 0 && stream.write_all(&plain(EARLY)).await.is_err() {
            return;
        }
        left -= i32::from(left > 0);
        between.changed.notified().await;
    }
    for _ in 0..2 {
        if stream.write_all(&plain(LATE)).await.is_err() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// One user from the first byte to the last.
async fn round(desk: &Desk, operator: &mut Operator, n: usize, dice: &Dice) -> Outcome {
    let (phase, between) = (PHASES[n % PHASES.len()], Between::default());
    let token = desk.token(&json!({"sub": format!("user-{n}")}));
    let millis = if phase == Phase::Dialling { 1 + dice.roll(5) } else { 0 };
    let mut handshake = Handshake::to(&format!("/ws/{millis}")).bearer(&token);
    if dice.roll(2) == 0 {
        handshake = handshake.page();
    }
    let bytes = handshake.bytes();
    let mut stream = TcpStream::connect(desk.gate.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (reader, writer) = stream.split();
    let revoke = async {
        between.there.notified().await;
        dice.moment().await;
        let (status, told) = operator.revoke(&json!({"sub": format!("user-{n}")})).await;
        assert_eq!(status, 201, "{told}");
        between.answered.set(true);
        between.changed.notify_one();
    };
    let whole = async {
        tokio::join!(read(reader, &between, phase), write(writer, &between, phase, &bytes, dice), revoke)
    };
    timeout(2 * PATIENCE, whole).await.unwrap_or_else(|_| panic!("round {n} ({phase:?}) is still live")).0
}

#[test]
fn whenever_a_user_is_revoked_nothing_that_is_said_later_reaches_the_backend() {
    let heard = Arc::new(Heard::default());
    let upstream = format!("'http://{}'", backend(&heard));
    let desk = Rc::new(Desk::with(|config| {
        config.set("upstream.url", &upstream).set("log.level", "'error'").set("session.close_timeout", "'2s'")
    }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let outcomes = LocalSet::new().block_on(&runtime, async {
        let next = Rc::new(Cell::new(0));
        let lanes: Vec<_> = (0..LANES)
            .map(|lane| {
                let (desk, next) = (Rc::clone(&desk), Rc::clone(&next));
                tokio::task::spawn_local(async move {
                    let dice = Dice::new(lane);
                    let mut operator = Operator::connect(&desk).await;
                    let mut outcomes = Vec::new();
                    loop {
                        let n = next.replace(next.get() + 1);
                        if n >= ROUNDS {
                            return outcomes;
                        }
                        outcomes.push((n, round(&desk, &mut operator, n, &dice).await));
                    }
                })
            })
            .collect();
        let mut outcomes = Vec::new();
        for lane in lanes {
            outcomes.extend(lane.await.unwrap());
        }
        outcomes
    });
    assert_eq!(outcomes.len(), ROUNDS);
    let reason = || "user_revoked".to_owned();
    let (refused, closed) = (Outcome::Refused(403, reason()), Outcome::Closed(4003, reason()));
    for (n, phase) in PHASES.into_iter().enumerate() {
        let ended = |how: &Outcome| {
            outcomes.iter().filter(|(m, outcome)| m % PHASES.len() == n && outcome == how).count()
        };
        let (refused, closed) = (ended(&refused), ended(&closed));
        assert_eq!(refused + closed, ROUNDS / PHASES.len(), "{phase:?} ended otherwise");
        // Both did happen wherever both can.
        let both = !matches!(phase, Phase::Opened | Phase::Busy);
        assert!((refused > 0) == both && closed > 0, "{phase:?}: {refused} refused, {closed} closed");
    }
    assert!(heard.messages.load(SeqCst) > ROUNDS / 5, "frames went on all the while");
    eventually("nobody at the gate", || (desk.gate.sessions() == 0).then_some(()));
    eventually("nobody at the backend", || (heard.open.load(SeqCst) == 0).then_some(()));
    assert_eq!(heard.late.load(SeqCst), 0, "frames that came after the answer to the revocation");
    assert_eq!(desk.gate.metric("blacklist_entries"), ROUNDS as u64);
}
