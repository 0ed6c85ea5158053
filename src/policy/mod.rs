//! Floor 1: decisions. In: a request head, claims, `now`. Out: a value or a reason. No async, no locks,
//! no clocks, no I/O.

pub mod bearer;
pub mod carrier;
pub mod claims;
pub mod close;
pub mod cors;
pub mod cost;
pub mod csp;
pub mod expression;
pub mod foreign;
pub mod frame;
pub mod headers;
pub mod json;
pub mod jwt;
pub mod logout;
pub mod origin;
pub mod peer;
pub mod profile;
pub mod request;
pub mod revocation;
pub mod route;
pub mod rule;
pub mod security_headers;
pub mod trace;
pub mod window;
