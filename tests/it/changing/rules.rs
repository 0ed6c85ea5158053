//! `roles`, `claims` and `allow` of a route, from the handshake's first byte to the answer.

use serde_json::{Value, json};

use super::super::harness::{Backend, Config, Gate, Handshake, Issuer, eventually};
use super::outcome;

/// A gate with these routes.
fn gate(issuer: &Issuer, backend: &Backend, routes: &[&str]) -> Gate {
    Gate::start(&routes.iter().fold(Config::new(issuer, backend), |config, lines| config.route(lines)))
}

/// A rule of its own on each path: `/0/…`, `/1/…`, and so on.
fn ruled(issuer: &Issuer, backend: &Backend, rules: &[&str]) -> Gate {
    let route = |(n, rule): (usize, &&str)| format!("path = '/{n}/{{org}}/*'\nallow = '''{rule}'''");
    let routes: Vec<_> = rules.iter().enumerate().map(route).collect();
    gate(issuer, backend, &routes.iter().map(String::as_str).collect::<Vec<_>>())
}

const DENIED: &str = "403 rule_denied";

#[test]
fn an_expression_sees_the_path_the_claims_and_the_request() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let token = issuer.token(&json!({
        "organization": ["acme", "café"], "level": 3, "orgs": [{"id": "acme", "roles": ["owner"]}],
    }));
    let rules = [
        "params.org in claims.organization",
        "claims.level >= 3 && claims.orgs.exists(o, o.id == params.org && 'owner' in o.roles)",
        "request.method == 'GET' && request.path == '/2/acme/x'",
        "request.host == 'chat.example.com' && request.origin == 'https://chat.example.com'",
        "request.address == '127.0.0.1'",
        "request.headers['x-tier'] == 'gold, silver' && !('authorization' in request.headers)",
        "claims.sub == 'alice-sub' && 'user' in claims.realm_access.roles",
    ];
    let gate = ruled(&issuer, &backend, &rules);
    for (n, rule) in rules.iter().enumerate() {
        let to = |path: &str| Handshake::to(path).bearer(&token).origin("https://chat.example.com");
        let good = to(&format!("/{n}/acme/x")).with("X-Tier: gold").with("x-tier: silver");
        assert_eq!(outcome(&gate, &good), "101", "{rule}");
    }
    // As percent-decoded as the claim is.
    let cafe = |org: &str| Handshake::to(&format!("/0/{org}/x")).bearer(&token);
    assert_eq!(outcome(&gate, &cafe("caf%C3%A9")), "101");
    let table = [
        ("/0/globex/x", None),
        ("/0/acm/x", None),
        ("/1/globex/x", None),
        ("/2/acme/y", None),
        ("/3/acme/x", Some("Host: other.example.com")),
        ("/5/acme/x", Some("X-Tier: silver")),
        ("/5/acme/x", None),
    ];
    for (path, line) in table {
        let mut handshake = Handshake::to(path).bearer(&token);
        if let Some(line) = line {
            handshake = handshake.instead(line);
        }
        assert_eq!(outcome(&gate, &handshake), DENIED, "{path} {line:?}");
    }
    let denied = gate.refused("rule_denied");
    assert_eq!(denied, table.len() as u64);
}

#[test]
fn the_address_is_that_of_the_client_behind_a_trusted_proxy() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::new(&issuer, &backend).set("listen.trusted_proxies", "['127.0.0.1']");
    let gate = Gate::start(&config.route("path = '/'\nallow = 'request.address == \"192.0.2.1\"'"));
    let from = |line: &str| Handshake::to("/").bearer(&issuer.good_token()).with(line);
    assert_eq!(outcome(&gate, &from("X-Forwarded-For: 192.0.2.1")), "101");
    assert_eq!(outcome(&gate, &from("X-Forwarded-For: 192.0.2.1, 192.0.2.2")), DENIED);
    assert_eq!(outcome(&gate, &from("X-Forwarded-Host: a")), DENIED);
}

