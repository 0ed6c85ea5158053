//! `[cors]` on answers of the backend: which page may read them.

use serde_json::json;

use super::super::harness::Config;
use super::Scene;
use super::preflights::cors;

const PAGE: &str = "Origin: https://app.example.org";

/// A backend with opinions of its own.
const OPINIONS: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nVary: Accept-Encoding\r\n\
    Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Origin: https://evil.example\r\n\
    Access-Control-Allow-Credentials: true\r\naccess-control-expose-headers: x-secret\r\n\
    Access-Control-Allow-Private-Network: true\r\nX-Total: 7\r\n\r\nplain";

fn some_page(config: Config) -> Config {
    config.set("origin.allow", "['self', 'https://app.example.org']")
}

#[test]
fn without_cors_an_answer_passes_as_it_is() {
    let scene = Scene::with(some_page);
    scene.backend.plain(OPINIONS);
    for lines in [&[][..], &[PAGE], &["Origin: https://evil.example"]] {
        let answer = scene.ask("GET", "/x", lines);
        assert_eq!(answer.all("access-control-allow-origin"), ["*", "https://evil.example"]);
        assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
        assert_eq!(answer.header("vary"), Some("Accept-Encoding"));
    }
    // Nor do refusals say anything.
    assert_eq!(cors(&scene.ask("GET", "/x//", &[PAGE])), [""; 0]);
}

#[test]
fn with_cors_the_gate_alone_speaks() {
    let scene = Scene::with(|config| {
        let config = some_page(config).set("cors.expose_headers", "['x-total', 'etag']");
        config.set("cors.allow_credentials", "true")
    });
    scene.backend.plain(OPINIONS);
    for (origin, shared) in [
        (PAGE, true),
        ("Origin: https://chat.example.com", true),
        ("Origin: https://evil.example", false),
        ("Origin: null", false),
        ("Origin: https://app.example.org.evil.example", false),
        ("X-None: x", false),
    ] {
        let answer = scene.ask("GET", "/x", &[origin]);
        assert_eq!((answer.status, answer.header("x-total")), (200, Some("7")));
        let vary = "vary: Accept-Encoding, Origin".to_owned();
        let expected = if shared {
            vec![
                "access-control-allow-credentials: true".to_owned(),
                format!("access-control-allow-origin: {}", &origin[8..]),
                "access-control-expose-headers: x-total, etag".to_owned(),
                vary,
            ]
        } else {
            vec![vary]
        };
        assert_eq!(cors(&answer), expected, "{origin}");
    }
    let twice = scene.ask("GET", "/x", &[PAGE, "Origin: https://evil.example"]);
    assert_eq!(cors(&twice), ["vary: Accept-Encoding, Origin"]);
    // Answers without a body and of other statuses as well.
    for status in ["204 No Content", "304 Not Modified", "404 Not Found", "500 Oops", "302 Found"] {
        let length =
            if status.starts_with("204") || status.starts_with("304") { "" } else { "Content-Length: 0\r\n" };
        scene.backend.plain(&format!("HTTP/1.1 {status}\r\nAccess-Control-Allow-Origin: *\r\n{length}\r\n"));
        let answer = scene.ask("GET", "/x", &[PAGE]);
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example.org"), "{status}");
        assert_eq!(answer.header("vary"), Some("Origin"), "{status}");
    }
}

#[test]
fn any_page_may_read_what_is_for_everybody_but_never_with_credentials() {
    let scene = Scene::with(|config| config.set("origin.allow", "['*']").set("cors.max_age", "'1h'"));
    scene.backend.plain(OPINIONS);
    for origin in ["https://app.example.org", "https://evil.example", "null"] {
        let answer = scene.ask("GET", "/x", &[&format!("Origin: {origin}")]);
        assert_eq!(
            cors(&answer),
            ["access-control-allow-origin: *", "vary: Accept-Encoding, Origin"],
            "{origin}"
        );
    }
    assert_eq!(cors(&scene.ask("GET", "/x", &[])), ["vary: Accept-Encoding, Origin"]);
}

#[test]
fn null_is_shared_with_only_if_it_is_listed_and_never_with_credentials() {
    let scene = Scene::with(|config| {
        config
            .set("origin.allow", "['null', 'https://app.example.org']")
            .set("cors.allow_credentials", "true")
    });
    let null = scene.ask("GET", "/x", &["Origin: null"]);
    assert_eq!(cors(&null), ["access-control-allow-origin: null", "vary: Origin"]);
    let page = scene.ask("GET", "/x", &[PAGE]);
    assert_eq!(page.header("access-control-allow-credentials"), Some("true"));
}

#[test]
fn the_token_names_the_pages_that_may_read() {
    let scene = Scene::with(|config| {
        config
            .set("origin.allow", "['token', 'https://listed.example']")
            .set("cors.allow_credentials", "true")
            .set("http.auth", "'required'")
    });
    let bearer = |allowed: &[&str]| {
        let token = scene.issuer.token(&json!({ "allowed-origins": allowed }));
        format!("Authorization: Bearer {token}")
    };
    for (allowed, origin, shared) in [
        (&["https://app.example.org"][..], "https://app.example.org", true),
        (&["https://app.example.org", "https://b.example"], "https://b.example", true),
        (&["https://app.example.org"], "https://evil.example", false),
        (&["*"], "https://evil.example", false),
        (&["+"], "https://evil.example", false),
        (&["null"], "null", false),
        (&["https://app.example.org/"], "https://app.example.org", false),
        (&[], "https://app.example.org", false),
        (&[], "https://listed.example", true),
    ] {
        let answer = scene.ask("GET", "/x", &[&format!("Origin: {origin}"), &bearer(allowed)]);
        // A simple request is not refused for its origin: the page just may not read the answer.
        assert_eq!(answer.status, 200, "{allowed:?} {origin}");
        let told = answer.header("access-control-allow-origin");
        assert_eq!(told, shared.then_some(origin), "{allowed:?} {origin}");
        assert_eq!(answer.header("access-control-allow-credentials"), shared.then_some("true"));
        assert_eq!(answer.header("vary"), Some("Origin"));
    }
    // A token that is no good names nobody, one that has only expired does: it was signed.
    let page = ["Origin: https://app.example.org"];
    assert_eq!(cors(&scene.ask("GET", "/x", &page)), ["vary: Origin"]);
    let forged = super::super::harness::Key::new("k1");
    let claims = scene.issuer.claims(&json!({"allowed-origins": ["https://app.example.org"]}));
    let forged = format!("Authorization: Bearer {}", forged.sign(&forged.header(), &claims));
    let answer = scene.ask("GET", "/x", &[page[0], &forged]);
    assert_eq!((answer.status, cors(&answer)), (401, vec!["vary: Origin".to_owned()]));
    let expired = scene.issuer.token(&json!({"exp": 1, "allowed-origins": ["https://app.example.org"]}));
    let answer = scene.ask("GET", "/x", &[page[0], &format!("Authorization: Bearer {expired}")]);
    assert_eq!(answer.status, 401);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example.org"));
}

#[test]
fn cors_opens_no_socket() {
    // What a page may read by fetch is one thing, whether it may open a socket another: that says the list.
    let scene = Scene::with(|config| some_page(config).set("cors.max_age", "'1h'"));
    let told = scene.gate.refusal_by_close(&scene.good("/ws/").origin("https://evil.example"));
    assert_eq!(told, (4003, "origin_denied".into()));
    let (_client, answer) = scene.gate.upgrade(&scene.good("/ws/").origin("https://app.example.org"));
    assert_eq!((answer.status, cors(&answer)), (101, Vec::new()));
}
