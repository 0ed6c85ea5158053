//! A session's place over all replicas, and the way back of those that are free again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Mutex, mpsc};

use crate::base::clock::Unix;
use crate::state::tally::Along;

/// Places given back that wait to be told. What does not fit is found at the next renewal.
const WAITING: usize = 4096;

/// A session as it is counted over all replicas; when it began is by the server's clock, which all share.
fn member(user: u128, started: Unix, session: u64) -> String {
    format!("{user:032x}{:013}-{session}", started.0.as_millis())
}

/// When a session began, by its member.
pub fn started(member: &str) -> Option<u64> {
    member.get(32..45)?.parse().ok()
}

/// Places that sessions give back, on their way to the server.
#[derive(Debug)]
pub struct Releases {
    /// Names this process among the replicas.
    pub replica: String,
    waiting: mpsc::Sender<String>,
    pub told: Mutex<mpsc::Receiver<String>>,
    /// Something has not been told, and never will be.
    pub untold: AtomicBool,
}

impl Releases {
    pub fn new() -> Arc<Self> {
        let mut name = [0; 8];
        // Without random numbers the gate has not started.
        let _ = getrandom::fill(&mut name);
        let (waiting, told) = mpsc::channel(WAITING);
        let replica = format!("{:016x}", u64::from_ne_bytes(name));
        Arc::new(Self { replica, waiting, told: Mutex::new(told), untold: AtomicBool::new(false) })
    }

    /// What gives a session's place back, whatever becomes of the session. `started` is by the server's clock.
    pub fn claim(self: &Arc<Self>, user: u128, started: Unix, session: u64) -> Claim {
        Claim { releases: Arc::clone(self), member: member(user, started, session) }
    }
}

/// A session's place over all replicas; given back when dropped, whether it was ever granted or not.
#[derive(Debug)]
pub struct Claim {
    releases: Arc<Releases>,
    member: String,
}

impl Along for Claim {
    fn name(&self) -> &str {
        &self.member
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.releases.waiting.try_send(std::mem::take(&mut self.member)).is_err() {
            self.releases.untold.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn members_of_a_user_stand_together_the_oldest_first() {
        let (user, other) = (7, 7 << 64);
        let at = |millis| Unix(Duration::from_millis(millis));
        let mut members = [
            member(user, at(1_700_000_000_001), 3),
            member(other, at(1), 1),
            member(user, at(999), 12),
            member(user, at(1_700_000_000_000), 2),
        ];
        members.sort_unstable();
        let ids: Vec<_> = members.iter().map(|member| member.rsplit('-').next().unwrap()).collect();
        assert_eq!(ids, ["12", "2", "3", "1"]);
        assert_eq!(started(&members[0]), Some(999));
        assert!(members[2] < format!("{user:032x}~") && members[3] > format!("{user:032x}~"));
    }
}