#[test]
fn whatever_goes_wrong_in_an_expression_is_a_denial_and_harms_nobody() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let rules = [
        "claims.missing == 'x'",
        "claims.sub + 1 == 2",
        "claims.level / claims.zero == 1",
        "claims.organization[9] == 'x'",
        "claims.sub",
        "claims.level",
        "claims.level * 9223372036854775807 > 0",
        "int(claims.sub) > 0",
        "request.headers['x-missing'] == ''",
    ];
    let gate = ruled(&issuer, &backend, &rules);
    let token = issuer.token(&json!({"organization": ["acme"], "level": 3, "zero": 0}));
    for (n, rule) in rules.iter().enumerate() {
        let handshake = Handshake::to(&format!("/{n}/acme/x")).bearer(&token);
        assert_eq!(outcome(&gate, &handshake), DENIED, "{rule}");
        assert_eq!(outcome(&gate, &handshake.page()), "4003 rule_denied", "{rule}");
    }
    backend.assert_never_heard();
}

#[test]
fn hostile_claims_do_not_grow_into_a_grant() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let gate = gate(
        &issuer,
        &backend,
        &[
            "path = '/equal/{org}/'\nallow = 'claims.tenant == params.org'",
            "path = '/in/{org}/'\nallow = 'params.org in claims.tenant'",
            "path = '/not/{org}/'\nallow = '!(params.org in claims.banned)'",
            "path = '/claim/{org}/'\nclaims = { tenant = '{org}' }",
        ],
    );
    let hostile = [
        json!(null),
        json!(true),
        json!({"acme": 1}),
        json!([["acme"]]),
        json!("{org}"),
        json!("params.org"),
        json!("acme\u{0}"),
        json!("ACME"),
        json!(" acme"),
        json!(["acm", "e"]),
        json!(""),
        json!("acme,globex"),
    ];
    for tenant in hostile {
        for path in ["/equal/acme/", "/claim/acme/"] {
            let token = issuer.token(&json!({"tenant": tenant}));
            assert_eq!(outcome(&gate, &Handshake::to(path).bearer(&token)), DENIED, "{path} {tenant}");
        }
    }
    // A map has keys: whoever may fill the claim may choose them, as he may the members of a list.
    let token = |tenant: Value| issuer.token(&json!({"tenant": tenant}));
    assert_eq!(outcome(&gate, &Handshake::to("/in/acme/").bearer(&token(json!(["globex"])))), DENIED);
    assert_eq!(outcome(&gate, &Handshake::to("/in/acme/").bearer(&token(json!("xacmex")))), DENIED);
    // What is not there cannot be shown not to be in it.
    assert_eq!(outcome(&gate, &Handshake::to("/not/acme/").bearer(&issuer.good_token())), DENIED);
}

#[test]
fn without_a_token_there_are_no_claims_and_so_no_grant() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let gate = gate(
        &issuer,
        &backend,
        &[
            "path = '/claims/'\nauth = 'optional'\nallow = 'claims.sub == \"alice-sub\"'",
            "path = '/not/'\nauth = 'optional'\nallow = '!has(claims.sub)'",
            "path = '/none/'\nauth = 'optional'\nallow = 'claims == {}'",
            "path = '/request/'\nauth = 'optional'\nallow = 'request.headers[\"x-room\"] == \"lobby\"'",
            "path = '/either/'\nauth = 'optional'\nallow = 'request.headers[\"x-room\"] == \"lobby\" || \"user\" in claims.realm_access.roles'",
            "path = '/roles/'\nauth = 'optional'\nroles = ['user']",
        ],
    );
    let to = |path: &str| Handshake::to(path).with("X-Room: lobby");
    let table = [
        ("/claims/", DENIED, "101"),
        ("/not/", DENIED, DENIED),
        ("/none/", DENIED, DENIED),
        ("/request/", "101", "101"),
        ("/either/", "101", "101"),
        ("/roles/", DENIED, "101"),
    ];
    for (path, anonymous, known) in table {
        assert_eq!(outcome(&gate, &to(path)), anonymous, "{path}");
        assert_eq!(outcome(&gate, &to(path).bearer(&issuer.good_token())), known, "{path}");
        // A bad one is refused, not forgotten.
        assert_eq!(outcome(&gate, &to(path).bearer("nonsense")), "401 token_malformed", "{path}");
    }
}

