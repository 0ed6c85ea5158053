//! Live sessions and plain requests: what passes, what ends them, and what is told of it.

mod admin;
mod boundary;
mod closing;
mod dialing;
mod discovery;
mod drain;
mod expiry;
mod frames;
mod heartbeat;
mod idling;
mod keys;
mod later_upgrades;
mod limits;
mod losing;
mod metrics;
mod plain;
mod plain_auth;
mod plain_bad;
mod plain_pool;
mod plain_streams;
mod plain_time;
mod prolonging;
mod records;
mod relay;
mod shadow;
pub mod wire;
mod write_timeout;
