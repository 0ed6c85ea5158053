//! `[limits] attempts_per_address`: whose refusals count, against whom, and how the end is told.

use std::net::Ipv4Addr;

use super::super::harness::{Answer, Backend, Config, Gate, Handshake, Issuer, Script, eventually};
use super::{Scene, assert_429, from, request};

/// Three refusals, and nobody listens for a minute.
fn limited(config: Config) -> Config {
    config.set("limits.attempts_per_address", "'3/60s'").set("http.auth", "'required'")
}

/// Whether a good upgrade from there is refused for what went before. It counts as nothing itself.
fn is_banned(scene: &Scene, address: &str) -> bool {
    let (mut client, answer) = scene.gate.upgrade(&from(address, scene.good("/ws/")));
    if answer.status != 101 {
        assert_429("attempts_exceeded", &mut client, &answer);
    }
    answer.status != 101
}

fn routes(config: Config) -> Config {
    limited(config)
        .set("listen.hosts", "['chat.example.com']")
        .route("path = '/ws/'")
        .route("path = '/admin/'\nroles = ['admin']")
        .route("path = '/office/'\nallow_addresses = ['192.0.2.0/24']")
        .route("path = '/api/*'")
}

#[test]
fn every_refusal_that_is_the_clients_doing_counts_once_upgrade_or_not() {
    let scene = Scene::behind_a_proxy(routes);
    let to = Handshake::to;
    let expired = scene.issuer.token(&serde_json::json!({"exp": 1}));
    let authorized = scene.bearer();
    let upgrades = [
        (to("/ws/"), 401, "token_missing"),
        (to("/ws/").page(), 101, "token_missing"),
        (to("/ws/").bearer(&expired), 401, "token_expired"),
        (to("/ws/").bearer("x.y.z"), 401, "token_malformed"),
        (scene.good("/ws/?token=other"), 400, "token_ambiguous"),
        (scene.good("/ws/").origin("https://evil.example"), 101, "origin_denied"),
        (scene.good("/office/"), 403, "address_denied"),
        (scene.good("/admin/"), 403, "rule_denied"),
        (scene.good("/nowhere/"), 404, "route_unknown"),
        (scene.good("/ws//"), 400, "request_malformed"),
        (scene.good("/ws/").instead("Host: evil.example"), 400, "host_denied"),
        (scene.good("/ws/").instead("Sec-WebSocket-Key: short"), 400, "upgrade_malformed"),
        (scene.good("/ws/").with("Content-Length: 3"), 400, "upgrade_malformed"),
        (scene.good("/ws/").instead("Sec-WebSocket-Version: 8"), 426, "upgrade_version"),
    ];
    let plain = [
        (("GET", "/api/x", vec![]), 401, "token_missing"),
        (("POST", "/api/x", vec!["Authorization: Bearer x", "Content-Length: 0"]), 401, "token_malformed"),
        (("GET", "/api//x", vec![authorized.as_str()]), 400, "request_malformed"),
        (("GET", "/admin/", vec![authorized.as_str()]), 403, "rule_denied"),
        (("GET", "/api/x", vec!["Host: evil.example"]), 400, "host_denied"),
    ];
    let upgrades = upgrades.into_iter().map(|(h, status, label)| (h.bytes(), status, label));
    let plain =
        plain.into_iter().map(|((m, t, lines), status, label)| (request(m, t, &lines), status, label));
    for (n, (bytes, status, label)) in upgrades.chain(plain).enumerate() {
        let address = format!("203.0.113.{n}");
        let mut bytes = bytes;
        bytes.splice(bytes.len() - 2.., format!("X-Forwarded-For: {address}\r\n\r\n").bytes());
        let before = scene.gate.refused(label);
        for _ in 0..2 {
            assert_eq!(scene.gate.send(&bytes).head().status, status, "{label}");
        }
        assert!(!is_banned(&scene, &address), "{label} counts more than once");
        assert_eq!(scene.gate.send(&bytes).head().status, status, "{label}");
        assert_eq!(scene.gate.refused(label), before + 3, "{label}");
        assert!(is_banned(&scene, &address), "{label} does not count");
    }
    assert!(!is_banned(&scene, "203.0.113.200"), "another address");
    // Each address was let in once, and nothing else of it was heard of.
    assert_eq!(scene.backend.heard().len(), 20);
}

