//! Tokens that choose their own algorithm or key.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::super::harness::{Backend, Config, Gate, Handshake, Issuer, Key};
use super::{Scene, assert_refused};

fn hmac_token(secret: &[u8], header: &Value, claims: &Value) -> String {
    let signed = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes())))
}

fn pem(der: &[u8]) -> String {
    format!("-----BEGIN RSA PUBLIC KEY-----\n{}\n-----END RSA PUBLIC KEY-----\n", STANDARD.encode(der))
}

#[test]
fn an_algorithm_of_the_attackers_choice_verifies_nothing() {
    let scene = Scene::new();
    let rsa = Key::rsa("r1");
    scene.issuer.publish(&[&scene.issuer.key, &rsa]);
    let claims = scene.issuer.claims(&json!({"sub": "admin"}));
    let unsigned = |alg: &str| {
        let header = json!({"alg": alg, "typ": "JWT", "kid": "k1"}).to_string();
        [header, claims.to_string()].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".") + "."
    };
    let header = |alg: &str, kid: &str| json!({"alg": alg, "typ": "JWT", "kid": kid});
    let ec = &scene.issuer.key;
    let with_public = |secret: &[u8], kid: &str| hmac_token(secret, &header("HS256", kid), &claims);
    // The kid of the RSA key has to be known: a good token of it has the set fetched again.
    drop(
        scene
            .gate
            .open(&Handshake::to("/").bearer(&rsa.sign(&rsa.header(), &scene.issuer.claims(&json!({}))))),
    );
    let heard = scene.backend.connections();
    for (what, token, label) in [
        ("none", unsigned("none"), "token_algorithm"),
        ("nOnE", unsigned("nOnE"), "token_algorithm"),
        ("HS256", unsigned("HS256"), "token_algorithm"),
        ("an empty signature", unsigned("ES256"), "token_signature"),
        ("HS256 with the RSA key's DER", with_public(&rsa.public_der(), "r1"), "token_algorithm"),
        (
            "HS256 with the RSA key's PEM",
            with_public(pem(&rsa.public_der()).as_bytes(), "r1"),
            "token_algorithm",
        ),
        ("HS256 with the JWK", with_public(rsa.jwk().to_string().as_bytes(), "r1"), "token_algorithm"),
        ("HS256 with the EC point", with_public(&ec.public_der(), "k1"), "token_algorithm"),
        ("HS256 with nothing", with_public(b"", "k1"), "token_algorithm"),
        ("RS256 on an EC key", ec.sign(&header("RS256", "k1"), &claims), "token_algorithm"),
        ("ES256 on an RSA key", rsa.sign(&header("ES256", "r1"), &claims), "token_algorithm"),
        ("an algorithm that is not allowed", rsa.sign(&header("PS256", "r1"), &claims), "token_algorithm"),
        ("no algorithm", ec.sign(&json!({"typ": "JWT", "kid": "k1"}), &claims), "token_malformed"),
        (
            "an algorithm that is no text",
            ec.sign(&json!({"alg": ["ES256"], "kid": "k1"}), &claims),
            "token_malformed",
        ),
        ("another key of the set", rsa.named("k1").sign(&header("ES256", "k1"), &claims), "token_signature"),
    ] {
        assert_eq!(scene.gate.refusal(&Handshake::to("/").bearer(&token)), (401, label.into()), "{what}");
    }
    assert_eq!(scene.backend.connections(), heard, "the backend heard of one");
}

#[test]
fn an_algorithm_that_the_issuer_is_not_configured_for_is_refused_whatever_keys_it_publishes() {
    let (issuer, backend) = (Issuer::with(Key::rsa("r1")), Backend::start());
    // A JWK without `alg` fits all algorithms of its kind.
    let mut jwk = issuer.key.jwk();
    jwk.as_object_mut().unwrap().remove("alg");
    issuer.publish_text(&json!({"keys": [jwk]}).to_string());
    let gate =
        Gate::start(&Config::without_issuer(&backend).issuer(&issuer, "algorithms = ['ES256', 'PS256']"));
    let refused = gate.refusal(&Handshake::to("/").bearer(&issuer.good_token()));
    assert_eq!(refused, (401, "token_algorithm".into()));
    backend.assert_never_heard();
}

#[test]
fn a_key_that_the_token_brings_along_is_not_looked_at() {
    let scene = Scene::new();
    let attacker = Issuer::with(Key::new("k1"));
    let key = &attacker.key;
    let claims = scene.issuer.claims(&json!({"sub": "admin"}));
    let header = |extra: Value| {
        let mut header = key.header();
        for (name, value) in extra.as_object().unwrap() {
            header[name.as_str()] = value.clone();
        }
        header
    };
    let uri = attacker.jwks_uri();
    let signed = |extra: Value| key.sign(&header(extra), &claims);
    assert_refused(
        &scene,
        &[
            ("a foreign key under a known kid", signed(json!({})), "token_signature"),
            ("jwk", signed(json!({"jwk": key.jwk()})), "token_signature"),
            ("jku", signed(json!({"jku": uri})), "token_signature"),
            ("x5u", signed(json!({"x5u": uri})), "token_signature"),
            ("x5c", signed(json!({"x5c": ["MIIB"]})), "token_signature"),
            ("jku and an unknown kid", signed(json!({"jku": uri, "kid": "k2"})), "token_key_unknown"),
            ("x5u and an unknown kid", signed(json!({"x5u": uri, "kid": "k2"})), "token_key_unknown"),
        ],
    );
    assert_eq!(attacker.fetches(), 0, "the gate went where the token sent it");
}

#[test]
fn a_kid_is_a_name_and_nothing_else() {
    let scene = Scene::new();
    let claims = scene.issuer.claims(&json!({}));
    let with =
        |kid: Value| scene.issuer.key.sign(&json!({"alg": "ES256", "typ": "JWT", "kid": kid}), &claims);
    let none = scene.issuer.key.sign(&json!({"alg": "ES256", "typ": "JWT"}), &claims);
    let mut cases = vec![
        ("no kid", none, "token_key_unknown"),
        ("a number", with(json!(1)), "token_malformed"),
        ("null", with(Value::Null), "token_malformed"),
        ("a list", with(json!(["k1"])), "token_malformed"),
        ("too long a kid", with(json!("k".repeat(257))), "token_malformed"),
        // These cost one fetch; all later ones are told at once or wait for the next that is allowed.
        ("the longest kid", with(json!("k".repeat(256))), "token_key_unknown"),
    ];
    assert_refused(&scene, &cases);
    cases.clear();
    for kid in [
        "../../../../dev/null",
        "k1' OR '1'='1",
        "k1\u{0}",
        "K1",
        " k1",
        "",
        "\r\nX-Evil: 1",
        "../../etc/passwd",
    ] {
        let (status, label) = scene.gate.refusal(&Handshake::to("/").bearer(&with(json!(kid))));
        // Unknown after a fetch, or not to be told before the next one is allowed.
        let expected = [(401, "token_key_unknown"), (503, "keys_unavailable")];
        assert!(expected.contains(&(status, label.as_str())), "{kid:?}: {status} {label}");
        if label == "keys_unavailable" {
            break;
        }
    }
}
