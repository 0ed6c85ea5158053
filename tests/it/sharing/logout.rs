//! OpenID Connect Back-Channel Logout 1.0: the issuer says that a user has logged out.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::super::harness::{Answer, Backend, Client, Config, Gate, Handshake, Issuer, Key, eventually, now};
use super::super::operating::desk::{Desk, answer, request};
use super::replicas::{await_entries, await_loss, replica};
use super::server::Redis;

const PATH: &str = "/oidc/backchannel-logout";
const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";
const FORM: &str = "Content-Type: application/x-www-form-urlencoded";
const HOST: &str = "Host: chat.example.com";

fn logging_out(config: Config) -> Config {
    config.set("blacklist.backchannel_logout", &format!("{{ path = '{PATH}', clients = ['web', 'app'] }}"))
}

fn desk() -> Desk {
    Desk::with(logging_out)
}

/// A logout token as Keycloak makes it, but for these changes.
fn logout_token(issuer: &Issuer, key: &Key, typ: Option<&str>, changes: &Value) -> String {
    let mut header = key.header();
    header.as_object_mut().unwrap().remove("typ");
    if let Some(typ) = typ {
        header["typ"] = typ.into();
    }
    let mut claims = json!({"iss": issuer.url(), "aud": "web", "sub": "alice", "sid": "alice-sid", "typ": "Logout",
        "iat": now(), "exp": now() + 120, "events": {EVENT: {}},
        "jti": format!("{:x}", rand())});
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    let claims: serde_json::Map<_, _> =
        claims.as_object().unwrap().clone().into_iter().filter(|(_, value)| !value.is_null()).collect();
    key.sign(&header, &claims.into())
}

fn rand() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::SeqCst)
}

fn token(desk: &Desk, changes: &Value) -> String {
    logout_token(&desk.issuer, &desk.issuer.key, Some("logout+jwt"), changes)
}

struct Said {
    status: u16,
    head: Answer,
    body: String,
}

fn said(client: &mut Client) -> Said {
    let said = answer(client);
    Said { status: said.status, head: said.head, body: said.body }
}

/// Posts a form; what is answered.
fn post(desk: &Desk, body: &str) -> Said {
    let mut client =
        desk.gate.send(&request(&format!("POST {PATH}"), &[HOST, FORM, "Connection: close"], body));
    said(&mut client)
}

fn log_out(desk: &Desk, changes: &Value) -> Said {
    post(desk, &format!("logout_token={}", token(desk, changes)))
}

fn assert_refused(desk: &Desk, said: &Said, why: &str) {
    assert_eq!(said.status, 400, "{why}: {}", said.body);
    let problem: Value = serde_json::from_str(&said.body).unwrap();
    assert_eq!(problem["error"], "invalid_request");
    let told = problem["error_description"].as_str().unwrap();
    assert!(told.contains(why), "{why}: {told}");
    assert_eq!(said.head.header("cache-control"), Some("no-store"));
    assert_eq!(said.head.header("content-type"), Some("application/json"));
    let line = desk.lines("logout_refused").pop().unwrap();
    assert!(line["message"].as_str().unwrap().contains(why), "{line}");
}

#[test]
fn a_sid_closes_that_session_and_no_other() {
    let desk = desk();
    let (token, other) =
        (desk.token_of("alice"), desk.token(&json!({"sub": "alice", "sid": "phone", "jti": "2"})));
    let (laptop, mut phone) = (desk.open(&token), desk.open(&other));
    let heard = desk.backend.connections();
    let said = log_out(&desk, &json!({}));
    assert_eq!((said.status, said.body.as_str()), (200, ""));
    assert_eq!(desk.backend.connections(), heard, "the backend heard of it");
    assert_eq!(said.head.header("cache-control"), Some("no-store"));
    laptop.assert_closed(&desk, 4001, "token_revoked");
    phone.assert_echo();
    desk.assert_unwelcome(&token, "token_revoked");
    desk.assert_welcome(&other);
    let line = desk.lines("revocation").remove(0);
    assert_eq!(
        [&line["by"], &line["sid"], &line["closed"], &line["address"]],
        [&json!("backchannel_logout"), &json!("alice-sid"), &json!(1), &json!("127.0.0.1")]
    );
    desk.assert_metric("revocation_to_close_seconds_count", 1);
}

