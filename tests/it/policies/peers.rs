//! Who a request is from, as far as its peer is believed; `allow_addresses`.

use std::net::Ipv4Addr;

use super::super::harness::{Gate, Handshake};
use super::{Scene, from};

/// The client, by what the proxy at 127.0.0.1 says; the proxies of 10.0.0.0/8 are trusted too.
const CLIENTS: [(&[&str], &str); 18] = [
    (&[], "127.0.0.1"),
    (&["X-Forwarded-For: 203.0.113.7"], "203.0.113.7"),
    (&["X-Forwarded-For: 6.6.6.6, 203.0.113.7"], "203.0.113.7"),
    (&["X-Forwarded-For: 6.6.6.6,203.0.113.7,10.0.0.9,10.1.1.1"], "203.0.113.7"),
    (&["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 203.0.113.7"], "203.0.113.7"),
    (&["X-Forwarded-For: 6.6.6.6, 203.0.113.7", "X-Forwarded-For: 10.0.0.9, 10.0.0.8"], "203.0.113.7"),
    (&["X-Forwarded-For: 203.0.113.7", "x-forwarded-for: 10.0.0.9"], "203.0.113.7"),
    (&["X-Forwarded-For: 10.0.0.9, 10.0.0.8"], "10.0.0.9"),
    (&["X-Forwarded-For: 6.6.6.6, unknown"], "127.0.0.1"),
    (&["X-Forwarded-For: 6.6.6.6, 999.0.0.1, 10.0.0.9"], "10.0.0.9"),
    (&["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: "], "127.0.0.1"),
    (&["X-Forwarded-For: 2001:db8::7"], "2001:db8::7"),
    (&["X-Forwarded-For: 6.6.6.6, [2001:DB8::7]:4711"], "2001:db8::7"),
    (&["X-Forwarded-For: ::ffff:203.0.113.7"], "203.0.113.7"),
    (&["X-Forwarded-For: 203.0.113.7:4711"], "203.0.113.7"),
    (&["X_Forwarded_For: 6.6.6.6", "X-Forwarded-For: 203.0.113.7"], "203.0.113.7"),
    (&["X-Real-IP: 6.6.6.6", "Forwarded: for=6.6.6.6"], "127.0.0.1"),
    (&["X-Forwarded-For: 203.0.113.7", "X-Real-IP: 6.6.6.6", "Forwarded: for=6.6.6.6"], "203.0.113.7"),
];

#[test]
fn the_client_is_the_right_most_address_that_is_not_trusted() {
    let scene = Scene::behind_a_proxy(|config| config.set("log.requests", "true"));
    for (n, (lines, client)) in CLIENTS.into_iter().enumerate() {
        let handshake = lines.iter().fold(scene.good("/ws/"), |handshake, line| handshake.with(line));
        Gate::assert_echo(&mut scene.gate.open(&handshake));
        assert_eq!(scene.ask("GET", "/x", lines).status, 200);
        for heard in [scene.backend.request(2 * n), scene.backend.request(2 * n + 1)] {
            assert_eq!(heard.header("x-forwarded-for").as_deref(), Some(client), "{lines:?}");
            assert_eq!(heard.header("x-real-ip").as_deref(), Some(client), "{lines:?}");
            assert!(!heard.text().contains("6.6.6.6"), "{}", heard.text());
        }
        for event in ["session_opened", "request"] {
            let line = scene.lines(event).pop().unwrap();
            assert_eq!(line["address"], client, "{event} {lines:?}");
        }
    }
    assert_eq!(scene.gate.metric("forwarded_ignored_total"), 0, "a trusted peer is believed");
}

