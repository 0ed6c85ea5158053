//! Tokens that are not what they say.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::super::harness::{Backend, Config, Gate, Handshake, Issuer, Key, now};
use super::{Scene, assert_refused};

#[test]
fn headers_that_change_what_is_signed_are_refused() {
    let scene = Scene::new();
    let claims = scene.issuer.claims(&json!({}));
    let key = &scene.issuer.key;
    let with = |name: &str, value: Value| {
        let mut header = key.header();
        header[name] = value;
        key.sign(&header, &claims)
    };
    assert_refused(
        &scene,
        &[
            ("crit", with("crit", json!(["exp"])), "token_malformed"),
            ("an empty crit", with("crit", json!([])), "token_malformed"),
            ("b64", with("b64", json!(false)), "token_malformed"),
            (
                "b64 with crit",
                {
                    let mut header = key.header();
                    header["b64"] = json!(false);
                    header["crit"] = json!(["b64"]);
                    key.sign(&header, &claims)
                },
                "token_malformed",
            ),
            ("b64 that is no boolean", with("b64", json!("true")), "token_malformed"),
            ("zip", with("zip", json!("DEF")), "token_malformed"),
            ("cty", with("cty", json!("JWT")), "token_malformed"),
            ("a logout token", with("typ", json!("logout+jwt")), "token_type"),
            ("a DPoP proof", with("typ", json!("dpop+jwt")), "token_type"),
            ("a typ that is no text", with("typ", json!(1)), "token_malformed"),
        ],
    );
}

#[test]
fn members_that_occur_twice_are_refused() {
    let scene = Scene::new();
    let key = &scene.issuer.key;
    let header = key.header().to_string();
    let claims = scene.issuer.claims(&json!({})).to_string();
    let doubled = |text: &str, extra: &str| format!("{{{extra},{}", &text[1..]);
    let claim = |extra: &str| key.sign_text(&header, &doubled(&claims, extra));
    assert_refused(
        &scene,
        &[
            ("sub", claim("\"sub\":\"admin\""), "token_malformed"),
            ("iss", claim("\"iss\":\"https://evil.example\""), "token_malformed"),
            ("exp", claim("\"exp\":9999999999"), "token_malformed"),
            ("aud", claim("\"aud\":\"chat\""), "token_malformed"),
            ("an escaped name", claim("\"s\\u0075b\":\"admin\""), "token_malformed"),
            ("a nested one", claim("\"x\":{\"roles\":[\"a\"],\"roles\":[\"admin\"]}"), "token_malformed"),
            ("alg", key.sign_text(&doubled(&header, "\"alg\":\"none\""), &claims), "token_malformed"),
            ("kid", key.sign_text(&doubled(&header, "\"kid\":\"x\""), &claims), "token_malformed"),
        ],
    );
}

#[test]
fn only_one_spelling_of_a_token_is_a_token() {
    let scene = Scene::new();
    let token = scene.issuer.good_token();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let (header, payload) = signed.split_once('.').unwrap();
    let raw = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let resigned = |bytes: &[u8]| format!("{signed}.{}", URL_SAFE_NO_PAD.encode(bytes));
    // The last character of 64 bytes in base64url holds four bits that mean nothing.
    let last = signature.chars().last().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let sibling = alphabet.chars().nth(alphabet.find(last).unwrap() + 1).unwrap();
    let tampered = payload.replacen(payload.chars().nth(20).unwrap(), "_", 1);
    let big = scene.issuer.token(&json!({"filler": "x".repeat(16 * 1024)}));
    let key = &scene.issuer.key;
    let text = key.header().to_string();
    assert_refused(
        &scene,
        &[
            ("padding", format!("{token}=="), "token_malformed"),
            (
                "bits that mean nothing",
                format!("{signed}.{}{sibling}", &signature[..signature.len() - 1]),
                "token_malformed",
            ),
            (
                "the standard alphabet",
                format!("{signed}.{}", STANDARD.encode([&raw[..63], &[0xff]].concat())),
                "token_malformed",
            ),
            ("no signature", signed.to_owned(), "token_malformed"),
            ("an empty signature", format!("{signed}."), "token_signature"),
            ("four parts", format!("{token}.x"), "token_malformed"),
            ("five parts", format!("{token}.x.y"), "token_malformed"),
            ("no header", format!(".{payload}.{signature}"), "token_malformed"),
            ("no payload", format!("{header}..{signature}"), "token_malformed"),
            ("zeros for a signature", resigned(&[0; 64]), "token_signature"),
            ("half a signature", resigned(&raw[..32]), "token_signature"),
            ("too long a signature", resigned(&[raw.as_slice(), &[0]].concat()), "token_signature"),
            ("r and s in turn", resigned(&[&raw[32..], &raw[..32]].concat()), "token_signature"),
            (
                "another payload",
                format!("{header}.{tampered}.{signature}"),
                if tampered == payload { "" } else { "token_malformed" },
            ),
            ("too long", big, "token_malformed"),
            ("a payload that is no object", key.sign_text(&text, "[1]"), "token_malformed"),
            (
                "a payload with a tail",
                key.sign_text(&text, &format!("{}x", scene.issuer.claims(&json!({})))),
                "token_malformed",
            ),
            ("a payload that is no JSON", key.sign_text(&text, "iss"), "token_malformed"),
            ("a payload without end", key.sign_text(&text, &"[".repeat(5000)), "token_malformed"),
        ],
    );
}

