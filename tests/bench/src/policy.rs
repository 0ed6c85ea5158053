//! The rows of policy: what verdicts, a long blacklist and revocations cost the gate. No peer has the like.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::backend;
use crate::client::{Socket, at_once, verdict, wrong};
use crate::gate::Gate;
use crate::keys::{Claims, Quick, Signer, now};
use crate::proc;
use crate::rows::{LANES, Options, PATIENCE};
use crate::table::Line;

/// Lines of the file.
const ENTRIES: usize = 1_000_000;
/// A file that has not been changed for so long is no longer read again (the gate: 2 s, looked at each second).
const SETTLED: Duration = Duration::from_millis(4500);
/// After which nothing of the last step is under way any more.
const REST: Duration = Duration::from_millis(1500);
const VERDICT: &str = "websocket_auth_latency_seconds";
const REVOKED: &str = "revocation_to_close_seconds";

/// How much of everything.
struct Extent {
    /// Samples of verdicts: many and short, so that whoever takes the CPU from the gate spoils few of them.
    rounds: usize,
    /// Handshakes of one sample.
    handshakes: usize,
    /// Samples of all that takes seconds.
    repeats: usize,
    /// Revocations of one socket each.
    single: usize,
    sockets: usize,
}

struct Rows {
    verdict: Line,
    rule: Line,
    rss: Line,
    start: Line,
    change: Line,
    peak: Line,
    one: Line,
    one_told: Line,
    all: Line,
    all_told: Line,
}

impl Rows {
    fn new(sockets: usize) -> Self {
        let value = |name: &str, unit, mark| Line::value(format!("policy: {name}"), unit, mark);
        Self {
            verdict: value("verdict on a known token, 10⁶ revoked", "µs", Some(5.0)),
            rule: value("the same with a rule in CEL, added", "µs", Some(8.0)),
            rss: value("RSS of a blacklist of 10⁶ lines", "MB", Some(120.0)),
            start: value("its first reading", "CPU ms", None),
            change: value("its reading again for one line more", "CPU ms", None),
            peak: value("peak RSS meanwhile, added", "MB", None),
            one: value(&format!("one of {sockets} sockets revoked, p99 to its Close"), "ms", Some(50.0)),
            one_told: value("the same, mean that the gate tells", "ms", None),
            all: value(&format!("all {sockets} revoked at once, the last Close"), "ms", Some(1000.0)),
            all_told: value("the same, mean that the gate tells", "ms", None),
        }
    }

    fn all(self) -> [Line; 10] {
        let Self { verdict, rule, rss, start, change, peak, one, one_told, all, all_told } = self;
        [verdict, rule, rss, start, change, peak, one, one_told, all, all_told]
    }
}

pub(crate) async fn lines(options: &Options, sockets: usize, signer: &mut Signer) -> io::Result<Vec<Line>> {
    let mut rows = Rows::new(sockets);
    let wanted = |lines: &[&Line]| lines.iter().any(|line| options.wants(line.name()));
    let file = [&rows.rss, &rows.start, &rows.change, &rows.peak];
    let verdicts = [&rows.verdict, &rows.rule];
    let revocations = [&rows.one, &rows.one_told, &rows.all, &rows.all_told];
    let (file, verdicts, revocations) = (wanted(&file), wanted(&verdicts), wanted(&revocations));
    if !(file || verdicts || revocations) {
        return Ok(Vec::new());
    }
    let extent = if options.quick {
        Extent { rounds: 9, handshakes: 256, repeats: 1, single: 100, sockets }
    } else {
        Extent { rounds: 45, handshakes: 512, repeats: 3, single: 300, sockets }
    };
    let dir = &options.dir;
    let revoked = signer.quick()?;
    write_blacklist(&dir.join("blacklist"), &revoked.jti)?;
    sleep(SETTLED).await;
    if file {
        measure_file(dir, &extent, &mut rows).await?;
    }
    let gate = Gate::start(dir, "policy", backend::port(dir, "POLICY")?).await?;
    if verdict(gate.port, &revoked.token).await? != 401 {
        return wrong("the gate admits a token of its blacklist");
    }
    if verdicts {
        measure_verdicts(dir, &gate, &extent, signer, &mut rows).await?;
    }
    if revocations {
        measure_revocations(&gate, &extent, signer, &mut rows).await?;
    }
    let mut lines: Vec<Line> = rows.all().into();
    lines.retain(|line| options.wants(line.name()));
    for line in &lines {
        eprintln!("{}", line.spread('S').unwrap_or_default());
    }
    Ok(lines)
}

