//! Preflights: with `[cors]` answered here before anything else is asked, without it the backend's.

use super::super::harness::{Answer, Config, eventually};
use super::{Scene, request};

const PAGE: &str = "Origin: https://app.example.org";
const ASKS: &str = "Access-Control-Request-Method: PUT";

/// What an answer says about CORS, sorted.
pub fn cors(answer: &Answer) -> Vec<String> {
    let mut said: Vec<String> = answer
        .text
        .lines()
        .filter(|line| {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            name.starts_with("access-control-") || name == "vary"
        })
        .map(str::to_owned)
        .collect();
    said.sort();
    said
}

const VARY: &str = "vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers";

fn routes(config: Config) -> Config {
    config
        .set("origin.allow", "['self', 'https://app.example.org']")
        .set("http.unmatched", "'refuse'")
        .route("path = '/api/*'")
        .route("path = '/admin/*'\nroles = ['admin']")
        .route("path = '/office/'\nallow_addresses = ['192.0.2.7']")
}

#[test]
fn without_cors_a_preflight_is_the_backends_business_and_nobodys() {
    let scene = Scene::with(|config| routes(config).set("limits.attempts_per_address", "'3/60s'"));
    scene.backend.plain(
        "HTTP/1.1 204 No Content\r\nAccess-Control-Allow-Origin: *\r\nAccess-Control-Allow-Private-Network: true\r\n\r\n",
    );
    let spoofed = [
        "X-Auth-Subject: root",
        "x_auth_subject: root",
        "X-Auth-Roles: root",
        "X-Auth-Username: root",
        "X-Auth-Email: root",
        "X-CSP-Nonce: root",
        "Daphne-Root-Path: /root",
    ];
    for (n, path) in ["/api/x", "/admin/x"].into_iter().enumerate() {
        let bearer = scene.bearer();
        let lines: Vec<&str> = [PAGE, ASKS, &bearer].into_iter().chain(spoofed).collect();
        let answer = scene.ask("OPTIONS", path, &lines);
        assert_eq!(answer.status, 204);
        assert_eq!(
            cors(&answer),
            ["Access-Control-Allow-Origin: *", "Access-Control-Allow-Private-Network: true"]
                .map(str::to_ascii_lowercase),
            "as the backend said it"
        );
        let heard = scene.backend.request(n);
        assert_eq!(heard.line(), format!("OPTIONS {path} HTTP/1.1"));
        assert_eq!(heard.header("access-control-request-method").as_deref(), Some("PUT"));
        assert!(!heard.text().contains("root"), "{}", heard.text());
        assert!(!heard.text().to_lowercase().contains("x-auth-"), "nobody is it from: {}", heard.text());
        assert_eq!(heard.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    }
    // It is no way around what concerns no token.
    let refusal = |path| scene.refusal("OPTIONS", path, &[PAGE, ASKS]);
    assert_eq!(refusal("/office/"), (403, "address_denied".into()));
    assert_eq!(refusal("/nowhere"), (404, "route_unknown".into()));
    assert_eq!(refusal("/api//x"), (400, "request_malformed".into()));
    assert_eq!(refusal("/api/x"), (429, "attempts_exceeded".into()), "those were three");
    assert_eq!(scene.backend.heard().len(), 2);
}

#[test]
fn a_preflight_leaves_its_token_here_where_tokens_are_stripped() {
    let scene = Scene::with(|config| routes(config).set("http.token", "'strip'"));
    let target = format!("/api/x?a=1&token={}", scene.issuer.good_token());
    assert_eq!(scene.ask("OPTIONS", &target, &[PAGE, ASKS, &scene.bearer()]).status, 200);
    let heard = scene.backend.request(0);
    assert_eq!(heard.line(), "OPTIONS /api/x?a=1 HTTP/1.1");
    assert_eq!(heard.header("authorization"), None);
}

#[test]
fn what_only_looks_like_a_preflight_needs_its_token() {
    for with_cors in [false, true] {
        let scene = Scene::with(|config| {
            let config = routes(config);
            if with_cors { config.set("cors.max_age", "'10m'") } else { config }
        });
        for (method, lines) in [
            ("OPTIONS", &[PAGE][..]),
            ("OPTIONS", &[ASKS]),
            ("OPTIONS", &[]),
            ("GET", &[PAGE, ASKS]),
            ("POST", &[PAGE, ASKS, "Content-Length: 0"]),
            ("PUT", &[PAGE, ASKS, "X-HTTP-Method-Override: OPTIONS", "Content-Length: 0"]),
        ] {
            let refused = scene.refusal(method, "/api/x", lines);
            assert_eq!(refused, (401, "token_missing".into()), "{method} {lines:?}");
        }
        scene.backend.assert_never_heard();
    }
}

#[test]
fn with_cors_a_preflight_is_answered_before_route_and_token() {
    let scene = Scene::with(|config| {
        routes(config)
            .set("cors.allow_methods", "['GET', 'PUT']")
            .set("cors.allow_headers", "['authorization', 'x-a']")
            .set("cors.expose_headers", "['x-total']")
            .set("cors.allow_credentials", "true")
            .set("cors.max_age", "'1h'")
    });
    for path in ["/api/x", "/admin/x", "/office/", "/nowhere"] {
        let answer = scene.ask("OPTIONS", path, &[PAGE, ASKS, "Access-Control-Request-Headers: x-evil"]);
        assert_eq!(answer.status, 204, "{path}");
        let mut said = cors(&answer);
        said.retain(|line| !line.starts_with("access-control-expose-headers"));
        assert_eq!(
            said,
            [
                "access-control-allow-credentials: true",
                "access-control-allow-headers: authorization, x-a",
                "access-control-allow-methods: GET, PUT",
                "access-control-allow-origin: https://app.example.org",
                "access-control-max-age: 3600",
                VARY,
            ],
            "{path}"
        );
    }
    scene.backend.assert_never_heard();
    assert_eq!(scene.gate.metric("http_requests_total{code=\"204\",method=\"OPTIONS\"}"), 4);
    assert!(scene.lines("handshake_refused").is_empty());
    // What cannot be read in one way is not answered at all.
    assert_eq!(scene.refusal("OPTIONS", "/api//x", &[PAGE, ASKS]), (400, "request_malformed".into()));
}

#[test]
fn a_foreign_page_is_told_nothing_and_private_networks_are_never_opened() {
    let scene = Scene::with(|config| routes(config).set("cors.allow_credentials", "true"));
    for origin in [
        "https://evil.example",
        "http://app.example.org",
        "https://app.example.org:8443",
        "https://app.example.org.evil.example",
        "null",
        "",
        "https://app.example.org/",
    ] {
        let answer = scene.ask("OPTIONS", "/api/x", &[&format!("Origin: {origin}"), ASKS]);
        assert_eq!((answer.status, cors(&answer)), (204, vec![VARY.to_owned()]), "{origin}");
    }
    let twice = scene.ask("OPTIONS", "/api/x", &[PAGE, PAGE, ASKS]);
    assert_eq!((twice.status, cors(&twice)), (204, vec![VARY.to_owned()]));
    for origin in [PAGE, "Origin: https://evil.example"] {
        let lines = [
            origin,
            ASKS,
            "Access-Control-Request-Private-Network: true",
            "Access-Control-Request-Local-Network: true",
        ];
        let answer = scene.ask("OPTIONS", "/api/x", &lines);
        assert_eq!(answer.status, 204);
        assert!(!answer.text.to_lowercase().contains("network"), "{}", answer.text);
    }
    // Pages of this gate itself, by what browsers see of it.
    let own = scene.ask("OPTIONS", "/api/x", &["Origin: https://chat.example.com", ASKS]);
    assert_eq!(own.header("access-control-allow-origin"), Some("https://chat.example.com"));
    scene.backend.assert_never_heard();
}

#[test]
fn the_body_of_a_preflight_is_never_the_next_request() {
    let scene = Scene::with(|config| routes(config).set("cors.max_age", "'1h'"));
    let hidden = request("GET", "/api/smuggled", &[&scene.bearer()]);
    let hidden = String::from_utf8(hidden).unwrap();
    let head = format!("OPTIONS /api/x HTTP/1.1\r\nHost: chat.example.com\r\n{PAGE}\r\n{ASKS}\r\n");
    for (what, bytes) in [
        ("length", format!("{head}Content-Length: {}\r\n\r\n{hidden}", hidden.len())),
        (
            "chunked",
            format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len()),
        ),
        ("a body that never comes", format!("{head}Content-Length: 10\r\n\r\n")),
    ] {
        let mut client = scene.gate.send(bytes.as_bytes());
        let answer = client.head();
        assert_eq!((answer.status, answer.header("connection")), (204, Some("close")), "{what}");
        client.ends_silently();
    }
    // Without a body the connection is kept, and the next request is one.
    let mut client = scene.gate.send(format!("{head}\r\n{head}Content-Length: 0\r\n\r\n").as_bytes());
    for _ in 0..2 {
        let answer = client.head();
        assert_eq!((answer.status, answer.header("connection")), (204, None));
    }
    client.send(hidden.as_bytes());
    assert_eq!(client.head().status, 200);
    eventually("all to be let go", || (scene.gate.control.gate().connections.taken() <= 1).then_some(()));
    assert_eq!(scene.backend.heard().len(), 1);
}

