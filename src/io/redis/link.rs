//! The way to the server. One connection waits for the tail of the stream, another one serves all the rest.
//! Both are opened together, and when one is lost both are opened anew: whoever asks meanwhile is told so at once.

use std::collections::HashSet;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{Cmd, FromRedisValue, RedisError, RedisResult};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::releases::Releases;
use super::server::{Connection, Server};
use super::settings::RedisSettings;
use crate::base::clock::Unix;

/// A handshake waits no longer than this for an answer.
pub const PATIENCE: Duration = Duration::from_millis(100);
/// Nor anything else that need not wait for news.
const RESPONSE: Duration = Duration::from_secs(2);
/// Revocations that wait to be told and are known by their ids. Beyond that none is taken back by what another
/// replica says, until all are told.
const MOST_PENDING: usize = 100_000;
/// Version of the data model: the hash tag of every key, so that all of them lie in one slot.
const MODEL: &str = "{v1}";

/// What the replicas share, and the way to it.
#[derive(Debug)]
pub struct Shared {
    pub settings: RedisSettings,
    server: Server,
    pub releases: Arc<Releases>,
    connection: Mutex<Option<Connection>>,
    /// Wakes whoever keeps the connection: it is lost, or something waits to be told.
    woken: Notify,
    /// Something of ours never reached the stream, or may have.
    unpublished: AtomicBool,
    /// What that is, as far as it was asked for here.
    pending: Mutex<HashSet<String>>,
    /// When the stream was last heard of.
    contact: Mutex<Option<Instant>>,
    /// By how many milliseconds our clock is ahead of the server's.
    ahead: AtomicI64,
}

/// There is no connection, or no answer on it in time.
#[derive(Debug, thiserror::Error)]
pub enum Away {
    #[error("not connected")]
    NotConnected,
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Late(Duration),
    #[error("{0}")]
    Failed(#[from] RedisError),
    /// What this replica holds is no longer known there.
    #[error("the lease of this replica has ended")]
    LeaseLost,
}

impl Shared {
    /// `None` = settings that cannot be; [`RedisSettings::read`] refuses those.
    pub fn new(settings: &RedisSettings) -> Option<Arc<Self>> {
        Self::with(settings, Releases::new())
    }

    fn with(settings: &RedisSettings, releases: Arc<Releases>) -> Option<Arc<Self>> {
        Some(Arc::new(Self {
            server: Server::new(&settings.url, settings.ca_file.as_deref()).ok()?,
            settings: settings.clone(),
            releases,
            connection: Mutex::default(),
            woken: Notify::new(),
            unpublished: AtomicBool::new(false),
            pending: Mutex::default(),
            contact: Mutex::default(),
            ahead: AtomicI64::new(0),
        }))
    }

    /// The same replica under other settings: its sessions live on.
    pub fn succeeded_by(self: &Arc<Self>, settings: &RedisSettings) -> Option<Arc<Self>> {
        if self.settings == *settings {
            return Some(Arc::clone(self));
        }
        Self::with(settings, Arc::clone(&self.releases))
    }

    /// Whether the backend has a blacklist of its own.
    pub fn has_keys(&self) -> bool {
        !self.settings.keys.is_empty()
    }

    /// Names this process among the replicas.
    pub fn replica(&self) -> &str {
        &self.releases.replica
    }

    pub fn key(&self, name: &str) -> String {
        format!("{}{MODEL}:{name}", self.settings.prefix)
    }

    fn slot(&self) -> MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens both connections: one to wait on for `wait` at a time, and one for the rest, which others may
    /// use once [`Self::open`] says so.
    pub async fn connect(&self, wait: Duration) -> Result<(Connection, Connection), Away> {
        let waiting = self.server.connect(wait + RESPONSE).await?;
        let mut rest = self.server.connect(RESPONSE).await?;
        self.compare_clocks(&mut rest).await?;
        Ok((waiting, rest))
    }

    /// Finds out by how much the server's clock is another than ours, which may be set while the gate runs.
    pub async fn compare_clocks(&self, connection: &mut Connection) -> Result<(), Away> {
        let before = Unix::now().0;
        let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(connection).await?;
        let after = Unix::now().0;
        let theirs = millis(Duration::from_secs(seconds) + Duration::from_micros(micros));
        let ahead = millis((before + after) / 2).saturating_sub(theirs);
        // A slow answer says no more than what is known.
        if ahead.abs_diff(self.ahead.load(Ordering::Relaxed))
            > millis(after.saturating_sub(before)).unsigned_abs()
        {
            self.ahead.store(ahead, Ordering::Relaxed);
        }
        Ok(())
    }

