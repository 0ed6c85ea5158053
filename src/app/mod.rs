//! Floor 5: what surrounds the serving: command line, configuration, boot, admin listener, drain, demo.
//! `config::load` → [`bind`] → [`Bound::run`].

pub mod admin;
pub mod cli;
pub mod config;
pub mod control;
pub mod demo;
pub mod drain;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use self::config::Config;
use self::drain::Control;
use crate::io::listener;
use crate::proxy::connection;
use crate::proxy::entry::Worker;
use crate::proxy::forward::pools;
use crate::proxy::plan::Gate;
use crate::proxy::wire::HeadLimits;
use crate::state::lifecycle::Lifecycle;
use crate::state::permits::Permits;
use crate::state::sessions::Sessions;
use crate::state::verified::VerifiedTokens;
pub use crate::telemetry::logging::{Format, Level, Log, LogSettings};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::record::Recorder;

/// File descriptors that are no client's: listeners, admin, fetches, the process's own.
const SPARE_FILES: u32 = 64;
/// Shorter than all but the shortest timeouts of a handshake.
const TICK: Duration = Duration::from_secs(1);
/// "Out of …" is said no more often than this.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// A gate that holds all its listeners and has served nobody yet.
#[derive(Debug)]
pub struct Bound {
    gate: Arc<Gate>,
    /// The listeners of each worker.
    workers: Vec<Vec<std::net::TcpListener>>,
    admin: admin::Listeners,
    limits: HeadLimits,
    control: Arc<Control>,
}

/// Opens every listener; whatever is wrong is known before a thread is started.
pub fn bind(config: Config, log: Log) -> Result<Bound> {
    let metrics = Arc::new(Metrics::new(&config.metrics));
    for issuer in &config.snapshot.issuers {
        metrics.know_issuer(&issuer.policy.url);
    }
    let max_connections = affordable_connections(config.listen.max_connections, &log);
    let mut workers: Vec<Vec<_>> = (0..config.workers).map(|_| Vec::new()).collect();
    for address in &config.listen.addresses {
        let listeners = listener::listen(*address, config.workers)
            .with_context(|| format!("cannot listen on {address} ([listen] address)"))?;
        workers.iter_mut().zip(listeners).for_each(|(worker, listener)| worker.push(listener));
    }
    let admin = admin::Listeners::bind(&config.admin)?;
    let mut secret = [0; 16];
    aws_lc_rs::rand::fill(&mut secret).map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
    let gate = Arc::new(Gate {
        snapshot: config.snapshot,
        verified: VerifiedTokens::new(config.token_cache, secret),
        sessions: Sessions::new(metrics.users.clone()),
        permits: Permits::new(config.max_sessions),
        connections: Permits::new(Some(max_connections)),
        lifecycle: Lifecycle::default(),
        recorder: Arc::new(Recorder { log, metrics }),
    });
    let control = Arc::new(Control::new(Arc::clone(&gate), config.drain));
    Ok(Bound { gate, workers, admin, limits: config.listen.limits, control })
}

/// Each connection needs two descriptors: the client's and the backend's.
fn affordable_connections(wanted: Option<u32>, log: &Log) -> u32 {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let files = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse::<u32>().ok());
    let affordable = files.map_or(u32::MAX, |files| (files.saturating_sub(SPARE_FILES) / 2).max(1));
    if let Some(wanted) = wanted.filter(|wanted| affordable < *wanted) {
        let message = format!(
            "max_connections = {wanted} needs {} file descriptors, the limit is {}: lowered to {affordable}",
            u64::from(wanted) * 2 + u64::from(SPARE_FILES),
            files.unwrap_or_default()
        );
        log.say(Level::Warn, "max_connections_lowered", &message);
    }
    wanted.unwrap_or(u32::MAX).min(affordable)
}

