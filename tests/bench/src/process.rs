//! The rows of a peer's process: what it takes of memory, of CPU when nothing is said, and of time to start.

use std::fs;
use std::io;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::backend;
use crate::client::{Message, Pages, Socket, at_once, wrong};
use crate::proc;
use crate::rows::{LANES, Options, PATIENCE, Peer, Setup, close, of, open};
use crate::table::Line;

/// Between two looks at whether a peer that is starting accepts.
const LOOK: Duration = Duration::from_micros(50);

struct Rows {
    none: Line,
    idle: Line,
    after: Line,
    executable: Line,
    quiet: Line,
    start: Line,
}

impl Rows {
    fn new(idle: usize) -> Self {
        let half = idle / 2;
        Self {
            none: Line::value("RSS with no socket", "MB", Some(10.0)),
            idle: Line::value(format!("RSS of an idle socket ({half} to {idle})"), "kB", Some(2.0)),
            after: Line::value("RSS of an idle socket, after 16 KiB there and back", "kB", Some(2.0)),
            executable: Line::value("size of the executable", "MB", Some(15.0)),
            quiet: Line::value(format!("idle CPU, {idle} sockets, heartbeats off"), "ms/s", Some(0.1)),
            start: Line::value("start to first accept", "ms", Some(10.0)),
        }
    }
}

/// The lines that are wanted. The peers must be fresh.
pub(crate) async fn lines(options: &Options, token: &'static str) -> io::Result<Vec<Line>> {
    let mut rows = Rows::new(options.idle);
    let wanted = |lines: &[&Line]| lines.iter().any(|line| options.wants(line.name()));
    if wanted(&[&rows.none, &rows.idle, &rows.after]) {
        for peer in options.of(Setup::One) {
            let [none, idle, after] =
                memory(peer, options, token).await.map_err(|error| of("memory", peer, &error))?;
            rows.none.add(peer.letter, none);
            rows.idle.add(peer.letter, idle);
            rows.after.add(peer.letter, after);
            eprintln!("{}: {none:.2} MB, {idle:.2} kB, {after:.2} kB (memory)", peer.letter);
        }
    }
    for peer in options.of(Setup::One) {
        rows.executable.add(peer.letter, proc::executable(peer.pid)? as f64 / 1e6);
    }
    if wanted(&[&rows.quiet]) {
        let quiet = options.of(Setup::Quiet);
        for peer in options.of(Setup::One) {
            // Only the gate has heartbeats.
            let peer = quiet.iter().find(|quiet| quiet.letter == peer.letter).unwrap_or(&peer);
            let value = idle_cpu(peer, options, token).await.map_err(|error| of("idle", peer, &error))?;
            rows.quiet.add(peer.letter, value);
        }
    }
    if wanted(&[&rows.start]) {
        options.spread_over_both(true)?;
        starts(options, &mut rows.start).await?;
        options.spread_over_both(false)?;
    }
    let Rows { none, idle, after, executable, quiet, start } = rows;
    let mut lines = vec![none, idle, after, executable, quiet, start];
    lines.retain(|line| options.wants(line.name()));
    for line in &lines {
        eprintln!("{}", line.spread('S').unwrap_or_default());
    }
    Ok(lines)
}

/// Of no socket in MB, of each, and of each after traffic in kB. The first half of the sockets pays for what the
/// second half no longer has to: tables that grow, arenas, the token.
async fn memory(peer: &Peer, options: &Options, token: &'static str) -> io::Result<[f64; 3]> {
    let pause = Duration::from_millis(if options.quick { 500 } else { 1500 });
    let half = options.idle / 2;
    sleep(pause).await;
    let none = proc::rss(peer.pid)?;
    let mut sockets = open(peer.port, token, half).await?;
    sleep(pause).await;
    let at_half = proc::rss(peer.pid)?;
    sockets.extend(open(peer.port, token, half).await?);
    sleep(pause).await;
    let at_full = proc::rss(peer.pid)?;

    let mut lanes: Vec<Vec<Socket>> = (0..LANES).map(|_| Vec::new()).collect();
    for (n, socket) in sockets.into_iter().enumerate() {
        lanes[n % LANES].push(socket);
    }
    let jobs = lanes.into_iter().map(|mut lane| async move {
        let mut message = Message::new(16 * 1024, 0);
        for socket in &mut lane {
            socket.echo(&mut message).await?;
        }
        Ok(lane)
    });
    let sockets: Vec<Socket> = at_once(jobs).await?.into_iter().flatten().collect();
    sleep(pause).await;
    let after = proc::rss(peer.pid)?;
    close(sockets).await?;
    sleep(pause).await;

    let per_socket = |low: u64, high: u64, count: usize| (high as f64 - low as f64) / count as f64 / 1e3;
    let idle = per_socket(at_half, at_full, half);
    Ok([none as f64 / 1e6, idle, idle + per_socket(at_full, after, 2 * half)])
}

/// Milliseconds in each second, long enough for a tick of a second to be counted fairly.
async fn idle_cpu(peer: &Peer, options: &Options, token: &'static str) -> io::Result<f64> {
    let sockets = open(peer.port, token, options.idle).await?;
    let (rest, long) = if options.quick { (1, 2) } else { (2, 10) };
    sleep(Duration::from_secs(rest)).await;
    let (start, before) = (Instant::now(), proc::cpu(peer.pid)?);
    sleep(Duration::from_secs(long)).await;
    let spent = (proc::cpu(peer.pid)? - before) as f64 / 1e6 / start.elapsed().as_secs_f64();
    close(sockets).await?;
    Ok(spent)
}

/// In turn, one more of each before them warms up.
async fn starts(options: &Options, line: &mut Line) -> io::Result<()> {
    let port = backend::port(&options.dir, "START")?;
    for round in 0..=if options.quick { 7 } else { 21 } {
        for peer in options.of(Setup::One) {
            let spent = start(peer.letter, port, options).await.map_err(|error| of("start", peer, &error))?;
            if round > 0 {
                line.add(peer.letter, spent.as_secs_f64() * 1e3);
            }
        }
    }
    Ok(())
}

/// From before its program is started until a connect to it succeeds. Then it must also serve.
async fn start(letter: char, port: u16, options: &Options) -> io::Result<Duration> {
    let words = fs::read_to_string(options.dir.join(format!("{letter}.start")))?;
    let mut words = words.lines();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if TcpStream::connect(("127.0.0.1", port)).is_ok() {
        return wrong("something is there already");
    }
    let start = Instant::now();
    let mut child = command.spawn()?;
    // Its pid is for `run`, should this be killed.
    fs::write(options.dir.join("start.gate"), child.id().to_string())?;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if start.elapsed() > PATIENCE || child.try_wait()?.is_some() {
            end(&mut child).await?;
            return wrong("it does not accept");
        }
        // Nothing else is under way.
        thread::sleep(LOOK);
    }
    let spent = start.elapsed();
    let served = Pages::open(port).await?.get().await;
    end(&mut child).await?;
    fs::remove_file(options.dir.join("start.gate"))?;
    served.map(|()| spent)
}

async fn end(child: &mut Child) -> io::Result<()> {
    proc::terminate(child.id())?;
    let start = Instant::now();
    while child.try_wait()?.is_none() {
        if start.elapsed() > PATIENCE {
            child.kill()?;
        }
        sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}