#[test]
fn who_is_not_trusted_speaks_for_nobody_and_each_such_request_is_counted() {
    // Trusted is only the other address of this machine.
    let scene = Scene::with(|config| {
        let config = config.set("listen.trusted_proxies", "['127.0.0.2']").set("log.requests", "true");
        config.set("http.auth", "'required'")
    });
    let mut ignored = 0;
    for (lines, _) in CLIENTS {
        let handshake = lines.iter().fold(scene.good("/ws/"), |handshake, line| handshake.with(line));
        Gate::assert_echo(&mut scene.gate.open(&handshake));
        let bearer = scene.bearer();
        let lines_with: Vec<&str> = lines.iter().copied().chain([bearer.as_str()]).collect();
        assert_eq!(scene.ask("GET", "/x", &lines_with).status, 200);
        let refused = lines.iter().fold(Handshake::to("/ws/"), |handshake, line| handshake.with(line));
        assert_eq!(scene.gate.refusal(&refused), (401, "token_missing".into()));
        if lines.iter().any(|line| line.to_ascii_lowercase().starts_with("x-forwarded-")) {
            ignored += 3;
        }
        assert_eq!(scene.gate.metric("forwarded_ignored_total"), ignored, "{lines:?}");
    }
    for heard in scene.backend.heard() {
        assert_eq!(heard.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
        assert_eq!(heard.header("x-real-ip").as_deref(), Some("127.0.0.1"));
        assert!(
            !heard.text().contains("6.6.6.6") && !heard.text().contains("203.0.113."),
            "{}",
            heard.text()
        );
    }
    for event in ["session_opened", "request", "handshake_refused"] {
        assert_eq!(scene.lines(event).len(), CLIENTS.len(), "{event}");
        assert!(scene.lines(event).iter().all(|line| line["address"] == "127.0.0.1"), "{event}");
    }
    let mut proxy = scene.gate.client_from(Ipv4Addr::new(127, 0, 0, 2));
    proxy.send(&from("203.0.113.7", scene.good("/ws/")).bytes());
    assert_eq!(proxy.head().status, 101);
    assert_eq!(scene.backend.last().header("x-forwarded-for").as_deref(), Some("203.0.113.7"));
    assert_eq!(scene.gate.metric("forwarded_ignored_total"), ignored);
}

#[test]
fn other_forwarding_headers_of_the_untrusted_are_counted_too() {
    let scene = Scene::with(|config| config);
    for (n, line) in
        ["X-Forwarded-Proto: https", "X-Forwarded-Host: a", "x-forwarded-anything: b"].iter().enumerate()
    {
        assert_eq!(scene.ask("GET", "/x", &[line]).status, 200);
        assert_eq!(scene.gate.metric("forwarded_ignored_total"), n as u64 + 1, "{line}");
    }
}

#[test]
fn a_malformed_request_is_counted_once_too() {
    let scene = Scene::with(|config| config);
    assert_eq!(scene.refusal("GET", "/x//", &["X-Forwarded-For: 6.6.6.6"]).0, 400);
    assert_eq!(scene.gate.metric("forwarded_ignored_total"), 1);
    assert_eq!(scene.gate.refusal(&from("6.6.6.6", scene.good("/x//"))).0, 400);
    assert_eq!(scene.gate.metric("forwarded_ignored_total"), 2);
}

#[test]
fn only_allowed_addresses_get_in_on_the_whole_gate_and_on_single_routes() {
    let scene = Scene::behind_a_proxy(|config| {
        config
            .set("listen.allow_addresses", "['203.0.113.0/24', '2001:db8::/32']")
            .set("http.auth", "'optional'")
            .route("path = '/ws/'")
            .route("path = '/open/'\nauth = 'none'")
            .route("path = '/office/'\nallow_addresses = ['192.0.2.7']")
            .route("path = '/anybody/'\nallow_addresses = []")
    });
    let cases = [
        ("/ws/", "203.0.113.7", true),
        ("/ws/", "::ffff:203.0.113.7", true),
        ("/ws/", "2001:db8:9::1", true),
        ("/ws/", "203.0.114.7", false),
        ("/ws/", "192.0.2.7", false),
        ("/ws/", "2001:db9::1", false),
        ("/open/", "203.0.113.7", true),
        ("/open/", "192.0.2.7", false),
        ("/office/", "192.0.2.7", true),
        ("/office/", "192.0.2.8", false),
        ("/office/", "203.0.113.7", false),
        ("/anybody/", "198.51.100.1", true),
    ];
    let (mut denied, bearer) = (0, scene.bearer());
    for (path, address, allowed) in cases {
        let line = format!("X-Forwarded-For: {address}");
        let handshake = || from(address, scene.good(path));
        if allowed {
            Gate::assert_echo(&mut scene.gate.open(&handshake()));
            assert_eq!(scene.ask("GET", path, &[&line, &bearer]).status, 200, "{path} {address}");
            continue;
        }
        assert_eq!(scene.gate.refusal(&handshake()), (403, "address_denied".into()), "{path} {address}");
        let told = scene.gate.refusal_by_close(&handshake().page());
        assert_eq!(told, (4003, "address_denied".into()), "{path} {address}");
        let plain = scene.refusal("GET", path, &[&line, &bearer]);
        assert_eq!(plain, (403, "address_denied".into()), "{path} {address}");
        denied += 1;
        // Before the token is looked at: a stranger learns nothing by it.
        let without = scene.gate.refusal(&from(address, Handshake::to(path)));
        assert_eq!(without, (403, "address_denied".into()), "{path} {address}");
    }
    assert_eq!(scene.refusal("GET", "/unmatched", &["X-Forwarded-For: 192.0.2.7"]).0, 403);
    assert_eq!(scene.ask("GET", "/unmatched", &["X-Forwarded-For: 203.0.113.7"]).status, 200);
    // The proxy itself is not in the list, nor is who claims to be.
    assert_eq!(scene.gate.refusal(&scene.good("/ws/")).1, "address_denied");
    let claim = from("203.0.113.7, 198.51.100.1", scene.good("/ws/"));
    assert_eq!(scene.gate.refusal(&claim).1, "address_denied");
    assert_eq!(scene.gate.refused("address_denied"), denied * 4 + 3);
    assert_eq!(scene.upgrades("forbidden"), denied * 3 + 2);
}

#[test]
fn in_shadow_mode_an_address_is_let_in_and_told() {
    let scene = Scene::with(|config| {
        let config = config.set("listen.allow_addresses", "['203.0.113.0/24']");
        config.route("path = '/*'\nmode = 'shadow'").route("path = '/enforced/'")
    });
    Gate::assert_echo(&mut scene.gate.open(&scene.good("/ws/")));
    assert_eq!(scene.ask("GET", "/x", &[&scene.bearer()]).status, 200);
    assert_eq!((scene.would_refuse("address_denied"), scene.gate.refused("address_denied")), (2, 0));
    assert_eq!(scene.gate.logged("session_opened")["would_refuse"], "address_denied");
    assert_eq!(scene.gate.refusal(&scene.good("/enforced/")).1, "address_denied");
}
