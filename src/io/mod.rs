//! Floor 3: one file per outside party. No decisions.

pub mod dial;
pub mod files;
pub mod jwks;
pub mod listener;
pub mod pool;
pub mod redis;
pub mod upstream;
