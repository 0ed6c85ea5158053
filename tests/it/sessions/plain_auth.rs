//! Who may send plain requests, and what of the token goes on.

use serde_json::json;

use super::super::harness::{Config, Gate, Issuer, now};
use super::plain::{all, ask, passing};
use super::wire::Upstream;

fn get(path: &str, lines: &[String]) -> String {
    let lines: String = lines.iter().flat_map(|line| [line, "\r\n"]).collect();
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

/// The request reaches the backend; its head there.
fn passes(gate: &Gate, upstream: &Upstream, request: &str) -> String {
    let mut client = gate.client();
    let (mut wire, head) = ask(&mut client, upstream, request);
    wire.send(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
    assert_eq!(client.head().status, 204);
    head
}

/// It is answered by the gate; status and label.
fn refused(gate: &Gate, upstream: &Upstream, request: &str) -> (u16, String) {
    let mut client = gate.send(request.as_bytes());
    let answer = client.head();
    let body = client.json(&answer);
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    upstream.assert_quiet();
    (answer.status, body["reason"].as_str().unwrap().to_owned())
}

fn subject(head: &str) -> Vec<String> {
    all(head, "x-auth-subject")
}

fn expired(issuer: &Issuer) -> String {
    issuer.token(&json!({"exp": now() - 60}))
}

#[test]
fn with_pass_any_authorization_is_the_backends_business() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    for own in [
        "Authorization: Basic eDp5".to_owned(),
        bearer("opaque"),
        bearer(&expired(&issuer)),
        bearer(&issuer.good_token()),
    ] {
        let head =
            passes(&gate, &upstream, &get("/api?token=x", &[own.clone(), "X-Auth-Subject: root".into()]));
        assert_eq!(all(&head, "authorization"), [own.split_once(": ").unwrap().1]);
        assert!(head.starts_with("GET /api?token=x "), "{head}");
        assert!(subject(&head).is_empty(), "nobody was asked for: {head}");
    }
}

#[test]
fn with_optional_absent_is_fine_and_bad_is_401() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer).set("http.auth", "'optional'"));
    assert!(subject(&passes(&gate, &upstream, &get("/", &[]))).is_empty());
    let head = passes(&gate, &upstream, &get("/", &["Authorization: Basic eDp5".into()]));
    assert_eq!(all(&head, "authorization"), ["Basic eDp5"], "another scheme is no token");
    let good = bearer(&issuer.good_token());
    let head = passes(&gate, &upstream, &get("/", std::slice::from_ref(&good)));
    assert_eq!(subject(&head), ["alice-sub"]);
    assert_eq!(all(&head, "authorization"), [good.split_once(": ").unwrap().1], "kept");
    let bad = get("/", &[bearer(&expired(&issuer))]);
    assert_eq!(refused(&gate, &upstream, &bad), (401, "token_expired".into()));
}

#[test]
fn with_required_absent_is_401_and_good_is_told_to_the_backend() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer).set("http.auth", "'required'"));
    assert_eq!(refused(&gate, &upstream, &get("/", &[])), (401, "token_missing".into()));
    assert_eq!(refused(&gate, &upstream, &get("/", &[bearer("x.y.z")])), (401, "token_malformed".into()));
    let head =
        passes(&gate, &upstream, &get("/", &[bearer(&issuer.good_token()), "X-Auth-Email: root@x".into()]));
    assert_eq!(subject(&head), ["alice-sub"]);
    assert_eq!(all(&head, "x-auth-email"), ["alice@example.com"]);
    // A refused request is no connection's outcome.
    assert_eq!(gate.metric("websocket_connections_total{status=\"auth_failed\"}"), 0);
    assert_eq!(gate.metric("http_requests_total{code=\"401\",method=\"GET\"}"), 2);
}