#[test]
fn a_sub_alone_closes_what_was_issued_before_and_a_new_login_works() {
    let desk = desk();
    let old = desk.token(&json!({"sub": "alice", "iat": now() - 5, "sid": "old", "jti": "1"}));
    let (live, mut bob) = (desk.open(&old), desk.open(&desk.token_of("bob")));
    assert_eq!(log_out(&desk, &json!({"sid": null})).status, 200);
    live.assert_closed(&desk, 4001, "token_revoked");
    bob.assert_echo();
    desk.assert_unwelcome(&old, "token_revoked");
    desk.assert_welcome(&desk.token(&json!({"sub": "alice", "iat": now(), "sid": "new", "jti": "2"})));
}

#[test]
fn it_is_200_also_if_nobody_was_there_and_of_every_type_that_is_allowed() {
    let desk = desk();
    for typ in [None, Some("JWT"), Some("logout+jwt"), Some("application/logout+jwt"), Some("LOGOUT+JWT")] {
        let token = logout_token(&desk.issuer, &desk.issuer.key, typ, &json!({"sid": format!("{typ:?}")}));
        assert_eq!(post(&desk, &format!("logout_token={token}")).status, 200, "{typ:?}");
    }
    for changes in [
        json!({"aud": ["account", "app"]}),
        json!({"typ": null}),
        json!({"sub": null}),
        json!({"iat": now() - 290, "exp": now() + 1}),
    ] {
        assert_eq!(log_out(&desk, &changes).status, 200, "{changes}");
    }
    // Other fields do no harm, nor do parameters of the content type.
    let body = format!("state=x&logout_token={}&client_id=web", token(&desk, &json!({})));
    let form = "Content-Type: application/x-www-form-urlencoded; charset=UTF-8";
    let mut client =
        desk.gate.send(&request(&format!("POST {PATH}?x=y"), &[HOST, form, "Connection: close"], &body));
    assert_eq!(said(&mut client).status, 200);
}

#[test]
fn forged_replayed_stale_and_foreign_ones_close_nothing() {
    let desk = desk();
    let mut live = desk.open(&desk.token_of("alice"));
    let stranger = Key::new("k1");
    let forged = logout_token(&desk.issuer, &stranger, Some("logout+jwt"), &json!({}));
    assert_refused(&desk, &post(&desk, &format!("logout_token={forged}")), "token_signature");
    let unsigned = format!("{}.", forged.rsplit_once('.').unwrap().0);
    assert_refused(&desk, &post(&desk, &format!("logout_token={unsigned}")), "token_");
    for (changes, why) in [
        (json!({"aud": "chat"}), "aud"),
        (json!({"aud": null}), "aud"),
        (json!({"iss": "https://elsewhere.example"}), "token_issuer"),
        (json!({"iat": now() - 400}), "too long ago"),
        (json!({"iat": now() + 100}), "future"),
        (json!({"exp": now() - 20}), "expired"),
        (json!({"exp": null}), "exp"),
        (json!({"iat": null}), "iat"),
        (json!({"events": null}), "events"),
        (json!({"events": {"other": {}}}), "events"),
        (json!({"nonce": "n"}), "nonce"),
        (json!({"jti": null}), "jti"),
        (json!({"sid": null, "sub": null}), "neither"),
        (json!({"typ": "Bearer"}), "typ"),
    ] {
        assert_refused(&desk, &log_out(&desk, &changes), why);
    }
    for typ in ["at+jwt", "dpop+jwt"] {
        let token = logout_token(&desk.issuer, &desk.issuer.key, Some(typ), &json!({}));
        assert_refused(&desk, &post(&desk, &format!("logout_token={token}")), "token_type");
    }
    // An access token, of the right audience even, is no logout token, and the other way round.
    let access = desk.token(&json!({"aud": ["chat", "web"], "typ": null}));
    assert_refused(&desk, &post(&desk, &format!("logout_token={access}")), "events");
    let logout = token(&desk, &json!({"aud": ["chat", "web"], "typ": "Bearer"}));
    assert_eq!(desk.plain(&logout), (401, "token_type".into()));
    live.assert_echo();
    // Once is enough.
    let replayed = token(&desk, &json!({"sid": "another"}));
    assert_eq!(post(&desk, &format!("logout_token={replayed}")).status, 200);
    assert_refused(&desk, &post(&desk, &format!("logout_token={replayed}")), "seen before");
    live.assert_echo();
}

