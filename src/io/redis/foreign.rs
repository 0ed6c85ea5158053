//! The blacklist that a backend keeps itself.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use redis::{Cmd, RedisResult, cmd};

use super::link::{Away, PATIENCE, Shared};
use super::server::Connection;
use crate::base::reject::Reason;
use crate::policy::claims::Facts;
use crate::policy::foreign::Pattern;

/// Looked up at once in a sweep.
const AT_ONCE: usize = 500;

impl Shared {
    /// Why a token is refused by the backend's own blacklist, if it is; within [`PATIENCE`].
    pub async fn look_up(&self, facts: &Facts) -> Result<Option<Reason>, Away> {
        let keys = self.keys_of(facts);
        let found = self.which_exist(PATIENCE, keys.iter().map(|(key, _)| key)).await?;
        Ok(keys.iter().zip(found).find(|(_, exists)| *exists).map(|((_, reason), _)| *reason))
    }

    fn keys_of(&self, facts: &Facts) -> Vec<(String, Reason)> {
        let key = |pattern: &Pattern| Some((pattern.key(facts)?, pattern.reason()));
        self.settings.keys.iter().filter_map(key).collect()
    }

    /// As [`Self::look_up`] for many tokens: the place of each that is refused, and why.
    pub async fn look_up_all(
        &self,
        all: &[Arc<Facts>],
        patience: Duration,
    ) -> Result<Vec<(usize, Reason)>, Away> {
        let mut refused = Vec::new();
        for (n, part) in all.chunks(AT_ONCE).enumerate() {
            let mut asked = Vec::new();
            for (place, facts) in part.iter().enumerate() {
                let place = n * AT_ONCE + place;
                asked.extend(self.keys_of(facts).into_iter().map(|(key, reason)| (key, place, reason)));
            }
            let found = self.which_exist(patience, asked.iter().map(|(key, ..)| key)).await?;
            let those = asked.iter().zip(found).filter(|(_, exists)| *exists);
            refused.extend(those.map(|((_, place, reason), _)| (*place, *reason)));
        }
        Ok(refused)
    }

    /// All on their way before the first answer: one round trip. A cluster has each key somewhere else.
    async fn which_exist(
        &self,
        patience: Duration,
        keys: impl Iterator<Item = &String>,
    ) -> Result<Vec<bool>, Away> {
        let questions: Vec<_> = keys
            .map(|key| {
                let mut exists = cmd("EXISTS");
                exists.arg(key);
                exists
            })
            .collect();
        if questions.is_empty() {
            return Ok(Vec::new());
        }
        let connection = self.connection()?;
        let asked = questions.into_iter().map(|question| exists(question, connection.clone()));
        self.within(patience, try_join_all(asked)).await
    }
}

async fn exists(question: Cmd, mut connection: Connection) -> RedisResult<bool> {
    question.query_async(&mut connection).await
}
