//! `sidegate explain` on every denial there is: it says what the gate does, and names what decides it.

use serde_json::{Value, json};

use super::super::harness::{Backend, Config, Gate, Handshake, Issuer, Key, now};
use super::explain::{Explained, explain, file, place};
use super::outcome;

/// Everything that a table of denials needs.
fn config(issuer: &Issuer, other: &Issuer, backend: &Backend) -> Config {
    Config::new(issuer, backend)
        .issuer(other, "audiences = ['staff']\nclients = ['cli']\n")
        .set("origin.allow", "['https://app.example.com']")
        .set("listen.allow_addresses", "['127.0.0.1']")
        .route("path = '/ws/{org}/'")
        .route("path = '/roles/'\nroles = ['admin']")
        .route("path = '/claims/{org}/'\nclaims = { tenant = '{org}' }")
        .route("path = '/allow/'\nallow = 'claims.level > 2'")
        .route("path = '/open/'\nauth = 'none'")
        .route("path = '/optional/'\nauth = 'optional'")
        .route("path = '/shadow/'\nmode = 'shadow'\nroles = ['admin']")
        .route("path = '/office/'\nallow_addresses = ['192.0.2.0/24']")
        .route("path = '/own/'\norigin = { allow = ['https://own.example.com'], allow_missing = false }")
}

#[test]
fn it_says_of_every_request_what_the_gate_does() {
    let (issuer, other, backend) = (Issuer::start(), Issuer::start(), Backend::start());
    let config = config(&issuer, &other, &backend);
    let gate = Gate::start(&config);
    let (_folder, path) = file(&config);
    let token = |changes: &Value| Some(issuer.token(changes));
    let (stranger, unknown) = (Key::new("k1"), Key::new("k9"));
    let sign = |key: &Key, header: &Value| Some(key.sign(header, &issuer.claims(&json!({}))));
    let none = json!({"alg": "none", "typ": "JWT", "kid": "k1"});
    let good = || token(&json!({}));
    let app = Some("https://app.example.com");
    let table: Vec<(Option<String>, &str, Option<&str>, &str)> = vec![
        (good(), "/ws/acme/", None, "allowed"),
        (good(), "/ws/acme/", app, "allowed"),
        (good(), "/ws/acme/?a=b", app, "allowed"),
        (good(), "/nowhere/", None, "route_unknown"),
        (good(), "/ws/", None, "route_unknown"),
        (good(), "/ws/acme/", Some("https://evil.example.com"), "origin_denied"),
        (good(), "/ws/acme/", Some("null"), "origin_denied"),
        (good(), "/ws/acme/", Some("https://app.example.com."), "origin_denied"),
        (None, "/ws/acme/", app, "token_missing"),
        (Some("nonsense".into()), "/ws/acme/", None, "token_malformed"),
        (Some("a.b.c".into()), "/ws/acme/", None, "token_malformed"),
        (token(&json!({"exp": now() - 60})), "/ws/acme/", None, "token_expired"),
        (token(&json!({"exp": null})), "/ws/acme/", None, "token_claim_missing"),
        (token(&json!({"iat": now() + 60})), "/ws/acme/", None, "token_not_yet_valid"),
        (token(&json!({"nbf": now() + 60})), "/ws/acme/", None, "token_not_yet_valid"),
        (token(&json!({"aud": "account"})), "/ws/acme/", None, "token_audience"),
        (token(&json!({"typ": "Refresh"})), "/ws/acme/", None, "token_type"),
        (token(&json!({"iss": "https://nobody.example.com"})), "/ws/acme/", None, "token_issuer"),
        (token(&json!({"iss": null})), "/ws/acme/", None, "token_claim_missing"),
        (token(&json!({"iss": ["x"]})), "/ws/acme/", None, "token_malformed"),
        (Some(other.good_token()), "/ws/acme/", None, "token_audience"),
        (Some(other.token(&json!({"aud": "staff"}))), "/ws/acme/", None, "token_client"),
        (Some(other.token(&json!({"aud": "staff", "azp": "cli"}))), "/ws/acme/", None, "allowed"),
        (sign(&stranger, &stranger.header()), "/ws/acme/", None, "token_signature"),
        (sign(&unknown, &unknown.header()), "/ws/acme/", None, "token_key_unknown"),
        (sign(&issuer.key, &none), "/ws/acme/", None, "token_algorithm"),
        (good(), "/roles/", None, "rule_denied"),
        (token(&json!({"realm_access": {"roles": ["admin"]}})), "/roles/", None, "allowed"),
        (token(&json!({"tenant": "acme"})), "/claims/globex/", None, "rule_denied"),
        (token(&json!({"tenant": "acme"})), "/claims/acme/", None, "allowed"),
        (good(), "/allow/", None, "rule_denied"),
        (token(&json!({"level": 3})), "/allow/", None, "allowed"),
        (None, "/open/", app, "allowed"),
        (None, "/open/", Some("https://evil.example.com"), "origin_denied"),
        (None, "/optional/", None, "allowed"),
        (token(&json!({"exp": now() - 60})), "/optional/", None, "token_expired"),
        (good(), "/shadow/", None, "allowed"),
        (None, "/shadow/", Some("https://evil.example.com"), "allowed"),
        (good(), "/office/", None, "address_denied"),
        (good(), "/own/", None, "origin_denied"),
        (good(), "/own/", Some("https://own.example.com"), "allowed"),
    ];
    for (token, target, origin, expected) in &table {
        let mut arguments = vec!["--path", target];
        let mut handshake = Handshake::to(target);
        if let Some(origin) = origin {
            arguments.extend(["--origin", origin]);
            handshake = handshake.origin(origin);
        }
        if let Some(token) = token {
            handshake = handshake.bearer(token);
        }
        let answered = outcome(&gate, &handshake);
        let answered = answered.split_once(' ').map_or("allowed", |(_, reason)| reason);
        assert_eq!(answered, *expected, "the gate on {target} {origin:?}");
        let told = explain(&path, token.as_deref(), &arguments);
        assert_eq!(told.verdict(), *expected, "{target} {origin:?}\n{}", told.out);
        assert_eq!(
            (told.code, told.err.as_str()),
            (i32::from(*expected != "allowed"), ""),
            "{target} {origin:?}"
        );
        let failed = told.steps().into_iter().find(|step| step.starts_with("FAILED"));
        assert_eq!(failed.is_some(), *expected != "allowed" || *target == "/shadow/", "{}", told.out);
        if let Some(failed) = failed.filter(|_| *target != "/shadow/") {
            assert!(checks(expected).contains(&&failed[7..]), "{expected}: {}", told.out);
        }
    }
}

