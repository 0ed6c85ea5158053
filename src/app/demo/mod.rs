//! The main job on one machine: embedded issuer, embedded backend, gate and a page, all on loopback.
//! The gate is the real one, from a configuration text to the drain; only what surrounds it is played.

mod answer;
mod backend;
mod issuer;
mod setting;
mod site;
mod stage;

use std::convert::Infallible;
use std::future::Future;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use self::answer::Answer;
use self::issuer::Issuer;
use self::setting::{External, Setting};
use self::stage::Stage;
use super::config::Config;
use super::drain::Ending;
use super::{Bound, bind, config};
use crate::io::listener;
use crate::telemetry::logging::{Log, LogSettings};

/// `sidegate demo`
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Port of the gate; 0 = any
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// A real issuer, such as a realm of Keycloak, in place of the embedded one
    #[arg(long, value_name = "URL")]
    issuer: Option<String>,
    /// Its public client that the page signs in by
    #[arg(long, value_name = "ID", default_value = "chat", requires = "issuer")]
    client: String,
    /// What must be in `aud` of its tokens; else any audience will do
    #[arg(long, value_name = "AUDIENCE", requires = "issuer")]
    audience: Option<String>,
}

/// Runs until it is interrupted.
pub fn run(options: &Options, log: impl Fn(LogSettings) -> LogSettings) -> Result<bool> {
    let Demo { mut bound, setting, stage, log, alive } =
        start(options, |settings| Log::to_stdout(log(settings)))?;
    // Whether somebody reads this is no reason to stop: the page may be open already.
    let _ = io::stdout().write_all(greeting(&setting).as_bytes());
    loop {
        let ending = bound.run(true)?;
        if ending == Ending::Cut || !stage.is_to_go_on() {
            // Not before: sessions are closed on both sides.
            drop(alive);
            return Ok(ending == Ending::Drained);
        }
        // As another replica would.
        bound = bind(configured(&setting)?, log.clone())?;
        stage.enter(bound.control());
    }
}

fn greeting(setting: &Setting) -> String {
    let [curl, websocat, page] = setting.commands();
    let admin = setting.admin;
    let who = match &setting.external {
        None => "Users: alice, bob; the password is the name".to_owned(),
        Some(External { issuer, client, .. }) => format!(
            "Users of {issuer}, by its public client {client}: it needs {page} as a valid redirect URI, and + as a web origin"
        ),
    };
    format!(
        "{who}; metrics: http://127.0.0.1:{admin}/metrics; Ctrl-C ends it.\nPaste one of these:\n\n{curl}\n{websocat}\n{page}\n\n"
    )
}

/// A gate that is about to serve, and the two that it stands between, which already do.
struct Demo {
    bound: Bound,
    setting: Setting,
    stage: Arc<Stage>,
    log: Log,
    /// Issuer and backend end when this is dropped.
    alive: oneshot::Sender<()>,
}

fn start(options: &Options, log: impl FnOnce(LogSettings) -> Log) -> Result<Demo> {
    let (issuer_listener, issuer) = listen()?;
    let (backend_listener, backend) = listen()?;
    let external = options.issuer.as_ref().map(|issuer| External {
        issuer: issuer.clone(),
        client: options.client.clone(),
        audience: options.audience.clone(),
    });
    let mut setting = Setting { gate: options.port, admin: 0, issuer, backend, external };
    let config = configured(&setting)?;
    let log = log(config.log);
    let bound = bind(config, log.clone()).map_err(|error| or_taken(error, options.port))?;
    setting.gate = bound.addresses().first().context("the gate has no address")?.port();
    setting.admin = bound.admin_addresses().0.context("the gate has no admin address")?.port();
    let stage = Arc::new(Stage::new(site::page(&setting), bound.control()));
    let issuer = Issuer::new(setting.embedded())?;
    let alive = surround(issuer_listener, issuer, backend_listener, Arc::clone(&stage))?;
    Ok(Demo { bound, setting, stage, log, alive })
}

/// Of this machine's environment nothing counts: the demo is the same everywhere.
fn configured(setting: &Setting) -> Result<Config> {
    let loaded = config::read(&setting.configuration(), std::iter::empty());
    let problems = || loaded.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    match loaded.config {
        Some(config) => Ok(config),
        None => bail!("the demo's own configuration is wrong: {}", problems()),
    }
}

fn listen() -> Result<(std::net::TcpListener, u16)> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port on 127.0.0.1")?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

/// The one mistake that everybody makes once gets its remedy.
fn or_taken(error: anyhow::Error, port: u16) -> anyhow::Error {
    let kind = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    match kind {
        Some(io::ErrorKind::AddrInUse) => {
            anyhow!(
                "port {port} of 127.0.0.1 is taken: choose another with --port, or any free one with --port 0"
            )
        }
        Some(io::ErrorKind::PermissionDenied) => {
            anyhow!("port {port} is for root alone: choose one from 1024 on with --port")
        }
        _ => error,
    }
}

/// Issuer and backend, on a thread of their own, until the answer is dropped.
fn surround(
    issuer_listener: std::net::TcpListener,
    issuer: Issuer,
    backend_listener: std::net::TcpListener,
    stage: Arc<Stage>,
) -> Result<oneshot::Sender<()>> {
    let (alive, over) = oneshot::channel::<()>();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listeners = {
        let _inside = runtime.enter();
        (TcpListener::from_std(issuer_listener)?, TcpListener::from_std(backend_listener)?)
    };
    let issuer = Arc::new(issuer);
    let serve = async move {
        tokio::join!(
            serve(listeners.0, move |request| issuer::answer(Arc::clone(&issuer), request)),
            serve(listeners.1, move |request| backend::answer(Arc::clone(&stage), request)),
        )
    };
    std::thread::Builder::new().name("demo".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = serve => {}
                _ = over => {}
            }
        });
    })?;
    Ok(alive)
}

/// HTTP/1.1 with upgrades, for ever.
async fn serve<A, F>(listener: TcpListener, answer: A)
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    loop {
        let Some((stream, _)) = listener::accept(&listener).await else {
            tokio::time::sleep(listener::REST).await;
            continue;
        };
        let answer = answer.clone();
        let service = service_fn(move |request| {
            let answer = answer(request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let connection =
            http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
        tokio::spawn(async move {
            // A peer that breaks off is no news here.
            let _ = connection.await;
        });
    }
}

#[cfg(test)]
mod tests;
