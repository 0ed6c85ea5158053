//! What replicas share by a Redis server, the real one: revocations, sessions of users; and the blacklist that
//! a backend keeps there itself.

mod catching_up;
mod cut_off;
mod keys;
mod limits;
mod logout;
mod losing;
mod places;
mod replicas;
mod revoking;
mod server;
mod storms;
mod written;