/// The checks that deny for this reason.
fn checks(reason: &str) -> &'static [&'static str] {
    match reason {
        "route_unknown" => &["route"],
        "address_denied" => &["address"],
        "origin_denied" => &["origin"],
        "token_missing" => &["token"],
        "token_malformed" => &["form", "issuer"],
        "token_issuer" => &["issuer"],
        "token_algorithm" | "token_key_unknown" | "token_signature" => &["signature"],
        "token_expired" | "token_not_yet_valid" => &["time"],
        "token_claim_missing" => &["issuer", "time"],
        "token_audience" => &["audience"],
        "token_type" => &["type"],
        "token_client" => &["client"],
        "rule_denied" => &["rule"],
        _ => &[],
    }
}

#[test]
fn a_claim_of_the_wrong_type_is_told_as_a_check_that_failed() {
    let (issuer, other, backend) = (Issuer::start(), Issuer::start(), Backend::start());
    let (_folder, path) = file(&config(&issuer, &other, &backend));
    for (claims, reason) in [
        (json!({"aud": 7}), "token_malformed"),
        (json!({"exp": "soon"}), "token_malformed"),
        (json!({"sub": 7}), "token_malformed"),
    ] {
        let told = explain(&path, Some(&issuer.token(&claims)), &["--path", "/ws/acme/"]);
        assert_eq!(told.verdict(), reason);
        assert!(failed(&told).starts_with("FAILED  claims: "), "{}", told.out);
    }
}

/// The line of the check that failed.
fn failed(told: &Explained) -> &str {
    told.out.lines().find(|line| line.starts_with("FAILED")).unwrap_or_else(|| panic!("{told:?}"))
}

#[test]
fn a_denial_names_the_key_and_the_line_that_decides_it() {
    let (issuer, other, backend) = (Issuer::start(), Issuer::start(), Backend::start());
    let (_folder, path) = file(&config(&issuer, &other, &backend));
    let good = issuer.good_token();
    let at = |start: &str| place(&path, start, 0);
    for (changes, target, origin, parts) in [
        (
            json!({}),
            "/ws/acme/",
            "https://evil.example.com",
            vec!["origin.allow = [\"https://app.example.com\"]".to_owned(), at("allow = ['https")],
        ),
        (
            json!({"exp": now() - 60}),
            "/ws/acme/",
            "",
            vec!["leeway = \"10s\" (default)".into(), "now 20".into()],
        ),
        (
            json!({"aud": "x"}),
            "/ws/acme/",
            "",
            vec!["aud \"x\"".into(), "audiences = [\"chat\"]".into(), at("audiences")],
        ),
        (
            json!({"typ": "ID"}),
            "/ws/acme/",
            "",
            vec!["typ \"ID\"".into(), "token_types = [\"Bearer\"] (default)".into()],
        ),
        (json!({}), "/roles/", "", vec!["roles = [\"admin\"]".into(), at("roles")]),
        (json!({}), "/claims/acme/", "", vec!["claims = { \"tenant\" = \"{org}\" }".into(), at("claims")]),
        (json!({}), "/allow/", "", vec!["allow = \"claims.level > 2\"".into(), at("allow = 'claims")]),
        (
            json!({}),
            "/own/",
            "https://app.example.com",
            vec!["allow = [\"https://own.example.com\"]".into(), at("origin = {")],
        ),
    ] {
        let mut arguments = vec!["--path", target];
        if !origin.is_empty() {
            arguments.extend(["--origin", origin]);
        }
        let told = explain(&path, Some(&issuer.token(&changes)), &arguments);
        for part in &parts {
            assert!(failed(&told).contains(part), "{target}: {part:?} in {}", failed(&told));
        }
    }
    let told = explain(&path, Some(&good), &["--path", "/ws/acme/", "--peer", "192.0.2.1"]);
    assert!(failed(&told).contains("listen.allow_addresses = [\"127.0.0.1\"]"), "{}", told.out);
    assert!(failed(&told).contains(&at("allow_addresses")), "{}", told.out);
    let told = explain(&path, None, &["--path", "/ws/acme/"]);
    assert!(failed(&told).contains("auth = \"required\" (default)"), "{}", told.out);
}