#[test]
fn upgrades_and_plain_requests_are_counted_together_by_all_workers_and_on_one_connection_too() {
    let scene = Scene::behind_a_proxy(|config| limited(config).set("runtime.workers", "2"));
    let address = "203.0.113.7";
    let line = format!("X-Forwarded-For: {address}");
    scene.gate.refusal(&from(address, Handshake::to("/ws/")));
    let kept = format!("GET /x HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n");
    let mut client = scene.gate.client();
    for status in [401, 401, 429, 429] {
        client.send(kept.as_bytes());
        let answer = client.head();
        assert_eq!(answer.status, status);
        client.body(&answer);
    }
    for _ in 0..8 {
        assert!(is_banned(&scene, address));
    }
    // Whoever is banned has no token looked at, good or bad, nor a path.
    for (target, lines) in [("/x", vec![scene.bearer()]), ("/x//", vec![]), ("/x", vec!["Cookie: a".into()])]
    {
        let lines: Vec<&str> = lines.iter().map(String::as_str).chain([line.as_str()]).collect();
        assert_eq!(scene.refusal("GET", target, &lines), (429, "attempts_exceeded".into()), "{target}");
    }
    let malformed = from(address, Handshake::to("/ws/").instead("Sec-WebSocket-Version: 7"));
    assert_eq!(scene.gate.refusal(&malformed), (429, "attempts_exceeded".into()));
    scene.backend.assert_never_heard();
}

#[test]
fn what_never_became_a_request_counts_against_who_sent_it() {
    let scene = Scene::with(|config| {
        let config = config.set("listen.header_timeout", "'800ms'").set("listen.header_size", "'8KiB'");
        limited(config)
    });
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n\r\n", "x".repeat(20_000));
    let kinds: [(&[u8], &str, u64); 6] = [
        (b"NONSENSE\r\n\r\n", "request_malformed", 1),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n", "request_malformed", 2),
        (long.as_bytes(), "request_too_large", 1),
        (b"GET /ws/ HTTP/1.1\r\nHost: a\r\nUpgrade: webso", "header_timeout", 1),
        (b"POST / HTTP/1.1\r\nHost: a\r\n", "header_timeout", 2),
        (b"GET", "header_timeout", 3),
    ];
    let source = |n: usize| Ipv4Addr::new(127, 0, 1, u8::try_from(n + 1).unwrap());
    let banned = |n: usize| {
        let mut client = scene.gate.client_from(source(n));
        client.send(&scene.good("/ws/").bytes());
        client.head().status == 429
    };
    let send = |times: usize, so_far: u64| {
        let mut clients = Vec::new();
        for (n, (bytes, ..)) in kinds.iter().enumerate() {
            for _ in 0..times {
                let mut client = scene.gate.client_from(source(n));
                client.send(bytes);
                clients.push(client);
            }
        }
        for (_, label, nth) in &kinds {
            let all = so_far * kinds.iter().filter(|(_, other, _)| other == label).count() as u64;
            eventually(&format!("{label} {nth}"), || (scene.gate.refused(label) == all).then_some(()));
        }
    };
    send(2, 2);
    for (n, (_, label, nth)) in kinds.iter().enumerate() {
        assert!(!banned(n), "{label} {nth} counts more than once");
    }
    send(1, 3);
    for (n, (_, label, nth)) in kinds.iter().enumerate() {
        assert!(banned(n), "{label} {nth} does not count");
        let lines = scene.lines("handshake_refused");
        let of_it = lines
            .iter()
            .filter(|line| line["address"] == source(n).to_string() && line["reason"] != "attempts_exceeded");
        assert!(of_it.clone().all(|line| line["reason"] == *label));
        assert_eq!(of_it.count(), 3, "{label} {nth}");
    }
    assert!(!banned(200));
    assert_eq!(scene.upgrades("malformed"), 0, "nobody knows what they would have become");
}

