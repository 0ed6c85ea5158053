//! What all tests of this binary stand on: an issuer, a backend and a client that speak the real
//! protocols byte by byte, and the gate between them, in process and on port 0. Nothing waits longer
//! than [`PATIENCE`].

mod backend;
mod client;
mod folder;
mod followed;
mod gate;
mod issuer;
mod listening;
mod program;
mod serving;

use std::time::Duration;

pub use backend::{Backend, Heard, Script};
pub use client::{Answer, Client, Frame, Handshake, masked, take_frame, take_frames};
pub use folder::Folder;
pub use followed::Followed;
pub use gate::{Config, Gate};
pub use issuer::{Answers, Issuer, Key};
pub use listening::Listening;
pub use program::{Running, said, sidegate};
pub use serving::unmasked;

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Looks again and again until `look` finds something; `what` is told if it never does.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    const STEP: Duration = Duration::from_millis(5);
    for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(STEP);
    }
    panic!("waited in vain for: {what}");
}

/// Seconds since the epoch.
pub fn now() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs()
}
