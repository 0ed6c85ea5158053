//! Floor 2: shared memory behind short locks. Every method is sync; no sockets, files or tasks.

pub mod keyring;
pub mod lifecycle;
pub mod permits;
pub mod sessions;
pub mod verified;
