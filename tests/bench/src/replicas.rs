//! The rows of replicas: what sharing by a Redis server costs, and how soon a revocation is everywhere.

use std::io;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::backend;
use crate::client::{Socket, wrong};
use crate::gate::Gate;
use crate::keys::{Claims, Signer};
use crate::policy::{at, sockets};
use crate::rows::Options;
use crate::table::Line;

/// Sockets on the gate that is told.
const SOCKETS: usize = 5000;
/// After which nothing of the last step is under way any more.
const REST: Duration = Duration::from_millis(1500);
const FIRST: &str = "replicas: ";

pub(crate) async fn lines(options: &Options, signer: &mut Signer) -> io::Result<Vec<Line>> {
    let value = |name: &str, unit, mark| Line::value(format!("{FIRST}{name}"), unit, mark);
    let mut rows = [
        value("one of 5,000 sockets of B revoked on A, p99 to its Close", "ms", Some(100.0)),
        value("all 5,000 revoked on A, the last Close on B", "ms", None),
        value("handshake, p50 added by Redis for revocations", "µs", None),
        value("… by one key of the backend's own blacklist", "µs", Some(300.0)),
        value("… by sessions_per_user over all replicas", "µs", None),
    ];
    if !rows.iter().any(|row| options.wants(row.name())) {
        return Ok(Vec::new());
    }
    let (single, repeats, handshakes) = if options.quick { (100, 1, 200) } else { (300, 3, 1000) };
    let port = |name| backend::port(&options.dir, name);
    let (a, b) = (port("POLICY")?, port("RULE")?);
    {
        let a = Gate::start(&options.dir, "shared", a).await?;
        let b = Gate::start(&options.dir, "shared-b", b).await?;
        for _ in 0..repeats {
            let (one, all) = revoked(&a, &b, signer, single).await?;
            rows[0].add('S', one);
            rows[1].add('S', all);
        }
    }
    // In turn with one that knows no other.
    let token = signer.token(Claims::GOOD)?;
    for (row, name) in [(2, "shared"), (3, "keys"), (4, "limited")] {
        for _ in 0..repeats {
            let alone = handshake(options, "bare", a, &token, handshakes).await?;
            let with = handshake(options, name, a, &token, handshakes).await?;
            rows[row].add('S', with - alone);
        }
    }
    let mut lines: Vec<Line> = rows.into();
    lines.retain(|line| options.wants(line.name()));
    for line in &lines {
        eprintln!("{}", line.spread('S').unwrap_or_default());
    }
    Ok(lines)
}

/// Milliseconds from the request at A to the Close at B: p99 of single ones, and the last of all at once.
async fn revoked(a: &Gate, b: &Gate, signer: &mut Signer, single: usize) -> io::Result<(f64, f64)> {
    let mut open = sockets(b, signer, SOCKETS).await?;
    sleep(REST).await;
    let mut times = Vec::with_capacity(single);
    for n in 0..single {
        let (socket, jti) = open.swap_remove(n * 7919 % open.len());
        let waiting = tokio::spawn(socket.revoked());
        let start = Instant::now();
        a.revoke("jti", &jti).await?;
        let end = waiting.await.map_err(io::Error::other)??;
        times.push((end - start).as_secs_f64() * 1e3);
        sleep(Duration::from_millis(5)).await;
    }
    times.sort_unstable_by(f64::total_cmp);
    let (middle, p99, highest) = (at(&times, 50), at(&times, 99), at(&times, 100));
    eprintln!("one revoked on another gate: p50 {middle:.2} ms, p99 {p99:.2}, highest {highest:.2}");
    let (last, _) = crate::policy::revoke_all(a, b, open).await?;
    Ok((p99, last))
}

/// Wall clock from connect to 101, one at a time: p50, in microseconds.
async fn handshake(options: &Options, name: &str, port: u16, token: &str, count: usize) -> io::Result<f64> {
    let gate = Gate::start(&options.dir, name, port).await?;
    let mut times = Vec::with_capacity(count);
    for n in 0..count + count / 10 {
        let start = Instant::now();
        let socket = Socket::open_from_page(gate.port, token, n).await?;
        // The first ones warm up.
        if n >= count / 10 {
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        socket.close().await?;
    }
    if times.is_empty() {
        return wrong("nothing was measured");
    }
    times.sort_unstable_by(f64::total_cmp);
    Ok(at(&times, 50))
}
