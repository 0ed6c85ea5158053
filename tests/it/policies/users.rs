//! `[limits] sessions_per_user`, where one too many is refused.

use serde_json::json;

use super::super::harness::{Backend, Client, Config, Gate, Handshake, Issuer, eventually, masked};
use super::{Scene, assert_429};

fn limit(config: Config, limit: u32) -> Config {
    config.set("limits.sessions_per_user", &limit.to_string())
}

/// Users with a place taken.
fn users(scene: &Scene) -> usize {
    scene.gate.control.gate().users.keys()
}

/// Refused, as a program and as a page are told.
fn assert_refused(scene: &Scene, handshake: &Handshake) {
    let (mut client, answer) = scene.gate.upgrade(handshake);
    assert_429("user_sessions_exceeded", &mut client, &answer);
    let told = scene.gate.refusal_by_close(&handshake.clone().page());
    assert_eq!(told, (4029, "user_sessions_exceeded".into()));
}

#[test]
fn one_too_many_is_refused_and_a_written_close_makes_room() {
    let scene = Scene::with(|config| limit(config, 2).set("session.close_timeout", "'4s'"));
    let alice = || scene.of("alice", "/ws/");
    let (mut first, mut second) = (scene.gate.open(&alice()), scene.gate.open(&alice().page()));
    assert_refused(&scene, &alice());
    assert_eq!(scene.backend.connections(), 2, "the backend heard of one that was refused");
    let mut bob = scene.gate.open(&scene.of("bob", "/ws/"));
    for client in [&mut first, &mut second, &mut bob] {
        Gate::assert_echo(client);
    }
    // She says goodbye, but does not end her connection.
    first.send(&masked(0x88, &[0x03, 0xe8]));
    assert_eq!(first.close().0, 1000);
    eventually("the end of the session", || (scene.gate.sessions() == 2).then_some(()));
    assert_eq!(scene.gate.control.gate().connections.taken(), 3, "all connections are still there");
    Gate::assert_echo(&mut scene.gate.open(&alice()));
    eventually("its end", || (scene.gate.sessions() == 2).then_some(()));
    assert_eq!(scene.gate.refused("user_sessions_exceeded"), 2);
    assert_eq!((scene.upgrades("limited"), scene.upgrades("accepted")), (2, 4));
    for client in [second, bob] {
        drop(client);
    }
    eventually("all to be let go", || (users(&scene) == 0).then_some(()));
}

#[test]
fn a_session_that_the_gate_ends_gives_its_place_back_with_its_close() {
    let scene = Scene::with(|config| {
        limit(config, 1).set("session.close_timeout", "'4s'").set("limits.message", "'1KiB'")
    });
    let mut client = scene.gate.open(&scene.of("alice", "/ws/"));
    client.send(&masked(0x82, &[0; 2000]));
    assert_eq!(client.close(), (1009, "message_too_big".into()));
    eventually("her place", || (users(&scene) == 0).then_some(()));
    assert_eq!(scene.gate.control.gate().connections.taken(), 1, "she has not ended her connection");
    Gate::assert_echo(&mut scene.gate.open(&scene.of("alice", "/ws/")));
}

#[test]
fn an_upgrade_that_comes_later_on_its_connection_is_limited_alike() {
    let scene = Scene::with(|config| limit(config, 1));
    let mut live = scene.gate.open(&scene.of("alice", "/ws/"));
    for page in [false, true] {
        let mut client = scene.gate.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = client.head();
        assert_eq!(client.body(&answer), b"plain");
        let handshake = scene.of("alice", "/ws/");
        client.send(&if page { handshake.page() } else { handshake }.bytes());
        let answer = client.head();
        if page {
            assert_eq!(answer.status, 101);
            assert_eq!(client.close(), (4029, "user_sessions_exceeded".into()));
        } else {
            assert_429("user_sessions_exceeded", &mut client, &answer);
        }
    }
    Gate::assert_echo(&mut live);
}

