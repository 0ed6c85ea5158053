//! `sidegate drain` and `sidegate healthcheck`: requests to the admin listener of the running gate,
//! for images that have neither shell nor curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::{Method, Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;

use super::admin::{Address, AdminSettings};
use crate::io::dial::Endpoint;

const QUICK: Duration = Duration::from_secs(3);
const MAX_ANSWER: usize = 64 * 1024;

/// Whether the gate's loop turns.
pub fn healthcheck(admin: &AdminSettings) -> Result<()> {
    ask(admin, Method::GET, "/livez", Some(QUICK))
}

/// Asks the gate to drain; with `wait` returns when the drain has ended.
pub fn drain(admin: &AdminSettings, wait: bool) -> Result<()> {
    ask(admin, Method::POST, "/drain", Some(QUICK))?;
    if wait { ask(admin, Method::GET, "/drained", None) } else { Ok(()) }
}

fn endpoint(admin: &AdminSettings) -> Endpoint {
    match &admin.address {
        Address::Unix(path) => Endpoint::Unix(path.clone()),
        Address::Tcp(address) => {
            // The wildcard is no place to connect to, but loopback is behind it.
            let ip = match address.ip() {
                IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
                ip => ip,
            };
            Endpoint::Tcp { host: SocketAddr::new(ip, 0).ip().to_string(), port: address.port() }
        }
    }
}

fn ask(admin: &AdminSettings, method: Method, path: &str, timeout: Option<Duration>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let endpoint = endpoint(admin);
    let request = async {
        let stream =
            endpoint.dial(None, &[]).await.with_context(|| format!("no gate answers at {endpoint:?}"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
        if let Some(bearer) = admin.bearer() {
            request = request.header(header::AUTHORIZATION, bearer);
        }
        let response = sender.send_request(request.body(Empty::<bytes::Bytes>::new())?).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
        if !status.is_success() {
            bail!("{path}: {} {}", status.as_u16(), String::from_utf8_lossy(&body));
        }
        Ok(())
    };
    runtime.block_on(async {
        match timeout {
            None => request.await,
            Some(timeout) => tokio::time::timeout(timeout, request).await.unwrap_or_else(|_| {
                bail!("{path}: no answer within {}", humantime::format_duration(timeout))
            }),
        }
    })
}
