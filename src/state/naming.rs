//! What a revocation is called, and where it is looked for.

use std::hash::Hasher as _;

use aws_lc_rs::digest;
use siphasher::sip128::{Hasher128, SipHasher24};

use crate::policy::revocation::Kind;

/// Name of a revocation: the same on every replica, whoever computes it.
pub fn id(kind: Kind, iss: &str, value: &str) -> u128 {
    let mut hasher = SipHasher24::new();
    hasher.write_u8(kind as u8);
    hasher.write_u64(iss.len() as u64);
    hasher.write(iss.as_bytes());
    hasher.write(value.as_bytes());
    hasher.finish128().as_u128()
}

#[expect(clippy::cast_possible_truncation, reason = "any 32 of the 128 bits will do")]
pub fn short(id: u128) -> u32 {
    id as u32
}

/// For a table that reads both ends of a hash.
pub fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

/// Name of a user under the limit that `scope` has set: the same on every replica, and no two can be made to
/// collide.
pub fn user(scope: &str, iss: &str, sub: &str) -> u128 {
    let mut hash = digest::Context::new(&digest::SHA256);
    for part in [scope, iss, sub] {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let mut name = [0; 16];
    name.iter_mut().zip(hash.finish().as_ref()).for_each(|(to, from)| *to = *from);
    u128::from_be_bytes(name)
}

/// As operators see it.
pub fn written(id: u128) -> String {
    format!("{id:032x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_one_limit_issuer_and_sub() {
        let names = [("", "a", "b"), ("", "ab", ""), ("a", "", "b"), ("", "a", "bc"), ("", "b", "a")]
            .map(|(scope, iss, sub)| user(scope, iss, sub));
        for (n, name) in names.iter().enumerate() {
            assert_eq!(names.iter().position(|other| other == name), Some(n));
        }
    }
}
