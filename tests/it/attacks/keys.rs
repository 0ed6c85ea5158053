//! Key sets that lie, flood or vanish.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::super::harness::{Answers, Backend, Config, Gate, Handshake, Issuer, Key, eventually};
use super::Scene;

/// A gate that fetches often.
fn eager(lines: &str) -> Scene {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::without_issuer(&backend).issuer(&issuer, &format!("refresh = '100ms'\n{lines}"));
    let gate = Gate::start(&config);
    Scene { gate, backend, issuer }
}

/// Waits until the gate has fetched twice since now: what is published now has been taken in then.
fn refreshed(issuer: &Issuer) {
    let before = issuer.fetches();
    eventually("two more fetches", || (issuer.fetches() >= before + 2).then_some(()));
}

/// A fetch of such an answer fails, and what was known before stays.
fn fails_with(scene: &Scene, change: impl FnOnce(&mut Answers)) {
    let url = scene.issuer.url();
    let failed = || scene.gate.metric(&format!("jwks_refresh_total{{issuer=\"{url}\",result=\"error\"}}"));
    let mut before = Answers::default();
    let failures = failed();
    scene.issuer.change(|answers| {
        before = answers.clone();
        change(answers);
    });
    eventually("a failed fetch", || (failed() > failures).then_some(()));
    Gate::assert_echo(&mut scene.gate.open(&scene.good("/")));
    scene.issuer.change(|answers| *answers = before);
    refreshed(&scene.issuer);
}

fn set(keys: &[Value]) -> String {
    json!({"keys": keys}).to_string()
}

#[test]
fn a_flood_of_unknown_kids_costs_the_issuer_a_handful_of_fetches() {
    let scene = Scene::new();
    let claims = scene.issuer.claims(&json!({}));
    let key = Key::new("unknown");
    let told = [AtomicUsize::new(0), AtomicUsize::new(0)];
    std::thread::scope(|scope| {
        for n in 0..200 {
            let (scene, claims, key, told) = (&scene, &claims, &key, &told);
            scope.spawn(move || {
                let named = key.named(&format!("unknown-{n}"));
                let token = named.sign(&named.header(), claims);
                let (status, label) = scene.gate.refusal(&Handshake::to("/").bearer(&token));
                let n = match (status, label.as_str()) {
                    (401, "token_key_unknown") => 0,
                    (503, "keys_unavailable") => 1,
                    other => panic!("{other:?}"),
                };
                told[n].fetch_add(1, Ordering::Relaxed);
            });
        }
        // A token whose key is known is none the worse for it.
        Gate::assert_echo(&mut scene.gate.open(&scene.good("/")));
    });
    assert!(scene.issuer.fetches() <= 4, "{} fetches", scene.issuer.fetches());
    assert!(told[0].load(Ordering::Relaxed) > 0, "nobody was told that the key is unknown");
    assert_eq!(scene.backend.connections(), 1);
}

#[test]
fn a_kid_that_a_fetch_has_lacked_is_told_at_once() {
    let scene = Scene::new();
    let key = Key::new("unknown");
    let token = key.sign(&key.header(), &scene.issuer.claims(&json!({})));
    for _ in 0..50 {
        let refused = scene.gate.refusal(&Handshake::to("/").bearer(&token));
        assert_eq!(refused, (401, "token_key_unknown".into()));
    }
    assert_eq!(scene.issuer.fetches(), 2);
}

#[test]
fn a_new_key_is_found_by_its_first_token() {
    let scene = Scene::new();
    let key = Key::new("k2");
    scene.issuer.publish(&[&scene.issuer.key, &key]);
    let token = key.sign(&key.header(), &scene.issuer.claims(&json!({})));
    Gate::assert_echo(&mut scene.gate.open(&Handshake::to("/").bearer(&token)));
    assert_eq!(scene.issuer.fetches(), 2);
}

#[test]
fn redirects_of_the_key_set_are_not_followed() {
    let scene = eager("");
    let attacker = Issuer::with(Key::new("k2"));
    for status in [301, 302, 303, 307, 308] {
        fails_with(&scene, |answers| {
            answers.status = status;
            answers.location = Some(attacker.jwks_uri());
        });
    }
    assert_eq!(attacker.fetches(), 0, "the redirect was followed");
}

#[test]
fn a_bad_key_set_keeps_the_old_keys() {
    let other = Key::new("k2").jwk();
    let many: Vec<Value> = (0..65).map(|n| Key::new(&format!("n{n}")).jwk()).collect();
    let oct = json!({"kty": "oct", "kid": "k1", "alg": "HS256", "k": "c2VjcmV0"});
    let bodies = [
        (200, "x".repeat(300 * 1024)),
        (200, set(std::slice::from_ref(&other)) + &" ".repeat(256 * 1024)),
        (200, set(&many)),
        (200, set(&[])),
        (200, set(&[oct])),
        (200, "{}".into()),
        (200, "[]".into()),
        (200, json!({"keys": {"k2": other}}).to_string()),
        (200, String::new()),
        (200, "<html>maintenance</html>".into()),
        (500, set(std::slice::from_ref(&other))),
        (404, set(std::slice::from_ref(&other))),
        (203, set(&[other])),
    ];
    // Each with a gate of its own, for a failed fetch is repeated after half a second and no sooner.
    std::thread::scope(|scope| {
        for (status, body) in bodies {
            scope.spawn(move || {
                let scene = eager("");
                fails_with(&scene, |answers| (answers.status, answers.body) = (status, body));
            });
        }
    });
}