#[test]
fn what_a_route_overrides_is_named_as_the_routes() {
    let (issuer, other, backend) = (Issuer::start(), Issuer::start(), Backend::start());
    let (_folder, path) = file(&config(&issuer, &other, &backend));
    let told = explain(
        &path,
        Some(&issuer.good_token()),
        &["--path", "/own/", "--origin", "https://app.example.com"],
    );
    assert!(failed(&told).contains("route[9].origin.allow = [\"https://own.example.com\"]"), "{}", told.out);
}

#[test]
fn the_addresses_of_a_route_are_named_where_they_decide() {
    let (issuer, other, backend) = (Issuer::start(), Issuer::start(), Backend::start());
    let (_folder, path) = file(&config(&issuer, &other, &backend));
    let told = explain(&path, Some(&issuer.good_token()), &["--path", "/office/"]);
    assert!(failed(&told).contains("allow_addresses = [\"192.0.2.0/24\"]"), "{}", told.out);
    assert!(failed(&told).contains(&place(&path, "allow_addresses", 1)), "{}", told.out);
}

#[test]
fn a_missing_origin_is_decided_by_allow_missing() {
    let (issuer, other, backend) = (Issuer::start(), Issuer::start(), Backend::start());
    let (_folder, path) = file(&config(&issuer, &other, &backend));
    let told = explain(&path, Some(&issuer.good_token()), &["--path", "/own/"]);
    assert!(failed(&told).contains("origin.allow_missing = false"), "{}", told.out);
}

#[test]
fn of_several_issuers_the_keys_of_the_tokens_own_are_named() {
    let (issuer, other, backend) = (Issuer::start(), Issuer::start(), Backend::start());
    let (_folder, path) = file(&config(&issuer, &other, &backend));
    let told = explain(&path, Some(&other.good_token()), &["--path", "/ws/acme/"]);
    for (check, parts) in [
        ("issuer", ["url = \"".to_owned() + &other.url(), place(&path, "url = 'http", 2)]),
        ("signature", ["jwks_uri = \"".to_owned() + &other.jwks_uri(), place(&path, "jwks_uri", 1)]),
        ("audience", ["audiences = [\"staff\"]".into(), place(&path, "audiences", 1)]),
    ] {
        for part in parts {
            assert!(told.line(check).contains(&part), "{part:?} in {}", told.line(check));
        }
    }
}

#[test]
fn keys_that_cannot_be_had_are_told_soon_and_once_with_the_reason() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    issuer.change(|answers| answers.status = 500);
    let (_folder, path) = file(&Config::new(&issuer, &backend));
    let began = tokio::time::Instant::now();
    let told = explain(&path, Some(&issuer.good_token()), &[]);
    assert_eq!((told.code, told.verdict()), (1, "keys_unavailable"));
    assert!(failed(&told).contains("jwks_uri"), "{}", told.out);
    assert_eq!(told.out.matches(&format!("{}: status 500", issuer.jwks_uri())).count(), 1, "{}", told.out);
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn why_keys_could_not_be_had_is_told() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let (_folder, path) = file(&Config::new(&issuer, &backend));
    for (status, body, why) in [
        (500, "{}", "status 500"),
        (200, "<html>", "the key set is not JSON"),
        (200, r#"{"keys":[]}"#, "none of the 0 keys"),
    ] {
        issuer.change(|answers| (answers.status, answers.body) = (status, body.into()));
        let told = explain(&path, Some(&issuer.good_token()), &[]);
        assert_eq!((told.code, told.verdict()), (1, "keys_unavailable"), "{body}");
        assert!(failed(&told).contains("jwks_uri"), "{}", told.out);
        let note = told.out.lines().find(|line| line.starts_with("note    "));
        assert!(note.is_some_and(|note| note.contains(why)), "{why}: {}", told.out);
    }
}

#[test]
fn an_issuer_that_is_down_delays_nothing_for_tokens_of_another_and_is_told_once() {
    let (issuer, other, backend) = (Issuer::start(), Issuer::start(), Backend::start());
    other.change(|answers| answers.status = 500);
    let (_folder, path) = file(&config(&issuer, &other, &backend));
    let began = tokio::time::Instant::now();
    let told = explain(&path, Some(&issuer.good_token()), &["--path", "/ws/acme/"]);
    assert_eq!(told.verdict(), "allowed");
    assert!(told.out.matches("status 500").count() <= 1, "{}", told.out);
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
}
