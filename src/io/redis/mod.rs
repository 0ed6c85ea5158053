//! `[blacklist] redis`: what the replicas of a gate share, and the blacklist that a backend keeps itself.
//! `link` is the way to the server; `stream`, `lease`, `once` and `foreign` are what is asked there.

pub mod foreign;
pub mod lease;
pub mod link;
pub mod once;
pub mod releases;
pub mod server;
pub mod settings;
pub mod stream;
