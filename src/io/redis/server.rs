//! Where the server is: one, the master that sentinels name, or a cluster.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterConfig};
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, IntoConnectionInfo, Pipeline, RedisFuture,
    RedisResult, TlsCertificates, TlsMode, Value,
};
use tokio::sync::Mutex;

/// Connect, TLS and password together.
const CONNECT: Duration = Duration::from_secs(2);
const ACCEPTED: &str = "accepted: redis://HOST:PORT/DB, rediss:// for TLS, redis+unix:///PATH, redis+sentinel://HOST:PORT,HOST:PORT/MASTER, redis+cluster://HOST:PORT,HOST:PORT, each with USER:PASSWORD@ before the first host";

/// What is wrong with the place.
#[derive(Debug, PartialEq, Eq)]
pub enum Wrong {
    Url(String),
    CaFile(String),
}

/// Opens connections.
#[derive(Clone)]
pub enum Server {
    One(Box<Client>),
    Sentinel(Arc<Mutex<SentinelClient>>),
    Cluster(Box<ClusterClient>),
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One(_) => "redis",
            Self::Sentinel(_) => "redis behind sentinels",
            Self::Cluster(_) => "redis cluster",
        })
    }
}

/// `SCHEME://USER:PASSWORD@HOST:PORT,HOST:PORT/REST`
struct Many {
    tls: bool,
    user: Option<String>,
    password: Option<String>,
    hosts: Vec<(String, u16)>,
    rest: String,
}

impl Many {
    fn parse(url: &str, kind: &str, port: u16) -> Option<Result<Self, Wrong>> {
        let (scheme, rest) = url.split_once("://")?;
        let tls = match scheme.strip_suffix(kind)? {
            "redis+" => false,
            "rediss+" => true,
            _ => return None,
        };
        let (authority, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let (who, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = who.split_once(':').unwrap_or(("", who));
        let decoded = |text: &str| {
            let text = percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
            (!text.is_empty()).then_some(text)
        };
        let host = |host: &str| match host.rsplit_once(':') {
            Some((name, port)) if !name.is_empty() => Some((name.to_owned(), port.parse().ok()?)),
            Some(_) => None,
            None => (!host.is_empty()).then(|| (host.to_owned(), port)),
        };
        let hosts: Option<Vec<_>> = hosts.split(',').map(host).collect();
        let Some(hosts) = hosts else { return Some(Err(Wrong::Url(ACCEPTED.into()))) };
        Some(Ok(Self { tls, user: decoded(user), password: decoded(password), hosts, rest: rest.to_owned() }))
    }

    fn addresses(&self) -> Vec<ConnectionAddr> {
        let address = |(host, port): &(String, u16)| {
            if self.tls {
                let (host, port) = (host.clone(), *port);
                ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
            } else {
                ConnectionAddr::Tcp(host.clone(), *port)
            }
        };
        self.hosts.iter().map(address).collect()
    }
}

impl Server {
    /// With the system's roots for TLS, or those of a PEM file instead.
    pub fn new(url: &str, ca_file: Option<&str>) -> Result<Self, Wrong> {
        let certificates = match ca_file {
            None => None,
            Some(path) => {
                crate::io::dial::tls_config(Some(path)).map_err(Wrong::CaFile)?;
                let pem = std::fs::read(path).map_err(|error| Wrong::CaFile(format!("{path}: {error}")))?;
                Some(TlsCertificates { client_tls: None, root_cert: Some(pem) })
            }
        };
        if let Some(many) = Many::parse(url, "sentinel", 26379) {
            return Self::sentinel(&many?, certificates);
        }
        if let Some(many) = Many::parse(url, "cluster", 6379) {
            return Self::cluster(&many?, certificates);
        }
        let wrong = |error: redis::RedisError| Wrong::Url(format!("{error}; {ACCEPTED}"));
        let info = url.into_connection_info().map_err(wrong)?;
        let is_tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
        // What skips the check of certificates is no encryption that anybody should rely on.
        if matches!(info.addr(), ConnectionAddr::TcpTls { insecure: true, .. }) {
            return Err(Wrong::Url(
                "#insecure is not accepted: name the server's authority by ca_file".into(),
            ));
        }
        match certificates {
            Some(certificates) if is_tls => Client::build_with_tls(info, certificates),
            Some(_) => return Err(Wrong::CaFile("is for TLS: write a url with rediss://".into())),
            None => Client::open(info),
        }
        .map(|client| Self::One(Box::new(client)))
        .map_err(wrong)
    }

    fn sentinel(many: &Many, certificates: Option<TlsCertificates>) -> Result<Self, Wrong> {
        let wrong = |error: redis::RedisError| Wrong::Url(format!("{error}; {ACCEPTED}"));
        let (master, db) = many.rest.split_once('/').unwrap_or((&many.rest, "0"));
        let db = db.parse().map_err(|_| Wrong::Url(ACCEPTED.into()))?;
        if master.is_empty() {
            return Err(Wrong::Url(format!("names no master; {ACCEPTED}")));
        }
        let mut builder = SentinelClientBuilder::new(many.addresses(), master, SentinelServerType::Master)
            .map_err(wrong)?
            .set_client_to_redis_db(db);
        if many.tls {
            builder = builder
                .set_client_to_redis_tls_mode(TlsMode::Secure)
                .set_client_to_sentinel_tls_mode(TlsMode::Secure);
            if let Some(certificates) = certificates {
                builder = builder
                    .set_client_to_redis_certificates(certificates.clone())
                    .set_client_to_sentinel_certificates(certificates);
            }
        }
        if let Some(user) = &many.user {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = &many.password {
            builder = builder.set_client_to_redis_password(password);
        }
        Ok(Self::Sentinel(Arc::new(Mutex::new(builder.build().map_err(wrong)?))))
    }

    fn cluster(many: &Many, certificates: Option<TlsCertificates>) -> Result<Self, Wrong> {
        let scheme = if many.tls { "rediss" } else { "redis" };
        let nodes = many.hosts.iter().map(|(host, port)| format!("{scheme}://{host}:{port}"));
        let mut builder = ClusterClient::builder(nodes);
        if many.tls {
            builder = builder.tls(TlsMode::Secure);
        }
        if let Some(certificates) = certificates {
            builder = builder.certs(certificates);
        }
        if let Some(user) = &many.user {
            builder = builder.username(user);
        }
        if let Some(password) = &many.password {
            builder = builder.password(password);
        }
        let built = builder.build().map_err(|error| Wrong::Url(format!("{error}; {ACCEPTED}")))?;
        Ok(Self::Cluster(Box::new(built)))
    }

    /// A connection on which an answer may take so long.
    pub async fn connect(&self, response: Duration) -> RedisResult<Connection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(response));
        match self {
            Self::One(client) => {
                client.get_multiplexed_async_connection_with_config(&config).await.map(Connection::One)
            }
            Self::Sentinel(client) => {
                client.lock().await.get_async_connection_with_config(&config).await.map(Connection::One)
            }
            Self::Cluster(client) => {
                let config =
                    ClusterConfig::new().set_connection_timeout(CONNECT).set_response_timeout(response);
                client.get_async_connection_with_config(config).await.map(Connection::Cluster)
            }
        }
    }
}

/// An open connection; clones share it.
#[derive(Clone)]
pub enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::One(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::One(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}