#[test]
fn a_strange_key_beside_a_good_one_harms_nobody() {
    let scene = eager("");
    let (rsa, p256) = (Key::rsa("r1"), Key::new("e2"));
    let with = |key: &Key, changes: Value| {
        let mut jwk = key.jwk();
        for (name, value) in changes.as_object().unwrap() {
            jwk[name.as_str()] = value.clone();
        }
        jwk
    };
    let strange = [
        json!(null),
        json!(7),
        json!({}),
        json!({"kty": "oct", "kid": "oct", "k": "c2VjcmV0", "alg": "HS256"}),
        json!({"kty": "RSA", "kid": "bad", "n": "!!!", "e": "AQAB"}),
        json!({"kty": "EC", "kid": "bad", "crv": "P-256", "x": "AA", "y": "AA"}),
        json!({"kty": "EC", "kid": "k1", "crv": "P-256", "x": "A".repeat(43), "y": "A".repeat(43)}),
        with(&p256, json!({"use": "enc"})),
        with(&p256, json!({"kid": "e3", "alg": "ES512"})),
        with(&p256, json!({"kid": "e4", "key_ops": ["sign"]})),
        with(&rsa, json!({"alg": "RSA-OAEP", "use": "enc"})),
        scene.issuer.key.jwk(),
    ];
    scene.issuer.publish_text(&set(&strange));
    refreshed(&scene.issuer);
    Gate::assert_echo(&mut scene.gate.open(&scene.good("/")));
    let claims = scene.issuer.claims(&json!({}));
    for key in [&p256, &p256.named("e3"), &p256.named("e4"), &rsa] {
        let token = key.sign(&key.header(), &claims);
        let (status, _) = scene.gate.refusal(&Handshake::to("/").bearer(&token));
        assert!(matches!(status, 401 | 503), "{} was believed", key.kid);
    }
    assert_eq!(scene.backend.connections(), 1);
}

#[test]
fn a_key_that_left_the_set_takes_its_tokens_along() {
    let scene = eager("");
    let token = scene.issuer.good_token();
    let open = || Handshake::to("/").bearer(&token);
    let mut before = scene.gate.open(&open());
    Gate::assert_echo(&mut before);
    let next = Key::new("k2");
    scene.issuer.publish(&[&next]);
    refreshed(&scene.issuer);
    assert_eq!(scene.gate.refusal(&open()), (401, "token_key_unknown".into()));
    // A session that is open lives on until its token ends.
    Gate::assert_echo(&mut before);
    // Another key under the old name does not revive the token either.
    scene.issuer.publish(&[&next.named("k1")]);
    refreshed(&scene.issuer);
    assert_eq!(scene.gate.refusal(&open()), (401, "token_signature".into()));
}

#[test]
fn keys_that_are_too_old_are_no_longer_believed() {
    let scene = eager("max_stale = '500ms'");
    let token = scene.issuer.good_token();
    Gate::assert_echo(&mut scene.gate.open(&Handshake::to("/").bearer(&token)));
    scene.issuer.change(|answers| answers.status = 500);
    std::thread::sleep(Duration::from_millis(700));
    let (mut client, answer) = scene.gate.upgrade(&Handshake::to("/").bearer(&token));
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")));
    assert_eq!(client.json(&answer)["reason"], "keys_unavailable");
    assert_eq!(scene.backend.connections(), 1);
}

#[test]
fn without_keys_nobody_gets_in() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    issuer.change(|answers| answers.delay = Duration::from_secs(1));
    let gate = Gate::start_without_keys(&Config::new(&issuer, &backend));
    let refused = gate.refusal(&Handshake::to("/").bearer(&issuer.good_token()));
    assert_eq!(refused, (503, "keys_unavailable".into()));
    assert_eq!(gate.refusal(&Handshake::to("/").bearer("x")), (401, "token_malformed".into()));
    backend.assert_never_heard();
}

#[test]
fn discovery_that_speaks_for_somebody_else_is_not_believed() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let attacker = Issuer::with(Key::new("k1"));
    let config = Config::without_issuer(&backend).tables(&format!(
        "[[issuer]]\nurl = '{}'\naudiences = ['chat']\nalgorithms = ['ES256']\n",
        issuer.url()
    ));
    issuer.publish_text(&json!({"issuer": attacker.url(), "jwks_uri": attacker.jwks_uri()}).to_string());
    let gate = Gate::start_without_keys(&config);
    gate.logged("jwks_failed");
    let forged = attacker.token(&json!({"iss": issuer.url()}));
    assert_eq!(gate.refusal(&Handshake::to("/").bearer(&forged)), (503, "keys_unavailable".into()));
    issuer.publish_text(&json!({"issuer": issuer.url(), "jwks_uri": "/certs"}).to_string());
    refreshed(&issuer);
    assert_eq!(gate.refusal(&Handshake::to("/").bearer(&forged)), (503, "keys_unavailable".into()));
    assert_eq!(attacker.fetches(), 0);
    backend.assert_never_heard();
}
