//! The keys of an issuer: missing, late, rotated, stale, broken.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::harness::{Backend, Client, Config, Gate, Handshake, Issuer, Key, eventually};

fn bearer(token: &str) -> Handshake {
    Handshake::to("/ws/").bearer(token)
}

/// A token of this key that has not been seen before.
fn fresh(issuer: &Issuer, key: &Key, n: usize) -> String {
    key.sign(&key.header(), &issuer.claims(&json!({"jti": format!("{}-{n}", key.kid)})))
}

/// Status and body of a page of the admin listener.
pub fn page(gate: &Gate, path: &str) -> (u16, Value) {
    let mut client = Client::connect(gate.admin, std::sync::Arc::default());
    client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes());
    let answer = client.head();
    (answer.status, client.json(&answer))
}

fn with(backend: &Backend, issuer: &Issuer, lines: &str) -> Config {
    Config::without_issuer(backend).issuer(issuer, lines)
}

#[test]
fn without_keys_it_serves_says_what_is_missing_and_heals() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    issuer.change(|answers| answers.status = 500);
    let gate = Gate::start_without_keys(&Config::new(&issuer, &backend));
    let (status, body) = page(&gate, "/readyz");
    assert_eq!((status, &body["ready"]), (503, &false.into()));
    assert!(body["missing"][0].as_str().unwrap().contains(&issuer.url()), "{body}");
    assert_eq!(page(&gate, "/livez").0, 200);
    for handshake in [bearer(&issuer.good_token()), bearer(&issuer.good_token()).page()] {
        let (mut client, answer) = gate.upgrade(&handshake);
        assert_eq!((answer.status, client.json(&answer)["reason"].as_str()), (503, Some("keys_unavailable")));
        assert!(answer.header("retry-after").is_some(), "{}", answer.text);
    }
    backend.assert_never_heard();
    assert_eq!(gate.refused("keys_unavailable"), 2);
    // Who has no token does not need keys to be told so.
    assert_eq!(gate.refusal(&Handshake::to("/ws/")).0, 401);
    assert!(gate.logged("jwks_failed")["message"].as_str().unwrap().contains("500"));
    issuer.change(|answers| answers.status = 200);
    eventually("the gate to be ready", || (page(&gate, "/readyz").0 == 200).then_some(()));
    gate.open(&bearer(&issuer.good_token()));
    let result = |result| {
        gate.metric(&format!("jwks_refresh_total{{issuer=\"{}\",result=\"{result}\"}}", issuer.url()))
    };
    assert!(result("error") > 0 && result("ok") == 1);
    let last = gate.metrics();
    let last = last.lines().find(|line| line.starts_with("sidegate_jwks_last_success_timestamp_seconds{"));
    let last: f64 = last.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(
        (last - std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64()).abs() < 60.0
    );
}

#[test]
fn one_of_several_issuers_is_enough_to_be_ready() {
    let (up, down, backend) = (Issuer::start(), Issuer::start(), Backend::start());
    down.change(|answers| answers.status = 503);
    let gate = Gate::start_without_keys(&Config::new(&up, &backend).issuer(&down, ""));
    eventually("the gate to be ready", || (page(&gate, "/readyz").0 == 200).then_some(()));
    gate.open(&bearer(&up.good_token()));
    assert_eq!(gate.refusal(&bearer(&down.good_token())), (503, "keys_unavailable".into()));
}

#[test]
fn after_a_rotation_fifty_handshakes_share_one_fetch_and_all_succeed() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let gate = Gate::start(&Config::new(&issuer, &backend));
    let new = Key::new("k2");
    issuer.publish(&[&issuer.key, &new]);
    issuer.change(|answers| answers.delay = Duration::from_millis(300));
    let before = issuer.fetches();
    let mut clients: Vec<_> = (0..50).map(|n| gate.send(&bearer(&fresh(&issuer, &new, n)).bytes())).collect();
    for client in &mut clients {
        assert_eq!(client.head().status, 101);
    }
    assert_eq!(issuer.fetches() - before, 1);
    // The old key is still there.
    gate.open(&bearer(&fresh(&issuer, &issuer.key, 0)));
    assert_eq!(issuer.fetches() - before, 1);
}

