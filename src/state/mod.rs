//! Floor 2: shared memory behind short locks. Every method is sync; no sockets, files or tasks.

pub mod attempts;
pub mod blacklist;
pub mod entries;
pub mod keyring;
pub mod lifecycle;
pub mod naming;
pub mod permits;
pub mod replays;
pub mod revocation;
pub mod sessions;
pub mod tally;
pub mod verified;
