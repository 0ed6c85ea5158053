//! Connections that the gate opens: TCP, TLS, unix.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A place to connect to.
#[derive(Clone)]
pub enum Endpoint {
    Tcp { host: String, port: u16 },
    Tls { host: String, port: u16, name: ServerName<'static>, config: Arc<ClientConfig> },
    Unix(PathBuf),
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port } | Self::Tls { host, port, .. } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// TLS with the system's roots, or those of one PEM file instead.
pub fn tls_config(ca_file: Option<&str>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca_file {
        let pem = CertificateDer::pem_file_iter(path).map_err(|error| format!("{path}: {error}"))?;
        for certificate in pem {
            let certificate = certificate.map_err(|error| format!("{path}: {error}"))?;
            roots.add(certificate).map_err(|error| format!("{path}: {error}"))?;
        }
        if roots.is_empty() {
            return Err(format!("{path}: no certificate in it"));
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

impl Endpoint {
    /// Of an absolute http or https URL.
    pub fn of_url(url: &http::Uri, ca_file: Option<&str>) -> Result<Self, String> {
        let host = url.host().ok_or("the URL has no host")?;
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if url.scheme_str() != Some("https") {
            return Ok(Self::Tcp { host: bare, port: url.port_u16().unwrap_or(80) });
        }
        let name = ServerName::try_from(bare.clone()).map_err(|_| format!("{host:?} is no server name"))?;
        Ok(Self::Tls { host: bare, port: url.port_u16().unwrap_or(443), name, config: tls_config(ca_file)? })
    }

    /// One attempt.
    async fn connect(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp { host, port } => Ok(Stream::Tcp(tcp(host, *port).await?)),
            Self::Tls { host, port, name, config } => {
                let stream = tcp(host, *port).await?;
                let connector = TlsConnector::from(Arc::clone(config));
                Ok(Stream::Tls(Box::new(connector.connect(name.clone(), stream).await?)))
            }
            Self::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path).await?)),
        }
    }

    /// Connects within `timeout`; a refused connect is tried again, for a backend may be restarting.
    pub async fn dial(&self, timeout: Option<Duration>) -> io::Result<Stream> {
        const PAUSE: Duration = Duration::from_millis(50);
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let attempt = match deadline {
                Some(deadline) => tokio::time::timeout_at(deadline, self.connect())
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
                None => self.connect().await,
            };
            let Err(error) = attempt else { return attempt };
            let again = matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound);
            let Some(deadline) = deadline.filter(|at| again && Instant::now() + PAUSE < *at) else {
                return Err(error);
            };
            let pause_until = (Instant::now() + PAUSE).min(deadline);
            tokio::time::sleep_until(pause_until).await;
        }
    }
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    // An address needs no resolver, and so no thread.
    let stream = match host.parse::<IpAddr>() {
        Ok(address) => TcpStream::connect((address, port)).await?,
        Err(_) => TcpStream::connect((host, port)).await?,
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// An open connection.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Tcp($stream) => $call,
            Stream::Tls($stream) => $call,
            Stream::Unix($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }
    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
