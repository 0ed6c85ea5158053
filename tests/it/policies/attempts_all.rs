//! `attempts_count = "all"`, and what shadow mode has to do with attempts.

use super::super::harness::{Config, Gate, Handshake};
use super::{Scene, from};

fn all(config: Config) -> Config {
    config
        .set("limits.attempts_per_address", "'3/60s'")
        .set("limits.attempts_count", "'all'")
        .set("http.auth", "'required'")
}

#[test]
fn all_counts_every_upgrade_whether_it_succeeds_or_not_and_once() {
    let scene = Scene::behind_a_proxy(all);
    let status = |address: &str, handshake: Handshake| scene.gate.upgrade(&from(address, handshake)).1.status;
    let good = || scene.good("/ws/");
    for (address, before) in [
        ("203.0.113.1", [good(), good(), good()]),
        ("203.0.113.2", [Handshake::to("/ws/"), good(), Handshake::to("/ws/").page()]),
        ("203.0.113.3", [Handshake::to("/ws/"), Handshake::to("/ws/"), Handshake::to("/ws/")]),
    ] {
        for handshake in before {
            assert_ne!(status(address, handshake), 429, "{address}");
        }
        assert_eq!(status(address, good()), 429, "{address}");
    }
    // A live session stays.
    let mut client = scene.gate.open(&from("203.0.113.4", good()));
    while status("203.0.113.4", good()) != 429 {}
    Gate::assert_echo(&mut client);
}

#[test]
fn all_counts_no_plain_request_but_those_that_are_refused() {
    let scene = Scene::behind_a_proxy(all);
    let (line, bearer) = ("X-Forwarded-For: 203.0.113.1", scene.bearer());
    for _ in 0..6 {
        assert_eq!(scene.ask("GET", "/x", &[line, &bearer]).status, 200);
    }
    for status in [401, 401, 401, 429] {
        assert_eq!(scene.ask("GET", "/x", &[line]).status, status);
    }
}

#[test]
fn all_counts_malformed_upgrades_too() {
    let scene = Scene::behind_a_proxy(|config| all(config).set("listen.hosts", "['chat.example.com']"));
    for (n, (handshake, expected)) in [
        (scene.good("/ws//"), 400),
        (scene.good("/ws/").instead("Host: evil.example"), 400),
        (scene.good("/ws/").instead("Sec-WebSocket-Version: 8"), 426),
        (scene.good("/ws/").instead("Sec-WebSocket-Key: short"), 400),
    ]
    .into_iter()
    .enumerate()
    {
        let address = format!("203.0.113.{n}");
        let status = || scene.gate.upgrade(&from(&address, handshake.clone())).1.status;
        let statuses: Vec<u16> = (0..4).map(|_| status()).collect();
        assert_eq!(statuses, [expected, expected, expected, 429], "{:?}", handshake.lines);
    }
}

#[test]
fn what_shadow_mode_lets_pass_is_no_refusal() {
    let scene = Scene::behind_a_proxy(|config| {
        let config = config.set("limits.attempts_per_address", "'1/60s'");
        config.route("path = '/*'\nmode = 'shadow'").route("path = '/enforced/'")
    });
    let status = |target: &str| scene.gate.upgrade(&from("203.0.113.1", Handshake::to(target))).1.status;
    for _ in 0..4 {
        assert_eq!(status("/ws/"), 101);
    }
    assert_eq!(scene.would_refuse("token_missing"), 4);
    assert_eq!((status("/enforced/"), status("/enforced/")), (401, 429));
}

#[test]
fn who_has_been_refused_elsewhere_is_still_let_into_a_route_in_shadow_mode() {
    let scene = Scene::behind_a_proxy(|config| {
        let config = config.set("limits.attempts_per_address", "'1/60s'");
        config.route("path = '/*'\nmode = 'shadow'").route("path = '/enforced/'")
    });
    let status = |handshake: Handshake| scene.gate.upgrade(&from("203.0.113.1", handshake)).1.status;
    assert_eq!(status(Handshake::to("/enforced/")), 401);
    assert_eq!(status(scene.good("/ws/")), 101);
    assert_eq!(scene.would_refuse("attempts_exceeded"), 1);
    assert_eq!(scene.ask("GET", "/x", &["X-Forwarded-For: 203.0.113.1", &scene.bearer()]).status, 200);
    assert_eq!(status(scene.good("/enforced/")), 429);
}