#[test]
fn a_token_can_be_taken_out_of_every_carrier() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = passing(&upstream, &issuer).set("http.auth", "'required'").set("http.token", "'strip'");
    let gate = Gate::start(&config);
    let token = issuer.good_token();
    let head = passes(&gate, &upstream, &get(&format!("/a?x=1&token={token}&y=2"), &[bearer(&token)]));
    assert!(head.starts_with("GET /a?x=1&y=2 HTTP/1.1\r\n"), "{head}");
    assert!(all(&head, "authorization").is_empty() && !head.contains(&token), "{head}");
    assert_eq!(subject(&head), ["alice-sub"]);
}

fn routed(upstream: &Upstream, issuer: &Issuer, routes: &[&str]) -> Config {
    routes.iter().fold(passing(upstream, issuer), |config, lines| config.route(lines))
}

#[test]
fn a_route_rules_its_plain_requests_by_its_own_auth_unless_told_otherwise() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&routed(
        &upstream,
        &issuer,
        &[
            "path = '/required'",
            "path = '/optional'\nauth = 'optional'",
            "path = '/none'\nauth = 'none'",
            "path = '/open'\nhttp = 'pass'",
            "path = '/closed'\nauth = 'none'\nhttp = 'required'",
            "path = '/admin'\nroles = ['admin']",
            "path = '/org/{org}'\nclaims = { organization = '{org}' }",
        ],
    ));
    let (bad, good) = (bearer(&expired(&issuer)), bearer(&issuer.token(&json!({"organization": ["acme"]}))));
    for (path, without, with_bad, with_good) in [
        ("/required", 401, 401, 204),
        ("/optional", 204, 401, 204),
        ("/none", 204, 204, 204),
        ("/open", 204, 204, 204),
        ("/closed", 401, 401, 204),
        ("/admin", 401, 401, 403),
        ("/org/acme", 401, 401, 204),
        ("/org/other", 401, 401, 403),
        ("/elsewhere", 204, 204, 204),
    ] {
        for (lines, status) in
            [(vec![], without), (vec![bad.clone()], with_bad), (vec![good.clone()], with_good)]
        {
            let request = get(path, &lines);
            if status == 204 {
                passes(&gate, &upstream, &request);
            } else {
                assert_eq!(refused(&gate, &upstream, &request).0, status, "{path} {}", lines.len());
            }
        }
    }
}

#[test]
fn what_no_route_names_can_be_refused() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = routed(&upstream, &issuer, &["path = '/ws/'\nhttp = 'pass'"]);
    let gate = Gate::start(&config.set("http.unmatched", "'refuse'"));
    passes(&gate, &upstream, &get("/ws/", &[]));
    assert_eq!(refused(&gate, &upstream, &get("/ws", &[])), (404, "route_unknown".into()));
    assert_eq!(
        refused(&gate, &upstream, &get("/", &[bearer(&issuer.good_token())])),
        (404, "route_unknown".into())
    );
}

#[test]
fn http_auth_rules_what_no_route_names() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = routed(&upstream, &issuer, &["path = '/ws/'\nhttp = 'pass'"]);
    let gate = Gate::start(&config.set("http.auth", "'required'"));
    passes(&gate, &upstream, &get("/ws/", &[]));
    assert_eq!(refused(&gate, &upstream, &get("/other", &[])), (401, "token_missing".into()));
    passes(&gate, &upstream, &get("/other", &[bearer(&issuer.good_token())]));
}

#[test]
fn a_route_can_have_its_own_backend() {
    let (issuer, upstream, own) = (Issuer::start(), Upstream::start(), Upstream::start());
    let gate = Gate::start(&routed(
        &upstream,
        &issuer,
        &[&format!(
            "path = '/own/*'\nhttp = 'pass'\n[route.upstream]\nurl = 'http://{}'\nhost = 'own.example'",
            own.address
        )],
    ));
    let head = passes(&gate, &own, &get("/own/x", &[]));
    assert_eq!(all(&head, "host"), ["own.example"]);
    upstream.assert_quiet();
    assert_eq!(all(&passes(&gate, &upstream, &get("/x", &[])), "host"), ["a"]);
    own.assert_quiet();
}
