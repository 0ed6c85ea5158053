//! Paths that two parsers read in two ways.

use serde_json::json;

use super::super::harness::{Gate, Handshake};
use super::{Scene, get};

fn scene() -> Scene {
    Scene::with(|config| {
        config
            .route("path = '/public/*'\nauth = 'none'")
            .route("path = '/admin/*'\nroles = ['admin']")
            .route("path = '/café/'")
            .route("path = '/ws/events/{org}/'\nclaims = { organization = '{org}' }")
            .set("http.unmatched", "'refuse'")
    })
}

const CONFUSING: [&[u8]; 38] = [
    b"/public/../admin/",
    b"/public/./x",
    b"/public/.",
    b"/public/..",
    b"/public/%2e%2e/admin/",
    b"/public/%2E%2e/admin/",
    b"/public/.%2e/admin/",
    b"/public/%2e/x",
    b"/public/..%2fadmin/",
    b"/public/..%2Fadmin/",
    b"/public/x%2f..%2f..%2fadmin/",
    b"/public/..%5cadmin/",
    b"/public/..\\admin/",
    b"/public\\..\\admin/",
    b"//admin/",
    b"/public//admin/",
    b"/public//../admin/",
    b"/public/x%00",
    b"/public/x%0d%0aX-Auth-Subject:%20mallory",
    b"/public/x%09",
    b"/public/x%1f",
    b"/public/x%7f",
    b"/public/%",
    b"/public/%2",
    b"/public/%g1",
    b"/public/%%32%65",
    b"/public/%ff",
    b"/public/%c0%ae%c0%ae/admin/",
    b"/public/\xff",
    b"/public/\xc0\xae",
    b"/public/x\x01",
    b"/public/x\x7f",
    b"/adm%69n/",
    b"/%61dmin/",
    b"/publi%63/x",
    b"/public/x%7E",
    b"admin/",
    b"/public/x\ty",
];

#[test]
fn a_path_with_two_readings_is_refused_and_not_repaired() {
    let scene = scene();
    let token = scene.issuer.token(&json!({"realm_access": {"roles": ["admin"]}}));
    for path in CONFUSING {
        let shown = String::from_utf8_lossy(path);
        let line = |rest: &[u8]| [b"GET ", path, b" HTTP/1.1\r\n", rest].concat();
        let upgrade = Handshake::to("/").bearer(&token).bytes();
        let rest = upgrade.split_at(upgrade.iter().position(|b| *b == b'\n').unwrap() + 1).1;
        assert_eq!(scene.status(&line(rest)), 400, "upgrade of {shown}");
        assert_eq!(scene.status(&line(b"Host: chat.example.com\r\n\r\n")), 400, "plain {shown}");
    }
    scene.backend.assert_never_heard();
}

#[test]
fn a_fragment_is_cut_off_before_matching_and_forwarding() {
    let scene = scene();
    for target in ["/admin/#/public/", "/admin/#", "/admin/x#/../../public/"] {
        assert_eq!(scene.gate.refusal(&Handshake::to(target)), (401, "token_missing".into()), "{target}");
        assert_eq!(scene.status(&get(target, &[])), 401, "{target}");
    }
    scene.backend.assert_never_heard();
    drop(scene.gate.open(&Handshake::to("/public/x#/../admin/")));
    assert_eq!(scene.status(&get("/public/y#z", &[])), 200);
    assert_eq!(scene.backend.request(0).line(), "GET /public/x HTTP/1.1");
    assert_eq!(scene.backend.request(1).line(), "GET /public/y HTTP/1.1");
}

#[test]
fn a_query_is_no_path_and_is_forwarded_as_it_is() {
    let scene = scene();
    for target in ["/admin/?/public/", "/admin/?next=/public/", "/admin/?x#/public/"] {
        assert_eq!(scene.gate.refusal(&Handshake::to(target)), (401, "token_missing".into()), "{target}");
    }
    scene.backend.assert_never_heard();
    let target = "/public/x?next=/../admin//%2e%2e%2f&&a=%00&b=c%20d+e";
    drop(scene.gate.open(&Handshake::to(target)));
    assert_eq!(scene.backend.request(0).line(), format!("GET {target} HTTP/1.1"));
}

#[test]
fn another_spelling_of_a_path_falls_into_no_other_route() {
    let scene = scene();
    for target in ["/caf%C3%A9/", "/caf%c3%a9/", "/caf%c3%A9/", "/café/"] {
        assert_eq!(scene.status(&Handshake::to(target).bytes()), 401, "{target}");
        assert_eq!(scene.status(&get(target, &[])), 401, "{target}");
    }
    for target in ["/ADMIN/", "/admin", "/Public/x", "/publicx", "/"] {
        let refused = scene.gate.refusal(&scene.good(target));
        let expected = if target == "/admin" { (403, "rule_denied") } else { (404, "route_unknown") };
        assert_eq!(refused, (expected.0, expected.1.into()), "{target}");
    }
    scene.backend.assert_never_heard();
}

#[test]
fn a_path_parameter_is_compared_as_the_backend_will_decode_it() {
    let scene = scene();
    let token = scene.issuer.token(&json!({"organization": ["acme", "a b"]}));
    for (path, status, label) in [
        ("/ws/events/globex/", 403, "rule_denied"),
        ("/ws/events/ACME/", 403, "rule_denied"),
        ("/ws/events/acme%20/", 403, "rule_denied"),
        ("/ws/events/acme,globex/", 403, "rule_denied"),
        ("/ws/events/%7Borg%7D/", 403, "rule_denied"),
        ("/ws/events/acm%65/", 400, "request_malformed"),
        ("/ws/events/acme%2f..%2fglobex/", 400, "request_malformed"),
        ("/ws/events//", 400, "request_malformed"),
        ("/ws/events/acme", 404, "route_unknown"),
        ("/ws/events/acme/globex/", 404, "route_unknown"),
    ] {
        let refused = scene.gate.refusal(&Handshake::to(path).bearer(&token));
        assert_eq!(refused, (status, label.into()), "{path}");
    }
    scene.backend.assert_never_heard();
    for path in ["/ws/events/acme/", "/ws/events/a%20b/"] {
        Gate::assert_echo(&mut scene.gate.open(&Handshake::to(path).bearer(&token)));
        assert_eq!(scene.backend.last().line(), format!("GET {path} HTTP/1.1"));
    }
}

#[test]
fn a_query_that_is_not_utf_8_is_refused() {
    let scene = scene();
    // Read as Latin-1, as autobahn under Daphne does, the first would be a head of three lines.
    for query in
        [&b"x\xa0HTTP/1.1\x85X-Auth-Roles:admin\x85y:"[..], b"x=\xff", b"x=\xc0\xaf", b"x=\xed\xa0\x80"]
    {
        for rest in [&Handshake::to("/").bytes()[16..], b"Host: chat.example.com\r\n\r\n"] {
            let request = [b"GET /public/?", query, b" HTTP/1.1\r\n", rest].concat();
            assert_eq!(scene.status(&request), 400, "{}", String::from_utf8_lossy(&request));
        }
    }
    scene.backend.assert_never_heard();
}
