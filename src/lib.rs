//! sidegate (plan follows)

pub mod app;
mod base;
mod io;
mod policy;
mod proxy;
mod state;
mod telemetry;
