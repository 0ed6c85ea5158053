//! The main job on one machine: embedded issuer, embedded backend, gate and a page, all on loopback.
//! The gate is the real one, from a configuration text to the drain; only what surrounds it is played.

mod answer;
mod backend;
mod issuer;

use std::convert::Infallible;
use std::future::Future;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use self::answer::Answer;
use self::issuer::{Issuer, USERS};
use super::drain::Ending;
use super::{Bound, bind, config};
use crate::base::reject::Reason;
use crate::io::listener;
use crate::telemetry::logging::{Log, LogSettings};

/// With `{{data}}`, `{{config}}` and `{{commands}}` to be filled in.
const PAGE: &str = include_str!("page.html");

/// Runs until it is interrupted.
pub fn run(port: u16, log: impl Fn(LogSettings) -> LogSettings) -> Result<bool> {
    let demo = start(port, |settings| Log::to_stdout(log(settings)))?;
    let [curl, websocat, page] = commands(demo.address.port());
    let metrics =
        demo.bound.admin_addresses().0.map_or(String::new(), |a| format!("; metrics: http://{a}/metrics"));
    // Whether somebody reads this is no reason to stop: the page may be open already.
    let _ = writeln!(
        io::stdout(),
        "Users: alice, bob; the password is the name{metrics}; Ctrl-C ends it.\nPaste one of these:\n\n{curl}\n{websocat}\n{page}\n"
    );
    let ending = demo.bound.run(true)?;
    // Not before: sessions are closed on both sides.
    drop(demo.alive);
    Ok(ending == Ending::Drained)
}

/// A gate that is about to serve, and the two that it stands between, which already do.
struct Demo {
    bound: Bound,
    address: SocketAddr,
    /// Issuer and backend end when this is dropped.
    alive: oneshot::Sender<()>,
}

fn start(port: u16, log: impl FnOnce(LogSettings) -> Log) -> Result<Demo> {
    let (issuer_listener, issuer_port) = listen()?;
    let (backend_listener, backend_port) = listen()?;
    let text = |port| configuration(port, issuer_port, backend_port);
    // Of this machine's environment nothing counts: the demo is the same everywhere.
    let loaded = config::read(&text(port), std::iter::empty());
    let Some(config) = loaded.config else {
        let problems: Vec<_> = loaded.problems.iter().map(ToString::to_string).collect();
        bail!("the demo's own configuration is wrong: {}", problems.join("; "));
    };
    let log = log(config.log);
    let bound = bind(config, log).map_err(|error| or_taken(error, port))?;
    let address = bound.addresses().first().copied().context("the gate has no address")?;
    let issuer = Issuer::new(format!("http://127.0.0.1:{issuer_port}{}", issuer::REALM))?;
    let page = page(&text(address.port()), &commands(address.port()));
    let alive = surround(issuer_listener, issuer, backend_listener, page)?;
    Ok(Demo { bound, address, alive })
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

/// The configuration of the demo's gate. The page shows it, so its comments are for the visitor.
fn configuration(gate: u16, issuer: u16, backend: u16) -> String {
    format!(
        r#"[listen]
address = "127.0.0.1:{gate}"
max_connections = 200               # few files may be open on a desktop

[admin]
address = "127.0.0.1:0"

[limits]
attempts_per_address = "off"        # its page fails on purpose, again and again

[upstream]                          # it has no authentication code
url = "http://127.0.0.1:{backend}"

[[issuer]]
url = "http://127.0.0.1:{issuer}{realm}"
audiences = ["chat"]
leeway = "0s"                       # one clock for all: a token ends to the second

[[route]]
path = "/ws/*"                      # any valid token

[[route]]
path = "/ws/events/{{org_id}}/"
claims = {{ organization = "{{org_id}}" }}

[[route]]
path = "/ws/staff/"
roles = ["admin"]

[[route]]
path = "/api/*"                     # plain HTTP, too

[[route]]                           # the issuer, so that the browser needs one port only
path = "/realms/*"
auth = "none"
upstream = {{ url = "http://127.0.0.1:{issuer}" }}

# No route names the page at "/": plain HTTP passes, a WebSocket there is route_unknown.

[drain]
delay = "0s"
spread = "0s"
deadline = "3s"

[log]
format = "text"
"#,
        realm = issuer::REALM,
    )
}

/// What the terminal shows, and the page too: lines that work as they are.
fn commands(port: u16) -> [String; 3] {
    let gate = format!("127.0.0.1:{port}");
    let token = format!("$(curl -s 'http://{gate}{}/token?user=alice')", issuer::REALM);
    [
        format!("curl -i http://{gate}/api/me -H \"Authorization: Bearer {token}\""),
        format!("websocat \"ws://{gate}/ws/chat/?token={token}\""),
        format!("http://{gate}/"),
    ]
}

/// The page, with what it would otherwise have to repeat: users, labels and their advice.
fn page(configuration: &str, commands: &[String; 3]) -> String {
    let reasons: Map<String, Value> =
        Reason::ALL.iter().map(|reason| (reason.label().to_owned(), reason.row().advice.into())).collect();
    let users: Vec<_> = USERS
        .iter()
        .map(|user| json!({"name": user.name, "organization": user.organization, "roles": user.roles}))
        .collect();
    // "</script>" inside a text would end the element.
    let data = json!({"reasons": reasons, "users": users}).to_string().replace('<', "\\u003c");
    let [curl, websocat, _] = commands;
    PAGE.replace("{{config}}", &escaped(configuration))
        .replace("{{commands}}", &escaped(&format!("{curl}\n\n{websocat}")))
        .replace("{{data}}", &data)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// Issuer and backend, on a thread of their own, until the answer is dropped.
fn surround(
    issuer_listener: std::net::TcpListener,
    issuer: Issuer,
    backend_listener: std::net::TcpListener,
    page: String,
) -> Result<oneshot::Sender<()>> {
    let (alive, over) = oneshot::channel::<()>();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listeners = {
        let _inside = runtime.enter();
        (TcpListener::from_std(issuer_listener)?, TcpListener::from_std(backend_listener)?)
    };
    let (issuer, page) = (Arc::new(issuer), Bytes::from(page));
    let serve = async move {
        tokio::join!(
            serve(listeners.0, move |request| issuer::answer(Arc::clone(&issuer), request)),
            serve(listeners.1, move |request| std::future::ready(backend::answer(&page, request))),
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