#[test]
fn a_form_that_is_none_is_refused() {
    let desk = desk();
    let good = token(&desk, &json!({}));
    assert_refused(&desk, &post(&desk, "token=x"), "missing");
    assert_refused(&desk, &post(&desk, ""), "missing");
    assert_refused(&desk, &post(&desk, &format!("logout_token={good}&logout_token={good}")), "twice");
    assert_refused(
        &desk,
        &post(&desk, &format!("logout_token={good}&x={}", "y".repeat(16 * 1024))),
        "16384 bytes",
    );
    for kind in ["Content-Type: application/json", "X-None: x"] {
        let body = format!("logout_token={good}");
        let mut client =
            desk.gate.send(&request(&format!("POST {PATH}"), &[HOST, kind, "Connection: close"], &body));
        assert_refused(&desk, &said(&mut client), "Content-Type");
    }
    // Longer than it says, in pieces.
    let mut client = desk.gate.send(format!("POST {PATH} HTTP/1.1\r\n{HOST}\r\n{FORM}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n").as_bytes());
    for _ in 0..20 {
        client.send(format!("400\r\n{}\r\n", "a".repeat(1024)).as_bytes());
    }
    client.send(b"0\r\n\r\n");
    assert_refused(&desk, &said(&mut client), "16384 bytes");
    assert_eq!(post(&desk, &format!("logout_token={good}")).status, 200, "none of that was a use of it");
}

#[test]
fn the_path_is_the_gates_own_whatever_the_method() {
    let desk = desk();
    for method in ["GET", "PUT", "DELETE", "OPTIONS", "HEAD"] {
        let mut client =
            desk.gate.send(&request(&format!("{method} {PATH}"), &[HOST, "Connection: close"], ""));
        let head = client.head();
        assert_eq!((head.status, head.header("allow")), (405, Some("POST")), "{method}");
    }
    let upgrade = Handshake::to(PATH).bearer(&desk.token_of("alice"));
    assert_eq!(desk.gate.upgrade(&upgrade).1.status, 405);
    assert_eq!(desk.backend.connections(), 0);
    // Beside it is the backend's.
    for path in [format!("{PATH}/"), "/oidc".to_owned()] {
        let bearer = format!("Authorization: Bearer {}", desk.token_of("alice"));
        let (answer, _) = desk.gate.ask(&request(
            &format!("POST {path}"),
            &[HOST, FORM, &bearer, "Connection: close"],
            "a=b",
        ));
        assert_eq!(answer.status, 200, "{path}");
    }
    // Without the setting all of it is.
    let plain = Desk::new();
    let bearer = format!("Authorization: Bearer {}", plain.token_of("alice"));
    let (answer, _) =
        plain.gate.ask(&request(&format!("POST {PATH}"), &[HOST, FORM, &bearer, "Connection: close"], "a=b"));
    assert_eq!(answer.status, 200);
}