#[test]
fn a_route_has_its_own_cors_and_a_route_alone_may_have_any() {
    let scene = Scene::with(|config| {
        config
            .set("cors.allow_methods", "['GET']")
            .set("origin.allow", "['https://app.example.org']")
            .route("path = '/api/*'")
            .route(
                "path = '/wide/'\n[route.origin]\nallow = ['*']\n[route.cors]\nallow_methods = ['GET', 'DELETE']\nmax_age = 'off'",
            )
            .route("path = '/other/'\n[route.origin]\nallow = ['https://other.example']")
    });
    let answer = |path: &str, origin: &str| {
        let answer = scene.ask("OPTIONS", path, &[&format!("Origin: {origin}"), ASKS]);
        let value = |name: &str| answer.header(name).map(str::to_owned);
        (
            value("access-control-allow-origin"),
            value("access-control-allow-methods"),
            value("access-control-max-age"),
        )
    };
    let some = |text: &str| Some(text.to_owned());
    let (app, evil) = ("https://app.example.org", "https://evil.example");
    assert_eq!(answer("/api/x", app), (some(app), some("GET"), some("600")));
    assert_eq!(answer("/api/x", evil), (None, None, None));
    assert_eq!(answer("/wide/", evil), (some("*"), some("GET, DELETE"), None));
    assert_eq!(answer("/other/", app), (None, None, None));
    assert_eq!(answer("/other/", "https://other.example").0, some("https://other.example"));
    scene.backend.assert_never_heard();

    let alone = Scene::with(|config| {
        let config = config.set("origin.allow", "['https://app.example.org']").route("path = '/api/*'");
        config.route("path = '/shared/'\n[route.cors]\nallow_methods = ['GET']")
    });
    assert_eq!(
        alone.ask("OPTIONS", "/shared/", &[PAGE, ASKS]).header("access-control-allow-methods"),
        Some("GET")
    );
    alone.backend.assert_never_heard();
    assert_eq!(alone.ask("OPTIONS", "/api/x", &[PAGE, ASKS]).status, 200, "the backend's");
    assert_eq!(alone.backend.heard().len(), 1);
}

#[test]
fn a_preflight_has_no_token_so_that_whom_the_token_names_is_asked_later() {
    let scene =
        Scene::with(|config| routes(config).set("origin.allow", "['token']").set("cors.max_age", "'1h'"));
    let answer = scene.ask("OPTIONS", "/api/x", &["Origin: https://any.example", ASKS]);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://any.example"));
    assert_eq!(answer.header("access-control-allow-credentials"), None);
    for origin in ["null", "https://any.example/", "any.example"] {
        let answer = scene.ask("OPTIONS", "/api/x", &[&format!("Origin: {origin}"), ASKS]);
        assert_eq!((answer.status, cors(&answer)), (204, vec![VARY.to_owned()]), "{origin}");
    }
}
