//! `[limits] sessions_per_address`.

use super::super::harness::{Client, Config, Gate, Handshake, Script, eventually, masked};
use super::{Scene, assert_429, from};

fn limit(config: Config, limit: u32) -> Config {
    config.set("limits.sessions_per_address", &limit.to_string())
}

fn addresses(scene: &Scene) -> usize {
    scene.gate.control.gate().addresses.keys()
}

fn assert_refused(scene: &Scene, handshake: &Handshake) {
    let (mut client, answer) = scene.gate.upgrade(handshake);
    assert_429("address_sessions_exceeded", &mut client, &answer);
    let told = scene.gate.refusal_by_close(&handshake.clone().page());
    assert_eq!(told, (4029, "address_sessions_exceeded".into()));
}

#[test]
fn one_too_many_of_an_address_is_refused_whoever_it_is_and_a_close_makes_room() {
    let scene = Scene::behind_a_proxy(|config| limit(config, 2).set("session.close_timeout", "'4s'"));
    let here = |sub: &str| from("203.0.113.7", scene.of(sub, "/ws/"));
    let mut first = scene.gate.open(&here("alice"));
    let mut second = scene.gate.open(&here("bob"));
    assert_refused(&scene, &here("carol"));
    assert_eq!(scene.backend.connections(), 2);
    let mut elsewhere = scene.gate.open(&from("203.0.113.8", scene.of("alice", "/ws/")));
    for client in [&mut first, &mut second, &mut elsewhere] {
        Gate::assert_echo(client);
    }
    first.send(&masked(0x88, &[0x03, 0xe8]));
    assert_eq!(first.close().0, 1000);
    eventually("the end of the session", || (scene.gate.sessions() == 2).then_some(()));
    assert_eq!(scene.gate.control.gate().connections.taken(), 3, "its connection is still there");
    Gate::assert_echo(&mut scene.gate.open(&here("carol")));
    assert_eq!(scene.gate.refused("address_sessions_exceeded"), 2);
    assert_eq!((scene.upgrades("limited"), scene.upgrades("accepted")), (2, 4));
    drop((first, second, elsewhere));
    eventually("all to be let go", || (addresses(&scene) == 0).then_some(()));
}

#[test]
fn who_connects_directly_is_counted_by_the_socket_and_a_64_is_one_address() {
    let scene = Scene::with(|config| limit(config, 1));
    let status = |source: [u8; 4], claimed: &str| {
        let mut client = scene.gate.client_from(source.into());
        client.send(&from(claimed, scene.good("/ws/")).bytes());
        (client.head().status, client)
    };
    let (first, _here) = status([127, 0, 0, 1], "203.0.113.1");
    let (second, _) = status([127, 0, 0, 1], "203.0.113.2");
    let (third, _there) = status([127, 0, 0, 2], "203.0.113.1");
    assert_eq!((first, second, third), (101, 429, 101));
    let behind = Scene::behind_a_proxy(|config| limit(config, 1));
    let _live = behind.gate.open(&from("2001:db8::1", behind.good("/ws/")));
    assert_refused(&behind, &from("2001:db8::ffff:0:0:2", behind.good("/ws/")));
    Gate::assert_echo(&mut behind.gate.open(&from("2001:db8:0:1::1", behind.good("/ws/"))));
}

#[test]
fn a_handshake_that_fails_gives_its_place_back() {
    let scene = Scene::with(|config| limit(config, 1).set("limits.sessions_per_user", "1"));
    for _ in 0..3 {
        scene.backend.script(Script::Bytes(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".into()));
        assert_eq!(scene.gate.upgrade(&scene.good("/ws/")).1.status, 403);
        assert_eq!(scene.gate.upgrade(&Handshake::to("/ws/")).1.status, 401);
        scene.backend.script(Script::Silence);
        let client = scene.gate.send(&scene.good("/ws/").bytes());
        eventually("a place", || (addresses(&scene) == 1).then_some(()));
        drop(client);
        eventually("the place to be free", || (addresses(&scene) == 0).then_some(()));
    }
    scene.backend.script(Script::Echo(Vec::new()));
    Gate::assert_echo(&mut scene.gate.open(&scene.good("/ws/")));
}

#[test]
fn of_fifty_at_once_no_more_than_the_limit_get_in() {
    let scene = Scene::with(|config| limit(config, 3).set("runtime.workers", "2"));
    scene.backend.hold();
    let bytes = scene.good("/ws/").bytes();
    let mut clients: Vec<Client> = std::thread::scope(|scope| {
        let sent: Vec<_> = (0..50).map(|_| scope.spawn(|| scene.gate.send(&bytes))).collect();
        sent.into_iter().map(|sent| sent.join().unwrap()).collect()
    });
    eventually("the refusals", || (scene.gate.refused("address_sessions_exceeded") == 47).then_some(()));
    scene.backend.request(2);
    assert_eq!(scene.backend.connections(), 3);
    scene.backend.release();
    let statuses: Vec<u16> = clients.iter_mut().map(|client| client.head().status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 101).count(), 3, "{statuses:?}");
}

#[test]
fn a_routes_own_limit_counts_its_sessions_alone_and_the_roots_those_of_all_that_inherit() {
    let scene = Scene::with(|config| {
        limit(config, 2)
            .route("path = '/a/'")
            .route("path = '/b/'\n[route.limits]\nmessage = '1KiB'")
            .route("path = '/own/'\n[route.limits]\nsessions_per_address = 1")
            .route("path = '/any/'\nauth = 'none'\n[route.limits]\nsessions_per_address = 'off'")
    });
    let to = |target: &str| scene.good(target);
    let mut live: Vec<Client> =
        ["/any/", "/own/", "/a/", "/b/", "/any/"].map(|target| scene.gate.open(&to(target))).into();
    for full in ["/a/", "/b/", "/own/"] {
        assert_refused(&scene, &to(full));
    }
    live.iter_mut().for_each(Gate::assert_echo);
    assert_eq!(scene.gate.sessions(), 5);
}

#[test]
fn in_shadow_mode_nobody_is_refused_and_it_is_told() {
    let scene = Scene::with(|config| limit(config, 1).route("path = '/*'\nmode = 'shadow'"));
    let mut live: Vec<Client> = (0..3).map(|_| scene.gate.open(&scene.good("/ws/"))).collect();
    live.iter_mut().for_each(Gate::assert_echo);
    assert_eq!(scene.would_refuse("address_sessions_exceeded"), 2);
    assert_eq!(scene.gate.refused("address_sessions_exceeded"), 0);
}

#[test]
fn a_trusted_proxy_that_names_nobody_is_no_address() {
    let scene = Scene::behind_a_proxy(|config| limit(config, 1));
    let mut live: Vec<Client> = (0..3).map(|_| scene.gate.open(&scene.good("/ws/"))).collect();
    live.iter_mut().for_each(Gate::assert_echo);
}
