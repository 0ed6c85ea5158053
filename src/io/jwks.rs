//! An issuer's keys: fetched in the background, again when an unknown kid asks for it, within bounds.
//! Whatever goes wrong, the keys that there are stay until they are too old.

use std::collections::HashSet;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::dial::Endpoint;
use crate::base::clock::Unix;
use crate::base::reject::Reason;
use crate::base::value::LONGEST;
use crate::policy::claims::IssuerPolicy;
use crate::policy::jwt::{Algorithm, Jwt};
use crate::state::keyring::{Key, Keyring, Lookup, MAX_UNKNOWN, parse_keys, verify};
use crate::telemetry::logging::Level;
use crate::telemetry::record::Recorder;

/// Longest key set or discovery document.
const MAX_BODY: usize = 256 * 1024;
/// One fetch, connect included.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Unknown kids start a fetch no more often than this.
pub const ASK_INTERVAL: Duration = Duration::from_secs(10);
/// A handshake waits so long for a fetch.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// Failed fetches are repeated, at first after the first and never later than the last of these.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// One issuer: its policy, and where its keys come from.
#[derive(Debug)]
pub struct Issuer {
    pub policy: IssuerPolicy,
    pub source: Arc<Source>,
}

/// Where keys come from, those that there are, and the way to ask for newer ones. It outlives changes of
/// the policy.
#[derive(Debug)]
pub struct Source {
    url: String,
    jwks_uri: Option<String>,
    ca_file: Option<String>,
    refresh: Option<Duration>,
    keys: Arc<Keyring>,
    ask: Notify,
    /// Kids that somebody waits for: the next fetch that begins has them, or they are unknown.
    asked: Mutex<HashSet<String>>,
    /// Whether the last fetch was a success.
    fetched: watch::Sender<bool>,
}

impl Source {
    fn new(policy: &IssuerPolicy, keys: Arc<Keyring>) -> Arc<Self> {
        Arc::new(Self {
            url: policy.url.clone(),
            jwks_uri: policy.jwks_uri.clone(),
            ca_file: policy.ca_file.clone(),
            refresh: policy.refresh,
            keys,
            ask: Notify::new(),
            asked: Mutex::default(),
            fetched: watch::Sender::new(false),
        })
    }

    fn is_for(&self, policy: &IssuerPolicy) -> bool {
        (&self.url, &self.jwks_uri, &self.ca_file, self.refresh)
            == (&policy.url, &policy.jwks_uri, &policy.ca_file, policy.refresh)
    }
}

impl Issuer {
    pub fn new(policy: IssuerPolicy) -> Arc<Self> {
        let source = Source::new(&policy, Arc::default());
        Arc::new(Self { policy, source })
    }

    /// The issuer under another policy, with the keys that there are.
    pub fn succeeded_by(&self, policy: IssuerPolicy) -> Arc<Self> {
        let source = if self.source.is_for(&policy) {
            Arc::clone(&self.source)
        } else {
            // The old keys are believed until the new place has been asked.
            Source::new(&policy, Arc::clone(&self.source.keys))
        };
        Arc::new(Self { policy, source })
    }

    /// The configuration no longer names it.
    pub fn retire(&self) {
        self.source.keys.retire();
    }

    /// A waiter for the end of the next fetch, however that ends.
    pub fn next_fetch(&self) -> impl Future<Output = ()> + use<> {
        let mut fetched = self.source.fetched.subscribe();
        async move {
            let _ = fetched.changed().await;
        }
    }

    pub fn has_had_keys(&self) -> bool {
        self.source.keys.has_had_keys()
    }

    /// Whether what its keys have verified may still be believed.
    pub fn is_usable(&self) -> bool {
        self.source.keys.is_usable(self.policy.max_stale, Instant::now())
    }

    /// Checks the signature of a token that names this issuer; waits for a fetch if only that can tell.
    pub async fn verify(&self, jwt: &Jwt<'_>) -> Result<(Algorithm, Arc<Key>), Reason> {
        let algorithm = jwt.algorithm.filter(|algorithm| self.policy.algorithms.contains(algorithm));
        let algorithm = algorithm.ok_or(Reason::TokenAlgorithm)?;
        let kid = jwt.kid.as_deref().ok_or(Reason::TokenKeyUnknown)?;
        let keys = match self.look(kid) {
            Lookup::Keys(keys) => keys,
            Lookup::Unknown => return Err(Reason::TokenKeyUnknown),
            Lookup::Unavailable => return Err(Reason::KeysUnavailable),
            Lookup::Ask => self.ask_for(kid).await?,
        };
        verify(jwt, algorithm, &keys).map(|key| (algorithm, key))
    }

    fn look(&self, kid: &str) -> Lookup {
        self.source.keys.look(kid, self.policy.max_stale, Instant::now())
    }

    /// Waits for a fetch that begins after now and has the kid, or lacks it. All that wait share it.
    async fn ask_for(&self, kid: &str) -> Result<Vec<Arc<Key>>, Reason> {
        let mut fetched = self.source.fetched.subscribe();
        self.source.asked().insert(kid.to_owned());
        self.source.ask.notify_one();
        let answer = async {
            loop {
                fetched.changed().await.map_err(|_| Reason::KeysUnavailable)?;
                let ok = *fetched.borrow_and_update();
                match self.look(kid) {
                    Lookup::Keys(keys) => return Ok(keys),
                    Lookup::Unknown => return Err(Reason::TokenKeyUnknown),
                    Lookup::Ask if ok => {}
                    Lookup::Ask | Lookup::Unavailable => return Err(Reason::KeysUnavailable),
                }
            }
        };
        tokio::time::timeout(ASK_TIMEOUT, answer).await.unwrap_or(Err(Reason::KeysUnavailable))
    }
}