#[test]
fn a_kid_that_the_issuer_lacks_is_refused_and_remembered() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let gate = Gate::start(&Config::new(&issuer, &backend));
    let before = issuer.fetches();
    let unknown = Key::new("nobody");
    for n in 0..5 {
        let began = Instant::now();
        assert_eq!(gate.refusal(&bearer(&fresh(&issuer, &unknown, n))), (401, "token_key_unknown".into()));
        assert!(began.elapsed() < Duration::from_secs(1), "{n}: {:?}", began.elapsed());
    }
    assert_eq!(issuer.fetches() - before, 1, "only the first one asked");
    // Another one has to wait for the next fetch, which is not due: nothing is known of it.
    let began = Instant::now();
    let other = fresh(&issuer, &Key::new("nobody-2"), 0);
    assert_eq!(gate.refusal(&bearer(&other)), (503, "keys_unavailable".into()));
    let took = began.elapsed();
    assert!(Duration::from_millis(1900) < took && took < Duration::from_millis(3000), "{took:?}");
    assert_eq!(issuer.fetches() - before, 1, "one fetch in ten seconds");
    // Known keys are not held up by that.
    gate.open(&bearer(&issuer.good_token()));
}

#[test]
fn fifty_handshakes_with_a_kid_that_the_issuer_lacks_are_all_refused_for_that() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let gate = Gate::start(&Config::new(&issuer, &backend));
    issuer.change(|answers| answers.delay = Duration::from_millis(300));
    let before = issuer.fetches();
    let unknown = Key::new("nobody");
    let mut clients: Vec<_> =
        (0..50).map(|n| gate.send(&bearer(&fresh(&issuer, &unknown, n)).bytes())).collect();
    let mut told = std::collections::BTreeMap::new();
    for client in &mut clients {
        let answer = client.head();
        *told.entry((answer.status, client.json(&answer)["reason"].to_string())).or_insert(0) += 1;
    }
    assert_eq!(issuer.fetches() - before, 1);
    assert_eq!(told, [((401, "\"token_key_unknown\"".to_owned()), 50)].into());
}

#[test]
fn keys_are_fetched_again_at_the_refresh_interval() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let gate = Gate::start(&with(&backend, &issuer, "refresh = '200ms'\n"));
    let before = issuer.fetches();
    std::thread::sleep(Duration::from_millis(1100));
    let fetches = issuer.fetches() - before;
    assert!((3..=6).contains(&fetches), "{fetches}");
    // A new key is known before anybody asks for it.
    let new = Key::new("k2");
    issuer.publish(&[&new]);
    std::thread::sleep(Duration::from_millis(500));
    gate.open(&bearer(&fresh(&issuer, &new, 0)));
}

#[test]
fn a_key_that_left_the_set_takes_its_verdicts_along_but_no_live_session() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let gate = Gate::start(&with(&backend, &issuer, "refresh = '200ms'\n"));
    let token = issuer.good_token();
    let mut live = gate.open(&bearer(&token));
    gate.open(&bearer(&token));
    let new = Key::new("k2");
    issuer.publish(&[&new]);
    eventually("the old key to be forgotten", || {
        let (mut client, answer) = gate.upgrade(&bearer(&token));
        (answer.status != 101).then(|| assert_eq!(client.json(&answer)["reason"], "token_key_unknown"))
    });
    gate.open(&bearer(&fresh(&issuer, &new, 0)));
    Gate::assert_echo(&mut live);
}