#[test]
fn roles_claims_and_allow_must_all_hold() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let gate = gate(
        &issuer,
        &backend,
        &[
            "path = '/{org}/'\nroles = ['user', 'web:editor']\nclaims = { tenant = '{org}' }\nallow = 'claims.level > 2'",
        ],
    );
    let full = json!({
        "tenant": "acme", "level": 3, "resource_access": {"web": {"roles": ["editor"]}},
    });
    let with = |name: &str, value: Value| {
        let mut claims = full.clone();
        claims[name] = value;
        Handshake::to("/acme/").bearer(&issuer.token(&claims))
    };
    assert_eq!(outcome(&gate, &with("x", json!(1))), "101");
    for (name, value) in [
        ("realm_access", json!({"roles": ["editor"]})),
        ("realm_access", json!({"roles": "user"})),
        ("resource_access", json!({"other": {"roles": ["editor"]}})),
        ("resource_access", json!(null)),
        ("tenant", json!("globex")),
        ("level", json!(2)),
        ("level", json!("3")),
    ] {
        assert_eq!(outcome(&gate, &with(name, value.clone())), DENIED, "{name} {value}");
    }
    assert_eq!(gate.refused("rule_denied"), 7);
}

#[test]
fn a_token_that_would_make_a_rule_costly_is_denied_quickly() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let gate = gate(
        &issuer,
        &backend,
        &[
            "path = '/'\nallow = '!claims.a.exists(x, claims.a.exists(y, x + \"x\" == y))'",
            "path = '/simple/'\nallow = '\"g-1\" in claims.a'",
        ],
    );
    let token = |n: usize| {
        let groups: Vec<_> = (0..n).map(|i| format!("g-{i}")).collect();
        issuer.token(&json!({"a": groups}))
    };
    let (small, large) = (token(20), token(1400));
    assert!(large.len() < 16_384);
    let ask = |path: &str, token: &str| outcome(&gate, &Handshake::to(path).bearer(token));
    assert_eq!(ask("/", &small), "101");
    assert_eq!(ask("/simple/", &large), "101");
    let began = tokio::time::Instant::now();
    for _ in 0..10 {
        assert_eq!(ask("/", &large), DENIED);
    }
    assert!(began.elapsed() < std::time::Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn a_shadow_route_tells_what_its_rule_would_refuse() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let gate = gate(
        &issuer,
        &backend,
        &["path = '/'\nmode = 'shadow'\nroles = ['user']\nallow = 'claims.tenant == \"acme\"'"],
    );
    for (claims, would) in [
        (json!({"tenant": "acme"}), 0),
        (json!({"tenant": "globex"}), 1),
        (json!({}), 2),
        (json!({"tenant": "acme", "realm_access": null}), 3),
    ] {
        assert_eq!(outcome(&gate, &Handshake::to("/").bearer(&issuer.token(&claims))), "101");
        eventually("the count", || {
            (gate.metric("would_refuse_total{reason=\"rule_denied\"}") == would).then_some(())
        });
    }
    assert_eq!(gate.refused("rule_denied"), 0);
}

#[test]
fn plain_requests_of_a_route_go_by_its_rule_too() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let gate = gate(
        &issuer,
        &backend,
        &["path = '/{org}/*'\nallow = 'claims.tenant == params.org && request.method != \"DELETE\"'"],
    );
    let token = issuer.token(&json!({"tenant": "acme"}));
    let ask = |line: &str| {
        let head = format!(
            "{line} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        gate.ask(head.as_bytes()).0.status
    };
    assert_eq!([ask("GET /acme/x"), ask("GET /globex/x"), ask("DELETE /acme/x")], [200, 403, 403]);
}
