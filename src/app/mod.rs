//! Floor 5: what surrounds the serving: command line, configuration, boot, admin listener, drain, demo.
//! `config::load` → [`bind`] → [`Bound::run`].

pub mod admin;
mod answer;
mod beat;
pub mod cli;
pub mod config;
pub mod control;
pub mod demo;
pub mod drain;
mod explain;
mod feed;
mod operator;
pub mod reload;
pub mod report;
mod sharing;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use self::beat::Beat;
use self::config::Config;
use self::drain::Control;
use self::feed::FileFeed;
use self::reload::{Fetchers, Reloader, affordable};
use crate::io::listener;
use crate::proxy::connection;
use crate::proxy::gate::Gate;
use crate::proxy::worker::Worker;
pub use crate::telemetry::logging::{Format, Level, Log, LogSettings};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::record::Recorder;

/// Shorter than the timeouts of a handshake, and long enough for a gate at rest.
const TICK: Duration = Duration::from_millis(4096);
/// "Out of …" is said no more often than this.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// A gate that holds all its listeners and has served nobody yet.
#[derive(Debug)]
pub struct Bound {
    /// The listeners of each worker.
    workers: Vec<Vec<std::net::TcpListener>>,
    admin: admin::Listeners,
    control: Arc<Control>,
    feed: FileFeed,
    reloader: Option<Reloader>,
}

/// Opens every listener; whatever is wrong is known before a thread is started.
pub fn bind(config: Config, log: Log) -> Result<Bound> {
    let metrics = Arc::new(Metrics::new(&config.metrics));
    let recorder = Arc::new(Recorder { log, metrics });
    let max_connections = affordable(config.listen.max_connections, &recorder.log);
    let mut workers: Vec<Vec<_>> = (0..config.workers).map(|_| Vec::new()).collect();
    for address in &config.listen.addresses {
        let listeners = listener::listen(*address, config.workers)
            .with_context(|| format!("cannot listen on {address} ([listen] address)"))?;
        workers.iter_mut().zip(listeners).for_each(|(worker, listener)| worker.push(listener));
    }
    let admin = admin::Listeners::bind(&config.admin)?;
    let mut secret = [0; 16];
    getrandom::fill(&mut secret).map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
    let gate = Gate::new(config.settings, recorder, max_connections, secret);
    let feed = FileFeed::open(Arc::clone(&gate));
    let control = Arc::new(Control::new(gate, config.drain, config.effective));
    Ok(Bound { workers, admin, control, feed, reloader: None })
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

    /// Follows the file that the configuration is from.
    pub fn watch(&mut self, reloader: Reloader) {
        self.reloader = Some(reloader);
    }

    /// Serves until a drain has ended. `signals` = the process's signals are ours.
    pub fn run(self, signals: bool) -> Result<drain::Ending> {
        let mut threads = Vec::new();
        let log = self.control.gate().recorder.log.clone();
        if let Some(line) = log.line(Level::Info, "listening") {
            let addresses: Vec<_> = self.addresses().iter().map(ToString::to_string).collect();
            line.text("address", &addresses.join(", ")).number("workers", self.workers.len() as u64).write();
        }
        let Self { workers, admin, control, feed, reloader } = self;
        for (n, listeners) in workers.into_iter().enumerate() {
            let control = Arc::clone(&control);
            let thread = std::thread::Builder::new().name(format!("worker-{n}"));
            threads.push(thread.spawn(move || work(&control, listeners))?);
        }
        let beat = Beat::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let ending = runtime.block_on(async {
            let mut fetchers = Fetchers::default();
            fetchers.follow(control.gate(), &control.gate().snapshot.load());
            tokio::spawn(feed.keep(Arc::clone(&control), beat));
            tokio::spawn(feed::sweep(Arc::clone(control.gate()), beat));
            admin.serve(&control)?;
            if signals {
                drain::obey_signals(&control)?;
            }
            if let Some(reloader) = reloader {
                tokio::spawn(reloader.run(Arc::clone(&control), fetchers, signals, beat));
            }
            let ending = control.run().await;
            let shared = control.gate().snapshot.load().shared.clone();
            if let Some(shared) = shared {
                shared.end_lease().await;
            }
            Ok::<_, anyhow::Error>(ending)
        });
        // What hangs in a file system is not waited for.
        runtime.shutdown_background();
        control.stop();
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
fn work(control: &Arc<Control>, listeners: Vec<std::net::TcpListener>) -> Result<()> {
    let beat = Beat::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        // Rounds this long let all that are ready judge, then all dial.
        .event_interval(512)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut prefix = [0; 8];
        let _ = getrandom::fill(&mut prefix);
        let worker = Arc::new(Worker::new(Arc::clone(control.gate()), u64::from_ne_bytes(prefix)));
        for listener in listeners {
            let listener = TcpListener::from_std(listener)?;
            tokio::spawn(accept(Arc::clone(&worker), listener, control.closing()));
        }
        // tokio wakes its driver, by a system call, for each timer that becomes the earliest of all. With
        // one that is never far away almost none does.
        tokio::spawn(async move {
            loop {
                beat.next(TICK).await;
            }
        });
        control.stopped().await;
        Ok(())
    })
}

async fn accept(worker: Arc<Worker>, listener: TcpListener, closing: watch::Receiver<bool>) {
    let (log, metrics) = (&worker.gate.recorder.log, &worker.gate.recorder.metrics);
    let mut warned: Option<Instant> = None;
    let mut warn = |event: &str, message: &str| {
        if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            warned = Some(Instant::now());
            log.say(Level::Warn, event, message);
        }
    };
    loop {
        let Some((stream, peer)) = listener::accept(&listener).await else {
            metrics.paused_for_files.inc();
            warn("accept_paused", "no file descriptors left: raise the limit of open files");
            tokio::time::sleep(listener::REST).await;
            continue;
        };
        let slot = loop {
            if let Some(slot) = worker.gate.connections.take() {
                break slot;
            }
            metrics.paused_for_connections.inc();
            warn("accept_paused", "[listen] max_connections is reached");
            tokio::time::sleep(listener::REST).await;
        };
        let peer = peer.ip().to_canonical();
        let limits = worker.gate.snapshot.load().settings.heads;
        tokio::spawn(connection::run(Arc::clone(&worker), limits, stream, peer, slot, closing.clone()));
    }
}
