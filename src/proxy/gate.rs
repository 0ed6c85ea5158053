//! What all workers share.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::guest::Guest;
use super::plan::{Settings, Snapshot};
use crate::state::attempts::Attempts;
use crate::state::blacklist::Blacklist;
use crate::state::lifecycle::Lifecycle;
use crate::state::permits::Permits;
use crate::state::replays::Replays;
use crate::state::sessions::Sessions;
use crate::state::tally::Tally;
use crate::telemetry::record::Recorder;

/// What all workers share.
#[derive(Debug)]
pub struct Gate {
    pub snapshot: ArcSwap<Snapshot>,
    pub sessions: Arc<Sessions<Guest>>,
    pub blacklist: Blacklist,
    /// Logout tokens that were used.
    pub logouts: Replays,
    pub attempts: Attempts,
    /// Sessions of addresses and of users, where they are limited.
    pub addresses: Arc<Tally>,
    pub users: Arc<Tally>,
    pub permits: Arc<Permits>,
    pub connections: Arc<Permits>,
    pub lifecycle: Lifecycle,
    pub recorder: Arc<Recorder>,
}

impl Gate {
    /// With nobody on it.
    pub fn new(
        settings: Settings,
        recorder: Arc<Recorder>,
        max_connections: u32,
        secret: [u8; 16],
    ) -> Arc<Self> {
        let (limits, max_entries) = (settings.limits, settings.blacklist.max_entries);
        Arc::new(Self {
            snapshot: ArcSwap::from_pointee(Snapshot::first(settings, secret)),
            sessions: Sessions::new(recorder.metrics.users.clone()),
            blacklist: Blacklist::new(max_entries, recorder.metrics.blacklist_entries.clone()),
            logouts: Replays::default(),
            attempts: Attempts::default(),
            addresses: Tally::new(secret),
            users: Tally::new(secret),
            permits: Permits::new(limits.sessions),
            connections: Permits::new(Some(max_connections)),
            lifecycle: Lifecycle::default(),
            recorder,
        })
    }
}
