//! Floor 1: decisions. In: a request head, claims, `now`. Out: a value or a reason. No async, no locks,
//! no clocks, no I/O.

pub mod bearer;
pub mod carrier;
pub mod claims;
pub mod frame;
pub mod headers;
pub mod jwt;
pub mod origin;
pub mod profile;
pub mod request;
pub mod route;
pub mod rule;