#[test]
fn an_address_that_was_refused_too_often_may_still_log_users_out() {
    let desk = Desk::with(|config| logging_out(config).set("limits.attempts_per_address", "'2/60s'"));
    let live = desk.open(&desk.token_of("alice"));
    for _ in 0..3 {
        desk.plain("nonsense");
    }
    assert_eq!(desk.plain(&desk.token_of("alice")).0, 429);
    assert_eq!(log_out(&desk, &json!({})).status, 200);
    live.assert_closed(&desk, 4001, "token_revoked");
    // And a wrong logout is no attempt.
    let fresh = Ipv4Addr::new(127, 0, 0, 9);
    for _ in 0..3 {
        let mut client = desk.gate.client_from(fresh);
        client.send(&request(&format!("POST {PATH}"), &[HOST, FORM, "Connection: close"], "x=y"));
        assert_eq!(said(&mut client).status, 400);
    }
    let mut client = desk.gate.client_from(fresh);
    let bearer = format!("Authorization: Bearer {}", desk.token_of("bob"));
    client.send(&request("GET /api", &[HOST, &bearer, "Connection: close"], ""));
    assert_eq!(client.head().status, 200);
}

#[test]
fn without_the_issuers_keys_it_says_that_it_cannot_tell() {
    let issuer = Issuer::start();
    issuer.change(|answers| answers.status = 500);
    let backend = Backend::start();
    let gate = Gate::start_without_keys(&logging_out(Config::new(&issuer, &backend)));
    let token = logout_token(&issuer, &issuer.key, Some("logout+jwt"), &json!({}));
    let (answer, body) = gate.ask(&request(
        &format!("POST {PATH}"),
        &[HOST, FORM, "Connection: close"],
        &format!("logout_token={token}"),
    ));
    assert_eq!(answer.status, 503, "{}", String::from_utf8_lossy(&body));
    assert!(String::from_utf8_lossy(&body).contains("temporarily_unavailable"));
}

#[test]
fn one_that_found_no_room_may_be_sent_again() {
    let desk = Desk::with(|config| logging_out(config).set("blacklist.max_entries", "1"));
    let live = desk.open(&desk.token_of("alice"));
    let id = desk.revoked(&json!({"sub": "bob"}))["id"].clone();
    let body = format!("logout_token={}", token(&desk, &json!({})));
    let full = post(&desk, &body);
    assert_eq!(full.status, 507, "{}", full.body);
    assert_eq!(desk.withdraw(&id).status, 204);
    assert_eq!(post(&desk, &body).status, 200);
    live.assert_closed(&desk, 4001, "token_revoked");
}

#[test]
fn what_one_replica_has_heard_closes_nothing_at_another_and_without_redis_it_does() {
    let mut redis = Redis::start();
    let issuer = Issuer::start();
    let a = replica(&issuer, &redis.url(), "", logging_out);
    let b = replica(&issuer, &redis.url(), "", logging_out);
    let body = format!("logout_token={}", token(&a, &json!({"sid": "nobody"})));
    assert_eq!(post(&a, &body).status, 200);
    for desk in [&a, &b] {
        assert_refused(desk, &post(desk, &body), "seen before");
    }
    redis.kill();
    await_loss(&b);
    let live = b.open(&b.token_of("alice"));
    assert_eq!(log_out(&b, &json!({})).status, 200, "better heard twice than lost");
    live.assert_closed(&b, 4001, "token_revoked");
}

#[test]
fn it_is_carried_out_though_the_issuer_does_not_wait_for_it() {
    let redis = Redis::start();
    let desk = replica(&Issuer::start(), &redis.url(), "", logging_out);
    let live = desk.open(&desk.token_of("alice"));
    redis.pause();
    let body = format!("logout_token={}", token(&desk, &json!({})));
    let client = desk.gate.send(&request(&format!("POST {PATH}"), &[HOST, FORM], &body));
    std::thread::sleep(std::time::Duration::from_millis(30));
    drop(client);
    live.assert_closed(&desk, 4001, "token_revoked");
    redis.resume();
}

#[test]
fn it_reaches_the_other_replicas() {
    let redis = Redis::start();
    let issuer = Issuer::start();
    let a = replica(&issuer, &redis.url(), "", logging_out);
    let b = replica(&issuer, &redis.url(), "", logging_out);
    let live = b.open(&b.token_of("alice"));
    assert_eq!(log_out(&a, &json!({})).status, 200);
    live.assert_closed(&b, 4001, "token_revoked");
    await_entries(&b, 1);
    eventually("the line", || (!b.lines("revocation").is_empty()).then_some(()));
}
