//! The gate in process, on port 0, with fakes that speak the real protocol. One binary, so that it is
//! linked once.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the helpers of tests fail as tests do, and clippy excuses only the tests themselves"
)]

mod attacks;
mod changing;
mod commands;
mod faults;
mod harness;
mod operating;
mod policies;
mod sessions;
mod sharing;