#[test]
fn unusable_answers_keep_the_old_keys() {
    let (tempting, backend) = (Issuer::start(), Backend::start());
    let keys: Vec<_> = (0..65).map(|n| tempting.key.named(&format!("x{n}")).jwk()).collect();
    let bodies = [
        "{\"keys\":[]}".to_owned(),
        "{}".to_owned(),
        "{\"keys\":{}}".to_owned(),
        String::new(),
        "not JSON".to_owned(),
        json!({"keys": [{"kty": "oct", "kid": "k1", "k": "c2VjcmV0", "alg": "HS256"}]}).to_string(),
        json!({"keys": keys}).to_string(),
        json!({"keys": [Key::new("x").jwk()], "pad": "x".repeat(256 * 1024)}).to_string(),
    ];
    let statuses = [203, 204, 301, 302, 307, 404, 500];
    let issuers: Vec<_> = (0..bodies.len() + statuses.len()).map(|_| Issuer::start()).collect();
    let config = issuers
        .iter()
        .fold(Config::without_issuer(&backend), |config, issuer| config.issuer(issuer, "refresh = '50ms'\n"));
    let gate = Gate::start(&config);
    for (issuer, body) in issuers.iter().zip(&bodies) {
        issuer.publish_text(body);
    }
    for (issuer, status) in issuers.iter().skip(bodies.len()).zip(statuses) {
        issuer.change(|answers| {
            answers.status = status;
            answers.location = Some(tempting.jwks_uri());
        });
    }
    for (n, issuer) in issuers.iter().enumerate() {
        eventually(&format!("the failure of number {n}"), || {
            let of_it =
                |line: &Value| line["event"] == "jwks_failed" && line["issuer"] == issuer.url().as_str();
            gate.log().into_iter().find(of_it)
        });
        gate.open(&bearer(&fresh(issuer, &issuer.key, n)));
    }
    assert_eq!(tempting.fetches(), 0, "a redirect was followed");
    assert_eq!(page(&gate, "/readyz").0, 200);
}

#[test]
fn keys_that_are_too_old_are_not_believed_until_there_are_new_ones() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let gate = Gate::start(&with(&backend, &issuer, "refresh = '200ms'\nmax_stale = '1s'\n"));
    let token = issuer.good_token();
    let mut live = gate.open(&bearer(&token));
    issuer.change(|answers| answers.status = 500);
    std::thread::sleep(Duration::from_millis(500));
    gate.open(&bearer(&token));
    gate.open(&bearer(&fresh(&issuer, &issuer.key, 1)));
    eventually("the keys to be too old", || {
        let (mut client, answer) = gate.upgrade(&bearer(&token));
        (answer.status != 101).then(|| assert_eq!(client.json(&answer)["reason"], "keys_unavailable"))
    });
    // Known or new makes no difference.
    assert_eq!(gate.refusal(&bearer(&token)), (503, "keys_unavailable".into()));
    assert_eq!(gate.refusal(&bearer(&fresh(&issuer, &issuer.key, 2))), (503, "keys_unavailable".into()));
    Gate::assert_echo(&mut live);
    issuer.change(|answers| answers.status = 200);
    eventually("the gate to heal", || (gate.upgrade(&bearer(&token)).1.status == 101).then_some(()));
}

#[test]
fn an_issuer_that_is_slow_holds_up_nobody_whose_key_is_known() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let gate = Gate::start(&Config::new(&issuer, &backend));
    issuer.change(|answers| answers.delay = Duration::from_secs(4));
    let mut waiting = gate.send(&bearer(&fresh(&issuer, &Key::new("k2"), 0)).bytes());
    let began = Instant::now();
    gate.open(&bearer(&issuer.good_token()));
    assert!(began.elapsed() < Duration::from_secs(1));
    let answer = waiting.head();
    assert_eq!((answer.status, waiting.json(&answer)["reason"].as_str()), (503, Some("keys_unavailable")));
    assert!(began.elapsed() < Duration::from_millis(2800), "{:?}", began.elapsed());
}
