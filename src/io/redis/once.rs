//! What may be said once, to whichever replica.
//!
//! Key `PREFIX{v1}:once:NAME`, of 32 hexadecimal digits: it was said; expires when it can no longer be said.

use std::time::Duration;

use redis::cmd;

use super::link::{Away, PATIENCE, Shared};
use crate::state::naming::written;

impl Shared {
    fn once(&self, name: u128) -> String {
        self.key(&format!("once:{}", written(name)))
    }

    /// Whether this is said for the first time; remembered for as long as it could be said again.
    pub async fn is_first(&self, name: u128, remembered: Duration) -> Result<bool, Away> {
        let mut set = cmd("SET");
        set.arg(self.once(name)).arg("1").arg("NX").arg("EX").arg(remembered.as_secs() + 1);
        Ok(self.ask_for::<Option<String>>(PATIENCE, &set).await?.is_some())
    }

    /// It has had no effect: it may be said again.
    pub async fn forget(&self, name: u128) {
        let mut delete = cmd("DEL");
        // If that does not get through, it cannot be said again before it expires.
        let _ = self.ask_for::<u64>(PATIENCE, delete.arg(self.once(name))).await;
    }
}