    /// From now on everybody may ask.
    pub fn open(&self, connection: Connection) {
        *self.slot() = Some(connection);
    }

    /// Nobody may until the next [`Self::open`].
    pub fn close(&self) {
        *self.slot() = None;
    }

    /// Whether it is in touch now.
    pub fn is_open(&self) -> bool {
        self.slot().is_some()
    }

    pub fn contact(&self) -> Option<Instant> {
        *self.contact.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn touch(&self) {
        *self.contact.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// A moment of the server's clock by ours, from milliseconds since the epoch.
    pub fn by_our_clock(&self, millis: u64) -> Unix {
        let millis = millis.saturating_add_signed(self.ahead.load(Ordering::Relaxed));
        Unix(Duration::from_millis(millis))
    }

    /// And the other way round.
    pub fn by_their_clock(&self, moment: Unix) -> Unix {
        let millis = u64::try_from(moment.0.as_millis()).unwrap_or_default();
        Unix(Duration::from_millis(millis.saturating_add_signed(-self.ahead.load(Ordering::Relaxed))))
    }

    /// Until the connection is lost, or something waits to be told.
    pub async fn woken(&self) {
        self.woken.notified().await;
    }

    /// See [`Self::woken`].
    pub fn wake(&self) {
        self.woken.notify_one();
    }

    pub fn has_unpublished(&self) -> bool {
        self.unpublished.load(Ordering::Acquire)
    }

    pub fn set_unpublished(&self, unpublished: bool) {
        self.unpublished.store(unpublished, Ordering::Release);
    }

    fn locked_pending(&self) -> MutexGuard<'_, HashSet<String>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The revocation of this id was asked for here, and nobody else may have heard of it.
    pub fn add_pending(&self, id: &str) {
        let mut pending = self.locked_pending();
        if pending.len() < MOST_PENDING {
            pending.insert(id.to_owned());
        }
    }

    /// Of more than can be remembered any may be one.
    pub fn is_pending(&self, id: &str) -> bool {
        let pending = self.locked_pending();
        pending.len() >= MOST_PENDING || pending.contains(id)
    }

    pub fn pending(&self) -> Vec<String> {
        self.locked_pending().iter().cloned().collect()
    }

    pub fn no_longer_pending(&self, told: &[String]) {
        let mut pending = self.locked_pending();
        for id in told {
            pending.remove(id);
        }
    }

    /// The connection for all but the tail.
    pub fn connection(&self) -> Result<Connection, Away> {
        self.slot().clone().ok_or(Away::NotConnected)
    }

    /// An answer within `patience`. Who gets none leaves the connection to be opened anew.
    pub async fn within<T>(
        &self,
        patience: Duration,
        answer: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, Away> {
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                if error.is_unrecoverable_error() || error.is_timeout() {
                    self.wake();
                }
                Err(error.into())
            }
            Err(_) => Err(Away::Late(patience)),
        }
    }

    pub async fn ask_for<T: FromRedisValue>(&self, patience: Duration, command: &Cmd) -> Result<T, Away> {
        let mut connection = self.connection()?;
        self.within(patience, command.query_async(&mut connection)).await
    }
}

pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_more_pending_ones_than_can_be_remembered_any_may_be_one() {
        let settings = RedisSettings {
            url: "redis://127.0.0.1".into(),
            prefix: "p:".into(),
            keys: Vec::new(),
            sweep: None,
            ca_file: None,
        };
        let shared = Shared::new(&settings).unwrap();
        shared.add_pending("a");
        assert!(shared.is_pending("a") && !shared.is_pending("b"));
        (0..2 * MOST_PENDING).for_each(|id| shared.add_pending(&id.to_string()));
        assert!(shared.is_pending("b"));
        let all = shared.pending();
        assert_eq!(all.len(), MOST_PENDING);
        shared.no_longer_pending(&all);
        assert!(!shared.is_pending("a") && !shared.is_pending("b"));
    }
}