#[test]
fn another_issuers_key_does_not_vouch_for_this_one() {
    let scene = Scene::new();
    let attacker = Issuer::with(Key::new("k1"));
    let url = scene.issuer.url();
    let own = |iss: Value| scene.issuer.token(&json!({"iss": iss}));
    assert_refused(
        &scene,
        &[
            ("its own iss, its own key", attacker.good_token(), "token_issuer"),
            ("our iss, its own key", attacker.token(&json!({"iss": url})), "token_signature"),
            ("a slash more", own(json!(format!("{url}/"))), "token_issuer"),
            ("a slash less", own(json!(url[..url.len() - 1])), "token_issuer"),
            ("another case", own(json!(url.to_uppercase())), "token_issuer"),
            ("a path more", own(json!(format!("{url}/../evil"))), "token_issuer"),
            ("a list", own(json!([url, attacker.url()])), "token_malformed"),
            ("empty", own(json!("")), "token_issuer"),
            ("none", own(Value::Null), "token_claim_missing"),
        ],
    );
    assert_eq!(attacker.fetches(), 0, "the gate went where the token sent it");
}

#[test]
fn a_kid_that_two_issuers_use_is_two_keys() {
    let (one, two) = (Issuer::with(Key::new("same")), Issuer::with(Key::new("same")));
    let backend = Backend::start();
    let config = Config::without_issuer(&backend).issuer(&one, "").issuer(&two, "audiences = ['other']");
    let gate = Gate::start(&config);
    let refusal = |token: &str| gate.refusal(&Handshake::to("/").bearer(token));
    // Once right, so that a cache by kid or by token alone would have something to confuse.
    Gate::assert_echo(&mut gate.open(&Handshake::to("/").bearer(&one.good_token())));
    Gate::assert_echo(&mut gate.open(&Handshake::to("/").bearer(&two.token(&json!({"aud": "other"})))));
    let heard = backend.connections();
    assert_eq!(
        refusal(&one.token(&json!({"iss": two.url(), "aud": "other"}))),
        (401, "token_signature".into())
    );
    assert_eq!(refusal(&two.token(&json!({"iss": one.url()}))), (401, "token_signature".into()));
    // Nor do the audiences of one issuer count for the other.
    assert_eq!(refusal(&two.good_token()), (401, "token_audience".into()));
    assert_eq!(refusal(&one.token(&json!({"aud": "other"}))), (401, "token_audience".into()));
    assert_eq!(backend.connections(), heard);
}

#[test]
fn a_token_for_another_purpose_is_refused() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let gate = Gate::start(&Config::without_issuer(&backend).issuer(&issuer, "clients = ['web']"));
    let scene = Scene { gate, backend, issuer };
    let t = |changes: Value| scene.issuer.token(&changes);
    assert_refused(
        &scene,
        &[
            ("a refresh token", t(json!({"typ": "Refresh"})), "token_type"),
            ("an ID token", t(json!({"typ": "ID"})), "token_type"),
            ("an offline token", t(json!({"typ": "Offline"})), "token_type"),
            ("a logout token", t(json!({"typ": "Logout"})), "token_type"),
            ("no type", t(json!({"typ": null})), "token_type"),
            ("bound to a key", t(json!({"cnf": {"jkt": "x"}})), "token_type"),
            ("another audience", t(json!({"aud": "account"})), "token_audience"),
            ("audiences without ours", t(json!({"aud": ["account", "chatx", "Chat"]})), "token_audience"),
            ("no audience", t(json!({"aud": null})), "token_audience"),
            ("an audience that is a number", t(json!({"aud": 1})), "token_malformed"),
            ("another client", t(json!({"azp": "cli"})), "token_client"),
            ("no client", t(json!({"azp": null})), "token_client"),
            ("expired", t(json!({"exp": now() - 11})), "token_expired"),
            ("expired long ago", t(json!({"exp": 1})), "token_expired"),
            ("without an end", t(json!({"exp": null})), "token_claim_missing"),
            ("beyond the end of time", t(json!({"exp": 1e300})), "token_malformed"),
            ("an end that is a text", t(json!({"exp": "9999999999"})), "token_malformed"),
            ("a negative end", t(json!({"exp": -1})), "token_malformed"),
            ("not yet", t(json!({"nbf": now() + 60})), "token_not_yet_valid"),
            ("issued in the future", t(json!({"iat": now() + 60})), "token_not_yet_valid"),
        ],
    );
}

#[test]
fn a_verdict_is_made_anew_for_a_token_that_is_known() {
    let scene = Scene::with(|config| {
        config
            .route("path = '/*'")
            .route("path = '/admin/'\nroles = ['admin']")
            .route("path = '/page/'\norigin = { allow = ['https://app.example.org'], allow_missing = false }")
    });
    let end = now() + 1;
    let token = scene.issuer.token(&json!({"exp": end - 10}));
    drop(scene.gate.open(&Handshake::to("/").bearer(&token)));
    for _ in 0..2 {
        assert_eq!(scene.gate.refusal(&Handshake::to("/admin/").bearer(&token)), (403, "rule_denied".into()));
        assert_eq!(
            scene.gate.refusal(&Handshake::to("/page/").bearer(&token)),
            (403, "origin_denied".into())
        );
    }
    while now() < end {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(scene.gate.refusal(&Handshake::to("/").bearer(&token)), (401, "token_expired".into()));
}