#[test]
fn a_connection_that_never_says_a_byte_is_no_attempt() {
    let scene = Scene::with(|config| limited(config).set("listen.header_timeout", "'200ms'"));
    let silent: Vec<_> = (0..5).map(|_| scene.gate.client()).collect();
    for mut client in silent {
        client.ends_silently();
    }
    assert_eq!(scene.gate.upgrade(&scene.good("/ws/")).1.status, 101);
}

#[test]
fn neither_success_nor_what_others_are_to_blame_for_counts() {
    let strange = Issuer::start();
    strange.change(|answers| answers.status = 500);
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::new(&issuer, &backend)
        .issuer(&strange, "")
        .set("limits.attempts_per_address", "'1/60s'")
        .set("upstream.handshake_timeout", "'300ms'")
        .set("limits.sessions_per_user", "1")
        .set("limits.sessions", "2")
        .set("http.unmatched", "'pass'")
        .route("path = '/*'\nhttp = 'pass'")
        .route("path = '/gone/'\n[route.upstream]\nurl = 'http://127.0.0.1:1'\nconnect_timeout = '100ms'");
    let gate = Gate::start_without_keys(&config);
    let scene = Scene { gate, backend, issuer };
    eventually("the keys", || {
        let snapshot = scene.gate.control.gate().snapshot.load_full();
        snapshot.issuers[0].has_had_keys().then_some(())
    });
    let status = |handshake: &Handshake| scene.gate.upgrade(handshake).1.status;
    let good = |sub: &str| scene.of(sub, "/ws/");
    for _ in 0..3 {
        drop(scene.gate.open(&good("alice")));
        eventually("her place", || (scene.gate.sessions() == 0).then_some(()));
    }
    for (script, expected) in [
        (Script::Bytes(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".into()), 403),
        (Script::Bytes(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".into()), 404),
        (Script::Bytes(b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n".into()), 302),
        (Script::Bytes(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".into()), 500),
        (Script::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".into()), 502),
        (Script::Close, 502),
        (Script::Silence, 504),
    ] {
        scene.backend.script(script.clone());
        assert_eq!(status(&good("alice")), expected, "{script:?}");
    }
    scene.backend.script(Script::Echo(Vec::new()));
    assert_eq!(status(&scene.good("/gone/")), 502);
    assert_eq!(status(&Handshake::to("/ws/").bearer(&strange.good_token())), 503, "keys_unavailable");
    for answer in ["401 Unauthorized", "403 Forbidden", "404 Not Found", "500 Oops"] {
        scene.backend.plain(&format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!(scene.ask("GET", "/x", &[]).status.to_string(), answer[..3]);
    }
    let _live = scene.gate.open(&good("alice"));
    assert_eq!(scene.gate.refusal(&good("alice")).1, "user_sessions_exceeded");
    let other = scene.gate.open(&good("bob"));
    assert_eq!(scene.gate.refusal(&good("carol")).1, "sessions_full");
    // A client that goes away in the middle has not been refused.
    scene.backend.hold();
    drop(other);
    eventually("a place", || (scene.gate.sessions() == 1).then_some(()));
    let leaving = scene.gate.send(&good("carol").bytes());
    eventually("her place", || (scene.gate.sessions() == 2).then_some(()));
    drop(leaving);
    eventually("it again", || (scene.gate.sessions() == 1).then_some(()));
    scene.backend.release();
    assert_eq!(scene.gate.control.gate().attempts.tracked(), 0);
    drop(scene.gate.open(&good("bob")));
    // The limit is there: one refusal is enough.
    assert_eq!(status(&Handshake::to("/ws/")), 401);
    assert_eq!(status(&good("bob")), 429);
}

#[test]
fn a_64_of_ipv6_is_one_client_and_a_mapped_address_is_ipv4() {
    let scene = Scene::behind_a_proxy(limited);
    let refuse = |address: &str| scene.gate.refusal(&from(address, Handshake::to("/ws/"))).0;
    for address in ["2001:db8:0:1::1", "[2001:db8:0:1:ffff::2]:4711", "2001:db8::1:0:0:0:3"] {
        assert_eq!(refuse(address), 401, "{address}");
    }
    assert!(is_banned(&scene, "2001:db8:0:1:dead:beef::"));
    assert!(!is_banned(&scene, "2001:db8:0:2::1"));
    assert!(!is_banned(&scene, "2001:db8::1"));
    for address in ["203.0.113.7", "::ffff:203.0.113.7", "203.0.113.7:80"] {
        assert_eq!(refuse(address), 401, "{address}");
    }
    assert!(is_banned(&scene, "203.0.113.7") && is_banned(&scene, "::ffff:203.0.113.7"));
    assert!(!is_banned(&scene, "203.0.113.8") && !is_banned(&scene, "::ffff:203.0.113.8"));
}

#[test]
fn a_ban_ends_with_its_window_whoever_knocks_meanwhile() {
    let scene = Scene::behind_a_proxy(|config| limited(config).set("limits.attempts_per_address", "'3/1s'"));
    let knock = || scene.gate.upgrade(&from("203.0.113.7", Handshake::to("/ws/"))).1.status;
    // However slow this machine is, some three come within a second.
    eventually("the ban", || (knock() == 429).then_some(()));
    // Were the refusals of the banned counted, it would never end.
    eventually("its end", || (knock() == 401).then_some(()));
    assert!(scene.gate.refused("attempts_exceeded") > 2, "nobody knocked");
    scene.backend.assert_never_heard();
    eventually("the next one", || (knock() == 429).then_some(()));
    eventually("the end of that", || (!is_banned(&scene, "203.0.113.7")).then_some(()));
}

#[test]
fn a_ban_is_told_over_http_even_to_pages_unless_a_close_is_forced() {
    for (way, closed) in [("'auto'", false), ("'http'", false), ("'close'", true)] {
        let scene = Scene::behind_a_proxy(|config| limited(config).set("refuse.websocket", way));
        let good = |page: bool| {
            let handshake = from("203.0.113.7", scene.good("/ws/"));
            if page { handshake.page() } else { handshake }
        };
        for _ in 0..3 {
            scene.gate.upgrade(&from("203.0.113.7", Handshake::to("/ws/")));
        }
        for page in [true, false] {
            if closed {
                let told = scene.gate.refusal_by_close(&good(page));
                assert_eq!(told, (4029, "attempts_exceeded".into()), "{way} {page}");
            } else {
                let (mut client, answer) = scene.gate.upgrade(&good(page));
                assert_429("attempts_exceeded", &mut client, &answer);
                assert_eq!(answer.header("connection"), Some("close"));
                assert_eq!(client.rest(), b"");
            }
        }
        let plain: Answer = scene.ask("GET", "/x", &["X-Forwarded-For: 203.0.113.7", &scene.bearer()]);
        assert_eq!((plain.status, plain.header("retry-after")), (429, Some("5")), "{way}");
        assert_eq!((scene.upgrades("limited"), scene.gate.refused("attempts_exceeded")), (2, 3), "{way}");
        scene.backend.assert_never_heard();
    }
}

#[test]
fn a_trusted_proxy_that_names_nobody_is_never_banned() {
    let scene = Scene::behind_a_proxy(limited);
    for lines in [
        &[][..],
        &["X-Forwarded-For: unknown"],
        &["X-Forwarded-For: 203.0.113.7, garbage"],
        &["X-Forwarded-For: 10.0.0.1, 10.0.0.2"],
        &["Forwarded: for=203.0.113.7"],
        &["X-Real-IP: 203.0.113.7"],
    ] {
        for _ in 0..5 {
            assert_eq!(scene.refusal("GET", "/x", lines), (401, "token_missing".into()), "{lines:?}");
            let upgrade = lines.iter().fold(Handshake::to("/ws/"), |handshake, line| handshake.with(line));
            assert_eq!(scene.gate.refusal(&upgrade), (401, "token_missing".into()), "{lines:?}");
        }
    }
    assert_eq!(scene.gate.send(b"NONSENSE\r\n\r\n").head().status, 400);
    assert_eq!(scene.gate.control.gate().attempts.tracked(), 0);
    // The same without trust in it is a client like any other.
    let direct = Scene::with(limited);
    let statuses: Vec<u16> = (0..4).map(|_| direct.refusal("GET", "/x", &[]).0).collect();
    assert_eq!(statuses, [401, 401, 401, 429]);
}
