//! `[cors]` on our own refusals: a page that may not read them cannot know what to do.

use super::super::harness::{Answer, Backend, Config, Gate, Handshake, Issuer, Script};
use super::Scene;
use super::preflights::cors;

const PAGE: &str = "Origin: https://app.example.org";

fn shared(answer: &Answer, status: u16, what: &str) {
    assert_eq!(answer.status, status, "{what}");
    assert_eq!(
        cors(answer),
        [
            "access-control-allow-credentials: true",
            "access-control-allow-origin: https://app.example.org",
            "access-control-expose-headers: x-total",
            "vary: Origin",
        ],
        "{what}"
    );
}

fn with_cors(config: Config) -> Config {
    config
        .set("origin.allow", "['https://app.example.org']")
        .set("cors.allow_credentials", "true")
        .set("cors.expose_headers", "['x-total']")
}

#[test]
fn every_refusal_can_be_read_by_the_page_that_is_listed_and_by_no_other() {
    let strange = Issuer::start();
    strange.change(|answers| answers.status = 500);
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = with_cors(Config::new(&issuer, &backend).issuer(&strange, ""))
        .set("http.unmatched", "'refuse'")
        .set("listen.hosts", "['chat.example.com']")
        .route("path = '/api/*'")
        .route("path = '/admin/'\nroles = ['admin']")
        .route("path = '/gone/'\n[route.upstream]\nurl = 'http://127.0.0.1:1'\nconnect_timeout = '50ms'");
    let gate = Gate::start_without_keys(&config);
    super::super::harness::eventually("the keys", || {
        gate.control.gate().snapshot.load().issuers[0].has_had_keys().then_some(())
    });
    let scene = Scene { gate, backend, issuer };
    let good = scene.bearer();
    let unknown = format!("Authorization: Bearer {}", strange.good_token());
    for (path, lines, status) in [
        ("/api/x", vec![], 401),
        ("/api/x", vec!["Authorization: Bearer x"], 401),
        ("/admin/", vec![good.as_str()], 403),
        ("/nowhere", vec![], 404),
        ("/api//x", vec![], 400),
        ("/api/x?token=y", vec![good.as_str()], 400),
        ("/api/x", vec![unknown.as_str()], 503),
        ("/gone/", vec![good.as_str()], 502),
        ("/api/x", vec!["Host: evil.example"], 400),
    ] {
        let with = |origin: &'static str| {
            let lines: Vec<&str> = lines.iter().copied().chain([origin]).collect();
            scene.ask("GET", path, &lines)
        };
        let what = format!("{path} {status}");
        shared(&with(PAGE), status, &what);
        for origin in ["Origin: https://evil.example", "Origin: null", "X-None: x"] {
            let answer = with(origin);
            assert_eq!(
                (answer.status, cors(&answer)),
                (status, vec!["vary: Origin".into()]),
                "{what} {origin}"
            );
        }
    }
    scene.backend.assert_never_heard();
}

#[test]
fn too_many_attempts_and_a_drain_can_be_read_too() {
    let scene = Scene::with(|config| with_cors(config).set("limits.attempts_per_address", "'1/60s'"));
    assert_eq!(scene.ask("GET", "/x//", &[]).status, 400);
    shared(&scene.ask("GET", "/x", &[PAGE]), 429, "plain");
    let (_, answer) = scene.gate.upgrade(&scene.good("/ws/").origin("https://app.example.org"));
    shared(&answer, 429, "upgrade");

    let scene = Scene::with(|config| with_cors(config).set("drain.deadline", "'4s'"));
    let session = scene.gate.open(&scene.good("/ws/"));
    scene.gate.control.drain();
    super::super::harness::eventually("the drain", || {
        scene.gate.control.gate().lifecycle.refuses().then_some(())
    });
    shared(&scene.ask("GET", "/x", &[PAGE]), 503, "drain");
    drop(session);
}

#[test]
fn refusals_of_upgrades_over_http_can_be_read_too_and_a_101_says_nothing() {
    let scene = Scene::with(|config| with_cors(config).set("refuse.websocket", "'http'"));
    let page = |handshake: Handshake| scene.gate.upgrade(&handshake.origin("https://app.example.org")).1;
    shared(&page(Handshake::to("/ws/")), 401, "token_missing");
    shared(&page(scene.good("/ws/").instead("Sec-WebSocket-Version: 7")), 426, "upgrade_version");
    shared(&page(scene.good("/ws//")), 400, "request_malformed");
    scene.backend.script(Script::Bytes(
        b"HTTP/1.1 403 Forbidden\r\nAccess-Control-Allow-Origin: *\r\nVary: Origin\r\nContent-Length: 0\r\n\r\n".into(),
    ));
    shared(&page(scene.good("/ws/")), 403, "the backend's own");
    let (_, evil) = scene.gate.upgrade(&scene.good("/ws/").origin("https://evil.example"));
    assert_eq!((evil.status, cors(&evil)), (403, vec!["vary: Origin".to_owned()]));

    let scene = Scene::with(with_cors);
    let answer = page_of(&scene, Handshake::to("/ws/"));
    assert_eq!((answer.status, cors(&answer)), (101, Vec::new()), "accepted to be closed");
    let answer = page_of(&scene, scene.good("/ws/"));
    assert_eq!((answer.status, cors(&answer)), (101, Vec::new()));
}

fn page_of(scene: &Scene, handshake: Handshake) -> Answer {
    scene.gate.upgrade(&handshake.origin("https://app.example.org")).1
}

#[test]
fn a_refusal_wears_the_cors_of_its_route() {
    let scene = Scene::with(|config| {
        let config = config.set("origin.allow", "['https://app.example.org']").route("path = '/bare/'");
        config.route("path = '/api/*'\n[route.cors]\nallow_credentials = true\nexpose_headers = ['x-total']")
    });
    shared(&scene.ask("GET", "/api/x", &[PAGE]), 401, "its own");
    assert_eq!(cors(&scene.ask("GET", "/bare/", &[PAGE])), [""; 0], "another's");
}

#[test]
fn so_does_one_that_came_before_the_route_was_looked_for() {
    let own = "path = '/api/*'\n[route.cors]\nallow_credentials = true\nexpose_headers = ['x-total']";
    let config = |config: Config| config.set("origin.allow", "['https://app.example.org']").route(own);
    let scene = Scene::with(|c| config(c).set("limits.attempts_per_address", "'1/60s'"));
    assert_eq!(scene.ask("GET", "/api/x", &[]).status, 401);
    shared(&scene.ask("GET", "/api/x", &[PAGE]), 429, "attempts_exceeded");
    let scene = Scene::with(|c| config(c).set("drain.deadline", "'4s'"));
    let session = scene.gate.open(&scene.good("/api/"));
    scene.gate.control.drain();
    super::super::harness::eventually("the drain", || {
        scene.gate.control.gate().lifecycle.refuses().then_some(())
    });
    shared(&scene.ask("GET", "/api/x", &[PAGE]), 503, "draining");
    drop(session);
}
