//! One worker's view of the gate: its connections to backends, its request ids, and whom it has refused.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::header::HeaderValue;
use http::request::Parts;
use tokio::time::Instant;

use super::body::Body;
use super::gate::Gate;
use super::plan::{AttemptsCount, Settings, Snapshot, Upstream};
use crate::base::reject::{Blame, Reason};
use crate::base::value::Rate;
use crate::io::pool::Pool;
use crate::policy::peer::Peer;
use crate::policy::request::request_id_is_plain;

/// One worker's view of the gate.
#[derive(Debug)]
pub struct Worker {
    pub gate: Arc<Gate>,
    /// By the id of the backend.
    pools: Mutex<HashMap<u64, Arc<Pool<Body>>>>,
    /// Makes the request ids of this worker unlike those of any other.
    id_prefix: Box<str>,
    id_next: AtomicU64,
}

impl Worker {
    pub fn new(gate: Arc<Gate>, id_prefix: u64) -> Self {
        let id_prefix = format!("{id_prefix:016x}").into();
        Self { gate, pools: Mutex::default(), id_prefix, id_next: AtomicU64::new(0) }
    }

    pub fn request_id(&self, head: &Parts) -> Box<str> {
        let given = head.headers.get("x-request-id").map(HeaderValue::as_bytes);
        if let Some(id) =
            given.filter(|id| request_id_is_plain(id)).and_then(|id| std::str::from_utf8(id).ok())
        {
            return id.into();
        }
        let n = self.id_next.fetch_add(1, Ordering::Relaxed);
        let digits = (0..8).rev().filter_map(|at| char::from_digit((n >> (4 * at) & 0xf) as u32, 16));
        self.id_prefix.chars().chain(digits).collect::<String>().into()
    }

    /// The kept connections to a backend. Those to backends that no configuration names any more go when
    /// a new backend comes.
    pub fn pool(&self, snapshot: &Snapshot, upstream: &Upstream) -> Arc<Pool<Body>> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&upstream.id) {
            return Arc::clone(pool);
        }
        let live = snapshot.settings.upstream_ids();
        pools.retain(|id, _| live.contains(id));
        let pool = Arc::new(Pool::new(upstream.endpoint.clone(), upstream.settings.connect_timeout));
        pools.insert(upstream.id, Arc::clone(&pool));
        pool
    }

    /// Who a request is from, as far as the socket's peer is believed.
    pub fn peer(&self, settings: &Settings, socket: IpAddr, head: &Parts) -> Peer {
        let peer = Peer::of(socket, &head.headers, &settings.trusted_proxies);
        if peer.ignored {
            self.gate.recorder.metrics.forwarded_ignored.inc();
        }
        peer
    }

    /// Whether this address has been refused too often to be listened to.
    pub fn is_over_attempts(&self, settings: &Settings, peer: &Peer) -> bool {
        let Some((rate, address)) = limited(settings, peer) else { return false };
        self.gate.attempts.is_over(address, rate, Instant::now())
    }

    fn count(&self, settings: &Settings, peer: &Peer) {
        if let Some((rate, address)) = limited(settings, peer) {
            self.gate.attempts.count(address, rate, Instant::now());
        }
    }

    /// Counts every upgrade, where all of them count.
    pub fn count_arrival(&self, settings: &Settings, peer: &Peer, upgrade: bool) {
        if upgrade && settings.limits.attempts_count == AttemptsCount::All {
            self.count(settings, peer);
        }
    }

    /// Counts a refusal that is the client's doing. A limit is no attempt: who waits it out is let in again.
    pub fn count_refusal(&self, settings: &Settings, peer: &Peer, reason: Reason, upgrade: bool) {
        let counted_already = upgrade && settings.limits.attempts_count == AttemptsCount::All;
        if reason.row().blame == Blame::Client && reason != Reason::AttemptsExceeded && !counted_already {
            self.count(settings, peer);
        }
    }
}

/// How often which address may be refused.
fn limited(settings: &Settings, peer: &Peer) -> Option<(Rate, IpAddr)> {
    let rate = settings.limits.attempts?;
    settings.counted(peer).map(|address| (rate, address))
}

/// Lets all who are ready come as far as this. What they write then goes out in a burst, and the other side
/// wakes once for many: every single wake-up costs as much as a request.
pub async fn fall_in() {
    let mut fallen_in = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut fallen_in, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}
