//! Tokens that have been verified: facts about a token, never a decision. Time, audience, route and
//! all other checks are made anew each time, and a key that dies takes its tokens along.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use quick_cache::sync::Cache;

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

/// What a token is remembered by; no token stays in memory for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name(u128);

/// A bounded cache.
#[derive(Debug)]
pub struct VerifiedTokens {
    mac: Arc<LessSafeKey>,
    cache: Option<Cache<u128, Verified>>,
}

impl VerifiedTokens {
    /// `None` = no cache.
    pub fn new(capacity: Option<u32>, secret: [u8; 16]) -> Self {
        #[expect(clippy::expect_used, reason = "the secret is as long as the key")]
        let key = UnboundKey::new(&AES_128_GCM, &secret).expect("a key of 128 bits");
        Self::named_by(Arc::new(LessSafeKey::new(key)), capacity)
    }

    fn named_by(mac: Arc<LessSafeKey>, capacity: Option<u32>) -> Self {
        let cache = capacity.map(|capacity| Cache::new(usize::try_from(capacity).unwrap_or(usize::MAX)));
        Self { mac, cache }
    }

    /// An empty one of another capacity.
    pub fn emptied(&self, capacity: Option<u32>) -> Self {
        Self::named_by(Arc::clone(&self.mac), capacity)
    }

    /// The token's AES-GMAC (NIST SP 800-38D) under a secret of the process, so that no two tokens can be
    /// made to collide. That its nonce is always the same would only help who sees the names, and nobody
    /// does. `None` = there is no cache.
    pub fn name(&self, token: &str) -> Option<Name> {
        self.cache.as_ref()?;
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let tag = self.mac.seal_in_place_separate_tag(nonce, Aad::from(token), &mut []).ok()?;
        tag.as_ref().try_into().ok().map(u128::from_ne_bytes).map(Name)
    }

    /// A token verified before by a key that is still alive.
    pub fn get(&self, name: Name) -> Option<Verified> {
        let cache = self.cache.as_ref()?;
        let verified = cache.get(&name.0)?;
        if verified.key.is_alive() {
            return Some(verified);
        }
        cache.remove(&name.0);
        None
    }

    pub fn put(&self, name: Name, verified: Verified) {
        if let Some(cache) = &self.cache {
            cache.insert(name.0, verified);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_names_that_only_this_process_knows() {
        let (one, other) = (VerifiedTokens::new(Some(9), [1; 16]), VerifiedTokens::new(Some(9), [2; 16]));
        let token = "a".repeat(1500);
        assert_eq!(one.name(&token), one.emptied(Some(7)).name(&token));
        assert_ne!(one.name(&token), other.name(&token));
        let mut changed: Vec<String> =
            (0..token.len()).map(|n| format!("{}b{}", &token[..n], &token[n + 1..])).collect();
        changed.extend([token[1..].to_owned(), format!("{token}\0"), String::new(), token.clone()]);
        let names: std::collections::HashSet<u128> =
            changed.iter().map(|token| one.name(token).unwrap().0).collect();
        assert_eq!(names.len(), changed.len());
        assert_eq!(one.emptied(None).name(&token), None);
    }
}
