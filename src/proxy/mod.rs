//! Floor 4: the life of one connection. Read in this order: `connection` accepts (`first` reads an upgrade, hyper
//! all else), `entry` answers,
//! `judge` decides, `handshake` carries an upgrade out (or `forward` a plain request), `session` lives,
//! `splice` moves bytes, `closing` ends.

pub mod asked;
pub mod body;
pub mod closing;
pub mod connection;
pub mod dress;
pub mod entry;
pub mod extension;
pub mod first;
pub mod forward;
pub mod gate;
pub mod guest;
pub mod handshake;
pub mod heartbeat;
pub mod judge;
pub mod kept;
pub mod lifetime;
pub mod logout;
pub mod passing;
pub mod places;
pub mod plan;
pub mod rates;
pub mod refuse;
pub mod relay;
pub mod revoked;
pub mod revoking;
pub mod session;
pub mod splice;
pub mod visit;
pub mod watch;
pub mod wire;
pub mod worker;
