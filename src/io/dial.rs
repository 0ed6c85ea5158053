//! Connections that the gate opens: TCP, TLS, unix.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
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

    /// One attempt, with the first bytes on it.
    async fn connect(&self, first: &[u8]) -> io::Result<Stream> {
        let mut stream = match self {
            Self::Tcp { host, port } => match host.parse::<IpAddr>() {
                // An address needs no resolver, and so no thread.
                Ok(ip) => return Ok(Stream::Tcp(connect_and_send((ip, *port).into(), first).await?)),
                Err(_) => Stream::Tcp(resolve_and_connect(host, *port).await?),
            },
            Self::Tls { host, port, name, config } => {
                let stream = resolve_and_connect(host, *port).await?;
                let connector = TlsConnector::from(Arc::clone(config));
                Stream::Tls(Box::new(connector.connect(name.clone(), stream).await?))
            }
            Self::Unix(path) => Stream::Unix(UnixStream::connect(path).await?),
        };
        stream.write_all(first).await?;
        stream.flush().await?;
        Ok(stream)
    }

    /// Connects and writes `first` within `timeout`; a refused connect is tried again, for a backend may be restarting.
    pub async fn dial(&self, timeout: Option<Duration>, first: &[u8]) -> io::Result<Stream> {
        const PAUSE: Duration = Duration::from_millis(50);
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let attempt = match deadline {
                Some(deadline) => tokio::time::timeout_at(deadline, self.connect(first))
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
                None => self.connect(first).await,
            };
            let Err(error) = attempt else { return attempt };
            let again = matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound);
            if !again || deadline.is_none_or(|deadline| Instant::now() + PAUSE >= deadline) {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn resolve_and_connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// On loopback a connect is complete when it returns, so the first bytes go out in the same breath: the
/// backend wakes once for both, and no turn of the event loop lies between.
async fn connect_and_send(address: SocketAddr, first: &[u8]) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&address.into()) {
        Err(error) if !is_under_way(&error) => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let sent = match first {
        [] => None,
        first => match socket.send(first) {
            Ok(sent) => Some(sent),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => return Err(error),
        },
    };
    let mut stream = TcpStream::from_std(socket.into())?;
    let Some(sent) = sent else {
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        stream.write_all(first).await?;
        return Ok(stream);
    };
    stream.write_all(first.get(sent..).unwrap_or_default()).await?;
    Ok(stream)
}

fn is_under_way(error: &io::Error) -> bool {
    // EINPROGRESS
    error.raw_os_error() == Some(115) || error.kind() == io::ErrorKind::WouldBlock
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
