//! Floor 1: what operators read. Knows nothing of policies: others describe themselves to a line.

mod errors;
pub mod logging;
pub mod metrics;
pub mod record;
mod sharded;
