//! The rows of the table, and how each is measured.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::client::{Message, Pages, Socket, at_once, verdict, wrong};
use crate::keys::{Claims, Signer};
use crate::policy;
use crate::replicas;
use crate::proc;
use crate::process;
use crate::table::{self, Line};

pub(crate) struct Options {
    pub(crate) dir: PathBuf,
    pub(crate) quick: bool,
    pub(crate) only: Option<String>,
    /// Open sockets of the rows of memory and of idle CPU.
    pub(crate) idle: usize,
    /// Open sockets of the rows of revocation; `None` = there is no gate for the rows of policy.
    pub(crate) policy: Option<usize>,
    /// The backend's own port: what a peer's latency is added to.
    pub(crate) direct: u16,
    /// The backend's process, if it and this one are to be moved between CPUs.
    pub(crate) pinned: Option<u32>,
    pub(crate) peers: Vec<Peer>,
}

impl Options {
    pub(crate) fn wants(&self, row: &str) -> bool {
        self.only.as_ref().is_none_or(|text| row.contains(text))
    }

    pub(crate) fn of(&self, setup: Setup) -> Vec<&Peer> {
        self.peers.iter().filter(|peer| peer.setup == setup).collect()
    }

    /// Load and backend keep to one CPU and leave the other one to the peers, unless these may use both.
    pub(crate) fn spread_over_both(&self, both: bool) -> io::Result<()> {
        let Some(backend) = self.pinned else { return Ok(()) };
        let cpus = if both { "0,1" } else { "1" };
        [backend, std::process::id()].into_iter().try_for_each(|pid| proc::place(pid, cpus))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setup {
    /// One worker on a CPU of its own.
    One,
    /// Two workers on two CPUs.
    Two,
    /// The gate without heartbeats.
    Quiet,
}
use Setup::{One, Two};

#[derive(Clone, Copy)]
pub(crate) struct Peer {
    /// S sidegate, H `HAProxy`, N nginx, F the relay.
    pub(crate) letter: char,
    pub(crate) setup: Setup,
    pub(crate) port: u16,
    pub(crate) pid: u32,
}

#[derive(Clone, Copy)]
enum Work {
    /// Connect, upgrade, Close both ways, end of stream.
    Handshakes { unseen: bool },
    /// One message at a time on each socket, there and back.
    Echo { sockets: usize, size: usize },
    /// One message to the backend, and from there to each socket; an operation is one of these.
    FanOut { sockets: usize, size: usize },
    /// Plain GET of 1 KiB, kept alive.
    Pages { connections: usize },
    /// p50 of one message there and back on one socket, wall clock.
    EchoLatency { size: usize },
    /// p50 of connect to 101, one at a time, wall clock, less that without a peer between.
    HandshakeLatency,
}

struct Row {
    name: &'static str,
    unit: &'static str,
    setup: Setup,
    /// The peer that ratios are against, and the highest ratio that S may have; with none, the highest value.
    against: Option<char>,
    mark: f64,
    work: Work,
    /// Operations in one sample of a full run.
    operations: usize,
}

const CPU: &str = "CPU µs";
const WALL: &str = "µs";
const H: Option<char> = Some('H');
const F: Option<char> = Some('F');

/// In a quick run a quarter of the operations, and fewer rounds.
#[rustfmt::skip]
const ROWS: [Row; 11] = [
    Row { name: "handshake, known token", unit: CPU, setup: One, against: H, mark: 0.50, work: Work::Handshakes { unseen: false }, operations: 1600 },
    Row { name: "handshake, unseen token", unit: CPU, setup: One, against: H, mark: 0.70, work: Work::Handshakes { unseen: true }, operations: 800 },
    Row { name: "handshake, known token, two workers", unit: CPU, setup: Two, against: H, mark: 0.55, work: Work::Handshakes { unseen: false }, operations: 1600 },
    Row { name: "handshake, p50 added to direct", unit: WALL, setup: One, against: None, mark: 300.0, work: Work::HandshakeLatency, operations: 400 },
    Row { name: "echo, 50 × 128 B", unit: CPU, setup: One, against: F, mark: 1.06, work: Work::Echo { sockets: 50, size: 128 }, operations: 20_000 },
    Row { name: "echo, 200 × 128 B, two workers", unit: CPU, setup: Two, against: F, mark: 1.10, work: Work::Echo { sockets: 200, size: 128 }, operations: 20_000 },
    Row { name: "echo, 50 × 16 KiB", unit: CPU, setup: One, against: F, mark: 1.08, work: Work::Echo { sockets: 50, size: 16 * 1024 }, operations: 8000 },
    Row { name: "echo, 8 × 1 MiB", unit: CPU, setup: One, against: H, mark: 0.95, work: Work::Echo { sockets: 8, size: 1024 * 1024 }, operations: 160 },
    Row { name: "echo, 1 × 128 B, p50", unit: WALL, setup: One, against: F, mark: 1.03, work: Work::EchoLatency { size: 128 }, operations: 4000 },
    Row { name: "fan-out, 64 B to 1000 sockets", unit: CPU, setup: One, against: F, mark: 1.10, work: Work::FanOut { sockets: 1000, size: 64 }, operations: 20_000 },
    Row { name: "GET of 1 KiB, kept alive", unit: CPU, setup: One, against: H, mark: 0.75, work: Work::Pages { connections: 50 }, operations: 8000 },
];

const ROUNDS: usize = 9;
const QUICK_ROUNDS: usize = 3;
/// Handshakes under way at once.
pub(crate) const LANES: usize = 64;
/// What a peer does after the client's last byte (its own close, its log) belongs to the sample.
const SETTLE: Duration = Duration::from_millis(40);
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);
/// Peers that verify tokens, so must refuse bad ones.
const VERIFYING: [char; 2] = ['S', 'H'];

/// One known token, and those that no peer has seen. Leaked: the tasks of all samples read them.
struct Tokens {
    known: &'static str,
    unseen: &'static [String],
}

pub(crate) async fn run(options: Options) -> io::Result<()> {
    let (rounds, share) = if options.quick { (QUICK_ROUNDS, 4) } else { (ROUNDS, 1) };
    let unseen: usize = ROWS
        .iter()
        .filter(|row| options.wants(row.name) && matches!(row.work, Work::Handshakes { unseen: true }))
        .map(|row| row.operations / share * (rounds + 1))
        .sum();
    let mut signer = Signer::load(&options.dir)?;
    let tokens = Tokens { known: signer.token(Claims::GOOD)?.leak(), unseen: signer.tokens(unseen)?.leak() };
    eprintln!("{} tokens of {} bytes", unseen + 1, tokens.known.len());
    for peer in &options.peers {
        ready(peer, tokens.known).await?;
        if VERIFYING.contains(&peer.letter) {
            refuses(peer, &mut signer).await?;
        }
    }

    // Memory first: the peers are fresh.
    let of_processes = process::lines(&options, tokens.known).await?;
    let mut lines = Vec::new();
    for row in ROWS.iter().filter(|row| options.wants(row.name)) {
        options.spread_over_both(row.setup == Two)?;
        let line = measure(row, rounds, share, &options, &tokens).await?;
        options.spread_over_both(false)?;
        eprintln!("{}", line.spread('S').or_else(|| line.spread('N')).unwrap_or_default());
        lines.push(line);
    }
    lines.extend(of_processes);
    if let Some(sockets) = options.policy {
        lines.extend(policy::lines(&options, sockets, &mut signer).await?);
        lines.extend(replicas::lines(&options, &mut signer).await?);
    }
    print!(
        "{}",
        table::markdown(&lines, &options.of(One).iter().map(|peer| peer.letter).collect::<Vec<_>>())
    );
    Ok(())
}

/// Rounds of A B C D, each begun by another peer; the first one only warms up.
async fn measure(
    row: &Row,
    rounds: usize,
    share: usize,
    options: &Options,
    tokens: &Tokens,
) -> io::Result<Line> {
    let operations = row.operations / share;
    let mut line = match row.against {
        Some(against) => Line::ratio(row.name, row.unit, against, Some(row.mark)),
        None => Line::value(row.name, row.unit, Some(row.mark)),
    };
    let peers = options.of(row.setup);
    for round in 0..=rounds {
        let tokens =
            Tokens { unseen: tokens.unseen.get(round * operations..).unwrap_or_default(), ..*tokens };
        let direct = match row.work {
            Work::HandshakeLatency => handshake_latency(options.direct, tokens.known, operations).await?,
            _ => 0.0,
        };
        for at in 0..peers.len() {
            let peer = peers[(at + round) % peers.len()];
            let value = sample(row.work, peer, operations, &tokens)
                .await
                .map_err(|error| of(row.name, peer, &error))?;
            if round > 0 {
                line.add(peer.letter, value - direct);
            }
        }
    }
    Ok(line)
}

pub(crate) fn of(row: &str, peer: &Peer, error: &io::Error) -> io::Error {
    io::Error::other(format!("{row}, {}: {error}", peer.letter))
}

async fn sample(work: Work, peer: &Peer, operations: usize, tokens: &Tokens) -> io::Result<f64> {
    let port = peer.port;
    match work {
        Work::Handshakes { unseen } => {
            let (known, fresh) = (tokens.known, tokens.unseen);
            let jobs = (0..LANES).map(|lane| async move {
                for n in (lane..operations).step_by(LANES) {
                    let token = if unseen { &fresh[n] } else { known };
                    Socket::open(port, token, n).await?.close().await?;
                }
                Ok(())
            });
            Ok(cpu_per_operation(peer, operations, at_once(jobs)).await?.0)
        }
        Work::Echo { sockets, size } => {
            let each = operations / sockets;
            let open = open(port, tokens.known, sockets).await?;
            let jobs = open.into_iter().enumerate().map(|(seed, mut socket)| async move {
                let mut message = Message::new(size, seed);
                for _ in 0..each {
                    socket.echo(&mut message).await?;
                }
                Ok(socket)
            });
            let (cost, open) = cpu_per_operation(peer, each * sockets, at_once(jobs)).await?;
            close(open).await?;
            Ok(cost)
        }
        Work::FanOut { sockets, size } => {
            let mut open = at_once((0..sockets).map(|n| Socket::join(port, tokens.known, n))).await?;
            let job = async move {
                let mut message = Message::new(size, 0);
                for _ in 0..operations / sockets {
                    open[0].send(&mut message).await?;
                    for socket in &mut open {
                        socket.expect(&message).await?;
                    }
                }
                Ok(open)
            };
            let (cost, open) = cpu_per_operation(peer, operations, at_once([job])).await?;
            close(open.into_iter().flatten().collect()).await?;
            Ok(cost)
        }
        Work::Pages { connections } => {
            let each = operations / connections;
            let open = at_once((0..connections).map(|_| Pages::open(port))).await?;
            let jobs = open.into_iter().map(|mut pages| async move {
                for _ in 0..each {
                    pages.get().await?;
                }
                Ok(())
            });
            Ok(cpu_per_operation(peer, each * connections, at_once(jobs)).await?.0)
        }
        Work::EchoLatency { size } => {
            let mut socket = Socket::open(port, tokens.known, 0).await?;
            let mut message = Message::new(size, 0);
            let mut times = Vec::with_capacity(operations);
            for _ in 0..operations {
                let start = Instant::now();
                socket.echo(&mut message).await?;
                times.push(start.elapsed());
            }
            socket.close().await?;
            Ok(middle(times))
        }
        Work::HandshakeLatency => handshake_latency(port, tokens.known, operations).await,
    }
}

async fn handshake_latency(port: u16, token: &'static str, operations: usize) -> io::Result<f64> {
    let mut times = Vec::with_capacity(operations);
    for n in 0..operations {
        let start = Instant::now();
        let socket = Socket::open(port, token, n).await?;
        times.push(start.elapsed());
        socket.close().await?;
    }
    Ok(middle(times))
}

/// Microseconds.
fn middle(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

/// Microseconds of the peer's CPU for each operation.
async fn cpu_per_operation<T>(
    peer: &Peer,
    operations: usize,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<(f64, T)> {
    let before = proc::cpu(peer.pid)?;
    let done = work.await?;
    sleep(SETTLE).await;
    let spent = proc::cpu(peer.pid)? - before;
    Ok((spent as f64 / operations as f64 / 1e3, done))
}

pub(crate) async fn open(port: u16, token: &'static str, count: usize) -> io::Result<Vec<Socket>> {
    let lanes = LANES.min(count);
    let jobs = (0..lanes).map(|lane| async move {
        let mut open = Vec::with_capacity(count / lanes + 1);
        for n in (lane..count).step_by(lanes) {
            open.push(Socket::open(port, token, n).await?);
        }
        Ok(open)
    });
    Ok(at_once(jobs).await?.into_iter().flatten().collect())
}

pub(crate) async fn close(open: Vec<Socket>) -> io::Result<()> {
    at_once(open.into_iter().map(Socket::close)).await.map(drop)
}

/// Until it lets a good token through to the backend.
async fn ready(peer: &Peer, token: &str) -> io::Result<()> {
    let start = Instant::now();
    loop {
        match Socket::open(peer.port, token, 0).await {
            Ok(socket) => return socket.close().await,
            Err(error) if start.elapsed() > PATIENCE => {
                return wrong(format!("{} is not ready: {error}", peer.letter));
            }
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A peer that lets these through has not done the work that is measured.
async fn refuses(peer: &Peer, signer: &mut Signer) -> io::Result<()> {
    let good = signer.token(Claims::GOOD)?;
    let (body, signature) = good.rsplit_once('.').unwrap_or_default();
    let other = if signature.starts_with('A') { "B" } else { "A" };
    let bad = [
        ("a broken signature", format!("{body}.{other}{}", &signature[1..])),
        ("an expired token", signer.token(Claims { life: -60, ..Claims::GOOD })?),
        (
            "a foreign issuer",
            signer.token(Claims { issuer: "https://other.example.com/realms/bench", ..Claims::GOOD })?,
        ),
        ("a foreign audience", signer.token(Claims { audience: "other", ..Claims::GOOD })?),
    ];
    for (what, token) in bad {
        let status = verdict(peer.port, &token).await?;
        if status != 401 && status != 403 {
            return wrong(format!("{} answers {what} with {status}", peer.letter));
        }
    }
    Ok(())
}
