//! Tokens that have been verified: facts about a token, never a decision. Time, audience, route and
//! all other checks are made anew each time, and a key that dies takes its tokens along.

use std::hash::Hasher;
use std::sync::Arc;

use quick_cache::sync::Cache;
use siphasher::sip128::{Hasher128, SipHasher24};

use super::keyring::Key;
use crate::policy::claims::Facts;
use crate::policy::jwt::Algorithm;

/// What is known of a token.
#[derive(Clone, Debug)]
pub struct Verified {
    pub facts: Arc<Facts>,
    pub algorithm: Algorithm,
    pub key: Arc<Key>,
}

/// A bounded cache. Its key is a hash under a secret of the process, so that no two tokens can be made
/// to collide, and no token stays in memory for it.
#[derive(Debug)]
pub struct VerifiedTokens {
    secret: [u8; 16],
    cache: Option<Cache<u128, Verified>>,
}

impl VerifiedTokens {
    /// `None` = no cache.
    pub fn new(capacity: Option<u32>, secret: [u8; 16]) -> Self {
        Self {
            secret,
            cache: capacity.map(|capacity| Cache::new(usize::try_from(capacity).unwrap_or(usize::MAX))),
        }
    }

    /// An empty one of another capacity.
    pub fn emptied(&self, capacity: Option<u32>) -> Self {
        Self::new(capacity, self.secret)
    }

    fn hash(&self, token: &str) -> u128 {
        let mut hasher = SipHasher24::new_with_key(&self.secret);
        hasher.write(token.as_bytes());
        hasher.finish128().as_u128()
    }

    /// A token verified before by a key that is still alive.
    pub fn get(&self, token: &str) -> Option<Verified> {
        let cache = self.cache.as_ref()?;
        let hash = self.hash(token);
        let verified = cache.get(&hash)?;
        if verified.key.is_alive() {
            return Some(verified);
        }
        cache.remove(&hash);
        None
    }

    pub fn put(&self, token: &str, verified: Verified) {
        if let Some(cache) = &self.cache {
            cache.insert(self.hash(token), verified);
        }
    }
}