impl Source {
    fn asked(&self) -> MutexGuard<'_, HashSet<String>> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        // Beyond the bound nobody learns of its own kid, and all of them are unavailable for a while.
        if asked.len() >= MAX_UNKNOWN {
            asked.clear();
        }
        asked
    }

    /// Keeps the keys fresh for ever.
    pub async fn keep_fresh(self: Arc<Self>, recorder: Arc<Recorder>) {
        let mut pause = RETRY.0;
        let mut may_ask = Instant::now();
        loop {
            let asked = std::mem::take(&mut *self.asked());
            let result = match tokio::time::timeout(FETCH_TIMEOUT, self.fetch()).await {
                Ok(result) => result,
                Err(_) => Err(format!("no answer within {}", humantime::format_duration(FETCH_TIMEOUT))),
            };
            let ok = result.is_ok();
            recorder.metrics.jwks_refreshed(&self.url, ok, Unix::now().seconds());
            match result {
                Ok(keys) => {
                    if !self.keys.has_had_keys()
                        && let Some(line) = recorder.log.line(Level::Info, "jwks_ready")
                    {
                        line.text("issuer", &self.url).number("keys", keys.len() as u64).write();
                    }
                    self.keys.replace(keys, Instant::now());
                    // Who asked had the token before this fetch began, so its key was there if ever.
                    self.keys.lacks(asked, Instant::now());
                    pause = RETRY.0;
                }
                Err(error) => {
                    self.asked().extend(asked);
                    if let Some(line) = recorder.log.line(Level::Warn, "jwks_failed") {
                        line.text("issuer", &self.url).text("message", &error).write();
                    }
                }
            }
            self.fetched.send_replace(ok);
            let next = if ok {
                Instant::now() + self.refresh.unwrap_or(LONGEST)
            } else {
                let at = Instant::now() + pause;
                pause = (pause * 2).min(RETRY.1);
                at
            };
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.ask.notified() => {
                    tokio::time::sleep_until(may_ask.min(next)).await;
                    may_ask = Instant::now() + ASK_INTERVAL;
                }
            }
        }
    }

    async fn fetch(&self) -> Result<Vec<Key>, String> {
        let uri = match &self.jwks_uri {
            Some(uri) => uri.clone(),
            None => self.discover().await?,
        };
        let body = get(&uri, self.ca_file.as_deref()).await?;
        parse_keys(&body).map_err(|error| format!("{uri}: {error}"))
    }

    /// OpenID Connect Discovery 1.0 §4.3: the document must speak for exactly this issuer.
    async fn discover(&self) -> Result<String, String> {
        let url = format!("{}/.well-known/openid-configuration", self.url.trim_end_matches('/'));
        let body = get(&url, self.ca_file.as_deref()).await?;
        let document: serde_json::Value =
            serde_json::from_slice(&body).map_err(|_| "discovery is not JSON")?;
        let text = |name: &str| document.get(name).and_then(serde_json::Value::as_str);
        if text("issuer") != Some(self.url.as_str()) {
            return Err(format!(
                "discovery is of the issuer {:?}: set [[issuer]] url to that, or give jwks_uri",
                text("issuer").unwrap_or_default()
            ));
        }
        let jwks_uri = text("jwks_uri").ok_or("discovery names no jwks_uri")?;
        let parsed: Option<Uri> = jwks_uri.parse().ok().filter(|uri: &Uri| uri.authority().is_some());
        match parsed.as_ref().and_then(Uri::scheme_str) {
            Some("https") => Ok(jwks_uri.to_owned()),
            Some("http") if !self.url.starts_with("https:") => Ok(jwks_uri.to_owned()),
            _ => Err(format!(
                "discovery names the jwks_uri {jwks_uri:?}, which is not absolute, or not https as the issuer is"
            )),
        }
    }
}

/// One GET: no redirects, no proxy, a bounded body.
async fn get(url: &str, ca_file: Option<&str>) -> Result<Bytes, String> {
    let told = |error: &dyn std::fmt::Display| format!("{url}: {error}");
    let uri: Uri = url.parse().map_err(|error| told(&error))?;
    let endpoint = Endpoint::of_url(&uri, ca_file).map_err(|error| told(&error))?;
    let stream = endpoint.dial(None, &[]).await.map_err(|error| told(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| told(&error))?;
    let connection = tokio::spawn(connection);
    let authority = uri.authority().map_or("", http::uri::Authority::as_str);
    let request = Request::get(uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str))
        .header(header::HOST, authority)
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, concat!("sidegate/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|error| told(&error))?;
    let response = sender.send_request(request).await.map_err(|error| told(&error))?;
    if response.status() != StatusCode::OK {
        connection.abort();
        return Err(format!("{url}: status {}", response.status().as_u16()));
    }
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(|error| told(&error));
    connection.abort();
    Ok(body?.to_bytes())
}
