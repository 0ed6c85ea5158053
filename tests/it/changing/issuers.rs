//! Issuers that come and go, and that publish their keys elsewhere.

use std::time::Duration;

use serde_json::json;

use super::super::harness::{Backend, Config, Followed, Gate, Handshake, Issuer, Key, eventually};
use super::outcome;

fn bearer(token: &str) -> Handshake {
    Handshake::to("/").page().bearer(token)
}

/// The same realm with its keys at the address of another issuer.
fn elsewhere(backend: &Backend, issuer: &Issuer, place: &Issuer) -> Config {
    let written = Config::without_issuer(backend).issuer(issuer, "").text();
    let at = |issuer: &Issuer| format!("jwks_uri = '{}'", issuer.jwks_uri());
    assert!(written.contains(&at(issuer)));
    let tables = written.replace(&at(issuer), &at(place));
    let (_, issuer) = tables.split_once("[[issuer]]").unwrap();
    Config::without_issuer(backend).tables(&format!("[[issuer]]{issuer}"))
}

#[test]
fn an_issuer_that_is_added_is_asked_and_believed_and_the_others_are_not_asked_again() {
    let (first, second, backend) = (Issuer::start(), Issuer::start(), Backend::start());
    let one = Config::new(&first, &backend);
    let gate = Followed::start(&one);
    let mut client = gate.open(&bearer(&first.good_token()));
    assert_eq!(outcome(&gate, &bearer(&second.good_token())), "4001 token_issuer");
    gate.reload(&one.clone().issuer(&second, ""));
    gate.await_keys();
    assert_eq!(outcome(&gate, &bearer(&second.good_token())), "101");
    assert_eq!(outcome(&gate, &bearer(&first.good_token())), "101");
    assert_eq!((first.fetches(), second.fetches()), (1, 1));
    let fetched = format!("jwks_refresh_total{{issuer=\"{}\",result=\"ok\"}}", second.url());
    assert_eq!(gate.metric(&fetched), 1);
    Gate::assert_echo(&mut client);
}

#[test]
fn the_first_handshake_of_a_new_issuer_waits_for_no_keys_but_is_told_so() {
    let (first, second, backend) = (Issuer::start(), Issuer::start(), Backend::start());
    let one = Config::new(&first, &backend);
    let gate = Followed::start(&one);
    second.change(|answers| answers.status = 500);
    gate.reload(&one.issuer(&second, ""));
    assert_eq!(outcome(&gate, &bearer(&second.good_token())), "503 keys_unavailable");
    assert_eq!(outcome(&gate, &bearer(&first.good_token())), "101");
    second.change(|answers| answers.status = 200);
    gate.await_keys();
    assert_eq!(outcome(&gate, &bearer(&second.good_token())), "101");
}

#[test]
fn an_issuer_that_is_gone_is_asked_no_more() {
    let (first, second, backend) = (Issuer::start(), Issuer::start(), Backend::start());
    let both = Config::without_issuer(&backend)
        .issuer(&first, "refresh = '100ms'\n")
        .issuer(&second, "refresh = '100ms'\n");
    let gate = Followed::start(&both);
    eventually("refreshes", || (second.fetches() > 2).then_some(()));
    gate.reload(&Config::without_issuer(&backend).issuer(&first, "refresh = '100ms'\n"));
    let (one, two) = (first.fetches(), second.fetches());
    eventually("refreshes", || (first.fetches() > one + 4).then_some(()));
    // One may have been under way.
    assert!(second.fetches() <= two + 1);
    assert_eq!(outcome(&gate, &bearer(&second.good_token())), "4001 token_issuer");
}

#[test]
fn an_issuer_that_comes_back_with_other_keys_does_not_bring_back_what_the_old_ones_signed() {
    let (kept, issuer, backend) = (Issuer::start(), Issuer::start(), Backend::start());
    let without = Config::new(&kept, &backend);
    let with = without.clone().issuer(&issuer, "");
    let gate = Followed::start(&with);
    let old = issuer.good_token();
    assert_eq!(outcome(&gate, &bearer(&old)), "101");
    // The key has been stolen: the operator takes the issuer out until it has another one.
    gate.reload(&without);
    assert_eq!(outcome(&gate, &bearer(&old)), "4001 token_issuer");
    let new = Key::new("k2");
    issuer.publish(&[&new]);
    gate.reload(&with);
    gate.await_keys();
    let token = |key: &Key| key.sign(&key.header(), &issuer.claims(&json!({"jti": "new"})));
    assert_eq!(outcome(&gate, &bearer(&token(&new))), "101");
    assert_eq!(outcome(&gate, &bearer(&token(&issuer.key))), "4001 token_key_unknown", "by the old key");
    assert_eq!(outcome(&gate, &bearer(&old)), "4001 token_key_unknown", "by the old key, out of memory");
}

#[test]
fn keys_at_another_place_take_over_when_they_are_there_and_not_before() {
    let (issuer, place, backend) = (Issuer::start(), Issuer::with(Key::new("k2")), Backend::start());
    let gate = Followed::start(&Config::new(&issuer, &backend));
    let token = |key: &Key, jti: &str| key.sign(&key.header(), &issuer.claims(&json!({"jti": jti})));
    let cached = bearer(&token(&issuer.key, "cached"));
    let mut client = gate.open(&cached);
    place.change(|answers| answers.status = 503);
    gate.reload(&elsewhere(&backend, &issuer, &place));
    eventually("the new place to be asked", || (place.fetches() > 0).then_some(()));
    for handshake in [&cached, &bearer(&token(&issuer.key, "fresh"))] {
        assert_eq!(outcome(&gate, handshake), "101", "the old keys hold");
    }
    place.change(|answers| answers.status = 200);
    eventually("the new keys", || {
        (outcome(&gate, &bearer(&token(&place.key, "new"))) == "101").then_some(())
    });
    // Whether the new place lacks its kid, only a fetch that is not due could tell.
    assert_ne!(outcome(&gate, &cached), "101");
    assert_eq!(issuer.fetches(), 1, "the old place is left alone");
    // Who is in stays in until the token's end.
    Gate::assert_echo(&mut client);
}

#[test]
fn a_reload_that_concerns_no_issuer_asks_none() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::new(&issuer, &backend);
    let gate = Followed::start(&config);
    for n in 0..10 {
        gate.reload(&config.clone().set("token.cache", &(100 + n).to_string()));
        assert_eq!(outcome(&gate, &bearer(&issuer.good_token())), "101");
    }
    // Another policy with the same keys.
    gate.reload(
        &Config::without_issuer(&backend)
            .issuer(&issuer, "leeway = '1s'\nmax_stale = '1h'\nclients = ['web']\n"),
    );
    assert_eq!(outcome(&gate, &bearer(&issuer.good_token())), "101");
    assert_eq!(issuer.fetches(), 1);
}

#[test]
fn keys_that_a_new_bound_calls_stale_are_not_believed() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let gate = Followed::start(&Config::new(&issuer, &backend));
    let mut client = gate.open(&bearer(&issuer.good_token()));
    std::thread::sleep(Duration::from_millis(60));
    gate.reload(&Config::without_issuer(&backend).issuer(&issuer, "max_stale = '50ms'\n"));
    assert_eq!(outcome(&gate, &bearer(&issuer.good_token())), "503 keys_unavailable");
    // That is no reason to end a session.
    Gate::assert_echo(&mut client);
}
