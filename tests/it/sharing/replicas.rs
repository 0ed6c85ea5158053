//! Several gates that share a server, an issuer, and nothing else.

use serde_json::Value;

use super::super::harness::{Config, Issuer, eventually};
use super::super::operating::desk::{Desk, Folder};

/// A gate in touch with the server at this address; these keys of `redis` too.
pub fn replica(issuer: &Issuer, url: &str, more: &str, configure: impl FnOnce(Config) -> Config) -> Desk {
    let desk = lonely(issuer, url, more, configure);
    await_touch(&desk);
    desk
}

/// The same, in touch or not.
pub fn lonely(issuer: &Issuer, url: &str, more: &str, configure: impl FnOnce(Config) -> Config) -> Desk {
    Desk::of(issuer.clone(), Folder::new(), |config, _| configure(with_redis(config, url, more)))
}

pub fn with_redis(config: Config, url: &str, more: &str) -> Config {
    let comma = if more.is_empty() { "" } else { ", " };
    config.set("blacklist.redis", &format!("{{ url = '{url}'{comma}{more} }}"))
}

/// Two of them.
pub fn two(url: &str) -> (Desk, Desk) {
    let issuer = Issuer::start();
    (replica(&issuer, url, "", |config| config), replica(&issuer, url, "", |config| config))
}

pub fn is_in_touch(desk: &Desk) -> bool {
    let gate = desk.gate.control.gate();
    gate.snapshot.load().shared.as_ref().is_some_and(|shared| shared.is_open())
}

pub fn await_touch(desk: &Desk) {
    eventually("the gate to be in touch", || is_in_touch(desk).then_some(()));
}

pub fn await_loss(desk: &Desk) {
    eventually("the gate to be out of touch", || (!is_in_touch(desk)).then_some(()));
}

/// So many revocations hold on a gate.
pub fn await_entries(desk: &Desk, count: usize) {
    eventually(&format!("{count} revocations"), || {
        (desk.gate.control.gate().blacklist.len() == count).then_some(())
    });
}

/// Where the revocation holds, and whether it stays.
pub fn reach(said: &Value) -> (&str, bool) {
    (said["scope"].as_str().unwrap(), said["durable"].as_bool().unwrap())
}