/// Lines as of Keycloak's tokens; `last` is the last one.
fn write_blacklist(path: &Path, last: &str) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for n in 1..ENTRIES as u64 {
        let (high, low) = (mixed(2 * n), mixed(2 * n + 1));
        writeln!(
            file,
            "jti {:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
            high >> 32,
            high >> 16 & 0xFFFF,
            high & 0xFFF,
            low >> 52,
            low & 0xFFFF_FFFF_FFFF
        )?;
    }
    writeln!(file, "jti {last}")?;
    file.flush()
}

/// `SplitMix64`: like random, but the same in every run.
fn mixed(n: u64) -> u64 {
    let n = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 31)
}

/// A gate with the file, less one without: RSS at rest and CPU until ready. Then one line more.
async fn measure_file(dir: &Path, extent: &Extent, rows: &mut Rows) -> io::Result<()> {
    let port = backend::port(dir, "POLICY")?;
    for _ in 0..extent.repeats {
        let (bare, bare_rss, bare_cpu, bare_time) = started(dir, "bare", port).await?;
        drop(bare);
        let (gate, rss, cpu, time) = started(dir, "policy", port).await?;
        rows.rss.add('S', (rss as f64 - bare_rss as f64) / 1e6);
        rows.start.add('S', (cpu as f64 - bare_cpu as f64) / 1e6);
        eprintln!("ready after {time:.2?}, without the file after {bare_time:.2?}");
        one_line_more(dir, &gate, rows).await?;
    }
    Ok(())
}

/// RSS at rest, and what the start has taken of CPU (in nanoseconds) and of time.
async fn started(dir: &Path, name: &str, port: u16) -> io::Result<(Gate, u64, u64, Duration)> {
    let start = Instant::now();
    let gate = Gate::start(dir, name, port).await?;
    let (time, cpu) = (start.elapsed(), proc::cpu(gate.pid())?);
    sleep(REST).await;
    let rss = proc::rss(gate.pid())?;
    Ok((gate, rss, cpu, time))
}

/// All that it costs until the gate no longer looks into the file: it reads it again as long as it may have changed
/// without showing it.
async fn one_line_more(dir: &Path, gate: &Gate, rows: &mut Rows) -> io::Result<()> {
    let entries = gate.gauge("blacklist_entries").await?;
    let rss = proc::rss(gate.pid())?;
    proc::forget_peak(gate.pid())?;
    let (start, before) = (Instant::now(), proc::cpu(gate.pid())?);
    let mut file = OpenOptions::new().append(true).open(dir.join("blacklist"))?;
    writeln!(file, "jti 00000000-0000-4000-a000-{entries:012}")?;
    drop(file);
    while gate.gauge("blacklist_entries").await? < entries + 0.5 {
        if start.elapsed() > PATIENCE {
            return wrong("one line more in the file is not seen");
        }
        sleep(Duration::from_millis(50)).await;
    }
    let seen = start.elapsed();
    sleep(SETTLED).await;
    let after = proc::rss(gate.pid())?;
    rows.change.add('S', (proc::cpu(gate.pid())? - before) as f64 / 1e6);
    rows.peak.add('S', (proc::peak(gate.pid())? as f64 - rss as f64) / 1e6);
    eprintln!(
        "one line more holds after {seen:.2?}; RSS {:.1} MB, before it {:.1}",
        after as f64 / 1e6,
        rss as f64 / 1e6
    );
    Ok(())
}