#[test]
fn a_handshake_that_fails_gives_its_place_back() {
    use super::super::harness::Script;
    let scene =
        Scene::with(|config| limit(config, 1).route("path = '/*'").route("path = '/a/'\nroles = ['a']"));
    for _ in 0..3 {
        scene.backend.script(Script::Bytes(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".into()));
        assert_eq!(scene.gate.upgrade(&scene.of("alice", "/ws/")).1.status, 403);
        assert_eq!(scene.gate.refusal(&scene.of("alice", "/a/")), (403, "rule_denied".into()));
        scene.backend.script(Script::Silence);
        let client = scene.gate.send(&scene.of("alice", "/ws/").bytes());
        eventually("her place", || (users(&scene) == 1).then_some(()));
        drop(client);
        eventually("her place to be free", || (users(&scene) == 0).then_some(()));
    }
    scene.backend.script(Script::Echo(Vec::new()));
    Gate::assert_echo(&mut scene.gate.open(&scene.of("alice", "/ws/")));
}

#[test]
fn of_fifty_at_once_no_more_than_the_limit_get_in() {
    for page in [false, true] {
        let scene = Scene::with(|config| limit(config, 3).set("runtime.workers", "2"));
        scene.backend.hold();
        let handshake = scene.of("alice", "/ws/");
        let handshake = if page { handshake.page() } else { handshake };
        let mut clients: Vec<Client> = std::thread::scope(|scope| {
            let sent: Vec<_> = (0..50).map(|_| scope.spawn(|| scene.gate.send(&handshake.bytes()))).collect();
            sent.into_iter().map(|sent| sent.join().unwrap()).collect()
        });
        eventually("the refusals", || (scene.gate.refused("user_sessions_exceeded") == 47).then_some(()));
        scene.backend.request(2);
        assert_eq!(scene.backend.connections(), 3);
        scene.backend.release();
        let mut live = 0;
        for client in &mut clients {
            let answer = client.head();
            if answer.status == 429 {
                continue;
            }
            assert_eq!(answer.status, 101);
            assert!(client.try_send(&masked(0x81, b"in")));
            let frame = client.frame();
            match frame.close() {
                None => live += u32::from(frame.payload == b"in"),
                Some(told) => assert_eq!(told, (4029, "user_sessions_exceeded".into())),
            }
        }
        assert_eq!((live, scene.gate.sessions()), (3, 3));
    }
}

#[test]
fn the_same_sub_of_two_issuers_is_two_users() {
    for way in ["'refuse'", "'close_oldest'"] {
        let (one, other, backend) = (Issuer::start(), Issuer::start(), Backend::start());
        let config =
            limit(Config::new(&one, &backend).issuer(&other, ""), 1).set("limits.on_user_limit", way);
        let scene = Scene { gate: Gate::start(&config), backend, issuer: one };
        let of = |issuer: &Issuer| Handshake::to("/ws/").bearer(&issuer.good_token());
        let mut clients = [&scene.issuer, &other].map(|issuer| scene.gate.open(&of(issuer)));
        clients.iter_mut().for_each(Gate::assert_echo);
        assert_eq!(users(&scene), 2);
        // The next one concerns its own user alone.
        let next = scene.gate.upgrade(&of(&other));
        let [first, second] = &mut clients;
        Gate::assert_echo(first);
        if way == "'refuse'" {
            assert_eq!(next.1.status, 429);
            Gate::assert_echo(second);
        } else {
            assert_eq!(second.close().0, 4029);
        }
    }
}

#[test]
fn a_routes_own_limit_counts_its_sessions_alone_and_the_roots_those_of_all_that_inherit() {
    let scene = Scene::with(|config| {
        limit(config, 2)
            .route("path = '/a/'")
            .route("path = '/b/'\n[route.limits]\nmessage = '1KiB'")
            .route("path = '/own/'\n[route.limits]\nsessions_per_user = 1")
            .route("path = '/other/'\n[route.limits]\nsessions_per_user = 1")
            .route("path = '/any/'\n[route.limits]\nsessions_per_user = 'off'")
    });
    let to = |target: &str| scene.of("alice", target);
    let mut live = vec![scene.gate.open(&to("/own/")), scene.gate.open(&to("/other/"))];
    live.extend((0..3).map(|_| scene.gate.open(&to("/any/"))));
    live.extend([scene.gate.open(&to("/a/")), scene.gate.open(&to("/b/"))]);
    live.iter_mut().for_each(Gate::assert_echo);
    for full in ["/a/", "/b/", "/own/", "/other/"] {
        assert_refused(&scene, &to(full));
    }
    live.push(scene.gate.open(&to("/any/")));
    assert_eq!(scene.gate.sessions(), 8);
    // Room under the root's limit is room on any route that inherits it.
    drop(live.remove(5));
    eventually("the place of /a/", || (scene.gate.sessions() == 7).then_some(()));
    Gate::assert_echo(&mut scene.gate.open(&to("/b/")));
}

#[test]
fn who_is_nobody_has_no_limit() {
    for way in ["'refuse'", "'close_oldest'"] {
        let scene = Scene::with(|config| {
            limit(config, 1)
                .set("limits.on_user_limit", way)
                .route("path = '/*'\nauth = 'optional'")
                .route("path = '/none/'\nauth = 'none'")
        });
        let without_sub = Handshake::to("/ws/").bearer(&scene.issuer.token(&json!({"sub": null})));
        let kinds = [Handshake::to("/ws/"), scene.good("/none/"), without_sub];
        let mut live: Vec<Client> =
            kinds.iter().flat_map(|kind| [kind; 3]).map(|kind| scene.gate.open(kind)).collect();
        live.iter_mut().for_each(Gate::assert_echo);
        assert_eq!((scene.gate.sessions(), users(&scene)), (9, 0));
        // Who is somebody on the same route has one.
        live.push(scene.gate.open(&scene.good("/ws/")));
        assert_eq!(users(&scene), 1);
    }
}

#[test]
fn in_shadow_mode_nobody_is_refused_or_closed_and_it_is_told() {
    for way in ["'refuse'", "'close_oldest'"] {
        let scene = Scene::with(|config| {
            let config = limit(config, 1).set("limits.on_user_limit", way);
            config.route("path = '/*'\nmode = 'shadow'").route("path = '/enforced/'")
        });
        let mut live: Vec<Client> = (0..3).map(|_| scene.gate.open(&scene.of("alice", "/ws/"))).collect();
        assert_eq!(scene.would_refuse("user_sessions_exceeded"), 2, "{way}");
        let opened = scene.lines("session_opened");
        let told: Vec<_> = opened.iter().map(|line| line.get("would_refuse").is_some()).collect();
        assert_eq!(told, [false, true, true], "{way}");
        // Where it is enforced she is refused, but not even then is a session in shadow mode closed.
        assert_refused(&scene, &scene.of("alice", "/enforced/"));
        live.iter_mut().for_each(Gate::assert_echo);
        assert_eq!(scene.gate.sessions(), 3);
        assert_eq!(scene.gate.refused("user_sessions_exceeded"), 2);
        // Nor does one in shadow mode close one where it is enforced.
        live.push(scene.gate.open(&scene.of("bob", "/enforced/")));
        live.push(scene.gate.open(&scene.of("bob", "/ws/")));
        assert_eq!(scene.would_refuse("user_sessions_exceeded"), 3, "{way}");
        live.iter_mut().for_each(Gate::assert_echo);
    }
}