impl Bound {
    /// Where clients connect to.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.workers
            .iter()
            .flatten()
            .take(self.workers.first().map_or(0, Vec::len))
            .filter_map(|l| l.local_addr().ok())
            .collect()
    }

    /// Addresses of the admin listener and of the probes, if they are TCP.
    pub fn admin_addresses(&self) -> (Option<SocketAddr>, Option<SocketAddr>) {
        self.admin.addresses()
    }

    /// To drain or stop it from another thread.
    pub fn control(&self) -> Arc<Control> {
        Arc::clone(&self.control)
    }

    /// Serves until a drain has ended. `signals` = the process's signals are ours.
    pub fn run(self, signals: bool) -> Result<drain::Ending> {
        let mut threads = Vec::new();
        let log = self.gate.recorder.log.clone();
        if let Some(line) = log.line(Level::Info, "listening") {
            let addresses: Vec<_> = self.addresses().iter().map(ToString::to_string).collect();
            line.text("address", &addresses.join(", ")).number("workers", self.workers.len() as u64).write();
        }
        for (n, listeners) in self.workers.into_iter().enumerate() {
            let (gate, control, limits) = (Arc::clone(&self.gate), Arc::clone(&self.control), self.limits);
            let thread = std::thread::Builder::new().name(format!("worker-{n}"));
            threads.push(thread.spawn(move || work(&gate, &control, limits, listeners))?);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (gate, control, admin) = (self.gate, self.control, self.admin);
        let ending = runtime.block_on(async {
            for issuer in &gate.snapshot.issuers {
                tokio::spawn(Arc::clone(issuer).keep_fresh(Arc::clone(&gate.recorder)));
            }
            admin.serve(&control)?;
            if signals {
                drain::obey_signals(&control)?;
            }
            Ok::<_, anyhow::Error>(control.run().await)
        });
        self::drain::Control::stop(&control);
        for thread in threads {
            if let Ok(Err(error)) = thread.join() {
                log.say(Level::Error, "worker_failed", &error.to_string());
            }
        }
        log.flush();
        ending
    }
}

/// One worker: a thread with a runtime of its own, so that no session ever changes threads.
fn work(
    gate: &Arc<Gate>,
    control: &Arc<Control>,
    limits: HeadLimits,
    listeners: Vec<std::net::TcpListener>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        // Rounds this long let all that are ready judge, then all dial.
        .event_interval(512)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut prefix = [0; 8];
        let _ = aws_lc_rs::rand::fill(&mut prefix);
        let worker = Arc::new(Worker {
            gate: Arc::clone(gate),
            pools: pools(&gate.snapshot.upstreams),
            id_prefix: u64::from_ne_bytes(prefix),
            id_next: AtomicU64::new(0),
        });
        for listener in listeners {
            let listener = TcpListener::from_std(listener)?;
            tokio::spawn(accept(Arc::clone(&worker), limits, listener, control.closing()));
        }
        // tokio wakes its driver, by a system call, for each timer that becomes the earliest of all. With
        // one that is never far away almost none does.
        let mut tick = tokio::time::interval(TICK);
        tokio::spawn(async move {
            loop {
                tick.tick().await;
            }
        });
        control.stopped().await;
        Ok(())
    })
}

async fn accept(
    worker: Arc<Worker>,
    limits: HeadLimits,
    listener: TcpListener,
    closing: watch::Receiver<bool>,
) {
    let mut warned: Option<Instant> = None;
    let mut warn = |event: &str, message: &str| {
        if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            warned = Some(Instant::now());
            worker.gate.recorder.log.say(Level::Warn, event, message);
        }
    };
    loop {
        let Some((stream, peer)) = listener::accept(&listener).await else {
            warn("accept_paused", "no file descriptors left: raise the limit of open files");
            tokio::time::sleep(listener::REST).await;
            continue;
        };
        let slot = loop {
            if let Some(slot) = worker.gate.connections.take() {
                break slot;
            }
            warn("accept_paused", "[listen] max_connections is reached");
            tokio::time::sleep(listener::REST).await;
        };
        let peer = peer.ip().to_canonical();
        tokio::spawn(connection::run(Arc::clone(&worker), limits, stream, peer, slot, closing.clone()));
    }
}