/// By the gate's own clock, from the head read to the verdict: two gates in turn, one of them with a rule.
async fn measure_verdicts(
    dir: &Path,
    gate: &Gate,
    extent: &Extent,
    signer: &mut Signer,
    rows: &mut Rows,
) -> io::Result<()> {
    let with_rule = Gate::start(dir, "rule", backend::port(dir, "RULE")?).await?;
    let outside = signer.token(Claims { rooms: r#"["lobby","support"]"#, ..Claims::GOOD })?;
    Socket::open(gate.port, &outside, 0).await?.close().await?;
    if verdict(with_rule.port, &outside).await? != 403 {
        return wrong("the rule admits who is in another room");
    }
    let token: &'static str = signer.token(Claims::GOOD)?.leak();
    // The first round verifies the token and warms up.
    for round in 0..=extent.rounds {
        let plain = verdict_of(gate, token, extent.handshakes).await?;
        let ruled = verdict_of(&with_rule, token, extent.handshakes).await?;
        if round > 0 {
            rows.verdict.add('S', plain);
            rows.rule.add('S', ruled - plain);
        }
    }
    Ok(())
}

/// Mean, in microseconds.
async fn verdict_of(gate: &Gate, token: &'static str, operations: usize) -> io::Result<f64> {
    let before = gate.histogram(VERDICT).await?;
    let port = gate.port;
    let jobs = (0..LANES).map(|lane| async move {
        for n in (lane..operations).step_by(LANES) {
            Socket::open_from_page(port, token, n).await?.close().await?;
        }
        Ok(())
    });
    at_once(jobs).await?;
    Ok(gate.histogram(VERDICT).await?.mean_since(&before, operations)? * 1e6)
}

/// Single ones first, one at a time; then all sockets at once, several times over.
async fn measure_revocations(
    gate: &Gate,
    extent: &Extent,
    signer: &mut Signer,
    rows: &mut Rows,
) -> io::Result<()> {
    let mut open = sockets(gate, signer, extent.sockets).await?;
    sleep(REST).await;
    let before = gate.histogram(REVOKED).await?;
    let mut times = Vec::with_capacity(extent.single);
    for n in 0..extent.single {
        let (socket, jti) = open.swap_remove(n * 7919 % open.len());
        let waiting = tokio::spawn(socket.revoked());
        let start = Instant::now();
        let closed = gate.revoke("jti", &jti).await?;
        let end = waiting.await.map_err(io::Error::other)??;
        times.push((end - start).as_secs_f64() * 1e3);
        if closed != 1 {
            return wrong("one revoked token has not ended one session");
        }
        sleep(Duration::from_millis(5)).await;
    }
    times.sort_unstable_by(f64::total_cmp);
    let [middle, p90, p99, highest] = [50, 90, 99, 100].map(|percent| at(&times, percent));
    eprintln!("one revoked: p50 {middle:.2} ms, p90 {p90:.2}, p99 {p99:.2}, highest {highest:.2}");
    rows.one.add('S', p99);
    rows.one_told.add('S', gate.histogram(REVOKED).await?.mean_since(&before, extent.single)? * 1e3);

    open.extend(sockets(gate, signer, extent.single).await?);
    for round in 0..extent.repeats {
        if round > 0 {
            open = sockets(gate, signer, extent.sockets).await?;
        }
        let (last, told) = revoke_all(gate, gate, std::mem::take(&mut open)).await?;
        rows.all.add('S', last);
        rows.all_told.add('S', told);
    }
    Ok(())
}

/// What so many in a hundred stay below.
pub(crate) fn at(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() - 1) * percent / 100]
}

/// Revokes all sockets of a gate on one that may be another: milliseconds to the last Close, and the mean that the
/// gate tells.
pub(crate) async fn revoke_all(
    asked: &Gate,
    gate: &Gate,
    open: Vec<(Socket, String)>,
) -> io::Result<(f64, f64)> {
    let count = open.len();
    let waiting = tokio::spawn(at_once(open.into_iter().map(|(socket, _)| socket.revoked())));
    sleep(REST).await;
    let before = gate.histogram(REVOKED).await?;
    let moment = rfc3339(now()?.as_secs() + 1);
    let (start, cpu) = (Instant::now(), proc::cpu(gate.pid())?);
    let closed = asked.revoke("issued_before", &moment).await?;
    let answered = start.elapsed();
    let mut ends = waiting.await.map_err(io::Error::other)??;
    ends.sort_unstable();
    let since = |end: Option<&Instant>| end.map_or(0.0, |end| (*end - start).as_secs_f64() * 1e3);
    // Tokens of the next round are issued later.
    sleep(REST).await;
    if std::ptr::eq(asked, gate) && closed != count {
        return wrong(format!("the revocation has ended {closed} of {count} sessions"));
    }
    eprintln!(
        "all {count} revoked: answer after {answered:.0?}, Closes {:.0} … {:.0} … {:.0} ms; CPU {:.0} ms in all",
        since(ends.first()),
        since(ends.get(count / 2)),
        since(ends.last()),
        (proc::cpu(gate.pid())? - cpu) as f64 / 1e6
    );
    let told = gate.histogram(REVOKED).await?.mean_since(&before, count)?;
    Ok((since(ends.last()), told * 1e3))
}

/// Open sockets, each with a token of its own, and its `jti`.
pub(crate) async fn sockets(gate: &Gate, signer: &mut Signer, count: usize) -> io::Result<Vec<(Socket, String)>> {
    let mut lanes: Vec<Vec<Quick>> = (0..LANES).map(|_| Vec::new()).collect();
    for n in 0..count {
        lanes[n % LANES].push(signer.quick()?);
    }
    let port = gate.port;
    let jobs = lanes.into_iter().map(|lane| async move {
        let mut open = Vec::with_capacity(lane.len());
        for (n, Quick { token, jti }) in lane.into_iter().enumerate() {
            open.push((Socket::open_from_page(port, &token, n).await?, jti));
        }
        Ok(open)
    });
    Ok(at_once(jobs).await?.into_iter().flatten().collect())
}

/// A moment, given in seconds since the epoch.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86400, seconds % 86400);
    // Years from March on: the leap day is the last one.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + u64::from(month < 3);
    let mut text = String::new();
    let _ = write!(
        text,
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    );
    text
}
