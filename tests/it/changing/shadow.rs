//! A route that goes into shadow mode, or leaves it, with sessions on it.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::harness::{Backend, Config, Followed, Gate, Handshake, Issuer, Key, eventually, now};
use super::outcome;

struct Route<'a> {
    issuer: &'a Issuer,
    backend: &'a Backend,
    lines: &'static str,
}

impl Route<'_> {
    fn mode(&self, mode: &str) -> Config {
        Config::without_issuer(self.backend)
            .issuer(self.issuer, "leeway = '0s'\n")
            .route(&format!("path = '/'\nmode = '{mode}'\n{}", self.lines))
    }
}

fn page(token: &str) -> Handshake {
    Handshake::to("/").page().bearer(token)
}

/// A token that ends so soon.
fn ending(issuer: &Issuer, after: Duration) -> String {
    let exp = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap() + after;
    issuer.token(&json!({"exp": exp.as_secs_f64()}))
}

fn roles(issuer: &Issuer, roles: &Value) -> String {
    issuer.token(&json!({"realm_access": {"roles": roles}}))
}

#[test]
fn nobody_is_closed_on_a_route_that_has_become_shadow() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let free = Route { issuer: &issuer, backend: &backend, lines: "" };
    let strict = Route { lines: "roles = ['admin']", ..free };
    let gate = Followed::start(&free.mode("enforce"));
    let handshake = page(&issuer.good_token());
    let mut client = gate.open(&handshake);
    gate.reload(&strict.mode("shadow"));
    Gate::assert_echo(&mut client);
    let other = Route {
        lines: "allow_addresses = ['192.0.2.1']\norigin = { allow = ['https://x.example.com'] }",
        ..free
    };
    gate.reload(&other.mode("shadow"));
    Gate::assert_echo(&mut client);
    let nobodys =
        Config::without_issuer(&backend).issuer(&Issuer::start(), "").route("path = '/'\nmode = 'shadow'");
    gate.reload(&nobodys);
    Gate::assert_echo(&mut client);
    assert_eq!(gate.metric("websocket_active_connections"), 1);
    // A path that has no route has no mode either.
    gate.reload(&Config::new(&issuer, &backend).route("path = '/other/'\nmode = 'shadow'"));
    assert_eq!(client.close(), (4003, "route_unknown".into()));
}

#[test]
fn who_was_only_let_in_by_shadow_is_out_when_it_ends() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let route = Route { issuer: &issuer, backend: &backend, lines: "roles = ['admin']" };
    let stranger = Key::new("k1");
    let forged =
        stranger.sign(&stranger.header(), &issuer.claims(&json!({"realm_access": {"roles": ["admin"]}})));
    let admin = roles(&issuer, &json!(["admin"]));
    let foreign = page(&admin).instead("Origin: https://evil.example.com");
    for (handshake, expected) in [
        (page(&roles(&issuer, &json!([]))), "4003 rule_denied"),
        (Handshake::to("/").page(), "4001 token_missing"),
        (foreign, "4003 origin_denied"),
        (page(&issuer.token(&json!({"aud": "x"}))), "4001 token_audience"),
        // What was wrong with a token that told nothing is not kept.
        (page(&forged), "4001 token_missing"),
        (page("nonsense"), "4001 token_missing"),
    ] {
        let gate = Followed::start(&route.mode("shadow"));
        let mut good = gate.open(&page(&admin));
        let mut client = gate.open(&handshake);
        Gate::assert_echo(&mut client);
        gate.reload(&route.mode("enforce"));
        let (code, label) = client.close();
        assert_eq!(format!("{code} {label}"), expected);
        Gate::assert_echo(&mut good);
        assert_ne!(outcome(&gate, &handshake), "101");
    }
}

#[test]
fn a_session_that_shadow_let_in_with_an_expired_token_is_out_when_it_ends() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let route = Route { issuer: &issuer, backend: &backend, lines: "" };
    let gate = Followed::start(&route.mode("shadow"));
    let handshake = page(&issuer.token(&json!({"exp": now() - 60})));
    let mut client = gate.open(&handshake);
    Gate::assert_echo(&mut client);
    gate.reload(&route.mode("enforce"));
    assert_eq!(outcome(&gate, &handshake), "4001 token_expired");
    assert_eq!(client.close(), (4001, "token_expired".into()));
}

#[test]
fn a_session_whose_token_ends_after_shadow_has_ended_is_closed_then() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let route = Route { issuer: &issuer, backend: &backend, lines: "" };
    let gate = Followed::start(&route.mode("shadow"));
    let mut client = gate.open(&page(&ending(&issuer, Duration::from_millis(700))));
    gate.reload(&route.mode("enforce"));
    Gate::assert_echo(&mut client);
    assert_eq!(client.close(), (4001, "token_expired".into()));
}

#[test]
fn a_session_whose_token_ended_in_shadow_is_closed_when_shadow_ends() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let route = Route { issuer: &issuer, backend: &backend, lines: "" };
    let gate = Followed::start(&route.mode("shadow"));
    let mut client = gate.open(&page(&ending(&issuer, Duration::from_millis(300))));
    eventually("the end of the token", || {
        (gate.metric("would_refuse_total{reason=\"token_expired\"}") == 1).then_some(())
    });
    Gate::assert_echo(&mut client);
    gate.reload(&route.mode("enforce"));
    assert_eq!(client.close(), (4001, "token_expired".into()));
}

#[test]
fn a_session_whose_token_ends_after_shadow_has_begun_is_not_closed() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let route = Route { issuer: &issuer, backend: &backend, lines: "" };
    let gate = Followed::start(&route.mode("enforce"));
    let mut client = gate.open(&page(&ending(&issuer, Duration::from_millis(500))));
    gate.reload(&route.mode("shadow"));
    std::thread::sleep(Duration::from_millis(900));
    Gate::assert_echo(&mut client);
}
