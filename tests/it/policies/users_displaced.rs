//! `on_user_limit = "close_oldest"`: whoever comes last is let in.

use serde_json::json;

use super::super::harness::{Client, Config, Gate, Handshake, Script, eventually, masked};
use super::Scene;

const TOLD: (u16, &str) = (4029, "user_sessions_exceeded");

fn limit(config: Config, limit: u32) -> Config {
    config.set("limits.sessions_per_user", &limit.to_string()).set("limits.on_user_limit", "'close_oldest'")
}

fn told((code, label): &(u16, String)) -> (u16, &str) {
    (*code, label)
}

#[test]
fn the_oldest_is_closed_and_told_and_the_new_one_works() {
    let scene = Scene::behind_a_proxy(|config| limit(config, 2));
    let alice = |n: u8| super::from(&format!("203.0.113.{n}"), scene.of("alice", "/ws/"));
    let mut bob = scene.gate.open(&scene.of("bob", "/ws/"));
    let mut live: Vec<Client> = (1..=2).map(|n| scene.gate.open(&alice(n))).collect();
    for n in 3..=5 {
        live.push(scene.gate.open(&alice(n)));
        let mut oldest = live.remove(0);
        assert_eq!(told(&oldest.close()), TOLD);
        assert_eq!(oldest.rest(), b"");
        live.iter_mut().for_each(Gate::assert_echo);
        eventually("its end", || (scene.gate.sessions() == 3).then_some(()));
    }
    Gate::assert_echo(&mut bob);
    // The backend of the oldest was told as well: a masked Close of 1001.
    let heard = scene.backend.until(1, "a Close", |heard| heard.after.len() > 2);
    assert_eq!(heard.after[..2], [0x88, 0x98], "{:?}", heard.after);
    let closed = scene.lines("session_closed");
    let addresses: Vec<_> = closed.iter().map(|line| line["address"].as_str().unwrap()).collect();
    assert_eq!(addresses, ["203.0.113.1", "203.0.113.2", "203.0.113.3"]);
    for line in &closed {
        assert_eq!((&line["reason"], &line["code"]), (&json!("user_sessions_exceeded"), &json!(4029)));
        assert_eq!(line["sub"], "alice");
    }
    assert_eq!(scene.gate.metric("websocket_closes_total{reason=\"user_sessions_exceeded\"}"), 3);
    assert_eq!(scene.gate.refused("user_sessions_exceeded"), 0);
    assert_eq!((scene.upgrades("accepted"), scene.upgrades("limited")), (6, 0));
}

#[test]
fn a_handshake_that_still_dials_gives_way_too() {
    let scene = Scene::behind_a_proxy(|config| limit(config, 1));
    scene.backend.hold();
    let alice = |n: u8| super::from(&format!("203.0.113.{n}"), scene.of("alice", "/ws/"));
    let mut program = scene.gate.send(&alice(1).bytes());
    scene.backend.request(0);
    let mut page = scene.gate.send(&alice(2).page().bytes());
    scene.backend.request(1);
    let mut last = scene.gate.send(&alice(3).bytes());
    scene.backend.request(2);
    let answer = program.head();
    super::assert_429("user_sessions_exceeded", &mut program, &answer);
    assert_eq!(page.head().status, 101);
    assert_eq!(told(&page.close()), TOLD);
    for n in [0, 1] {
        let heard = scene.backend.request(n);
        assert!(heard.after.is_empty(), "{heard:?}");
    }
    scene.backend.release();
    assert_eq!(last.head().status, 101);
    Gate::assert_echo(&mut last);
    assert_eq!(scene.gate.refused("user_sessions_exceeded"), 2);
    assert_eq!((scene.upgrades("accepted"), scene.upgrades("limited")), (1, 2));
    let refused = scene.lines("handshake_refused");
    let told: Vec<_> = refused.iter().map(|line| (&line["address"], &line["reason"])).collect();
    let reason = json!("user_sessions_exceeded");
    assert_eq!(told, [(&json!("203.0.113.1"), &reason), (&json!("203.0.113.2"), &reason)]);
}

#[test]
fn of_fifty_at_once_so_many_as_the_limit_stay_and_all_others_are_told() {
    let scene = Scene::with(|config| limit(config, 3).set("runtime.workers", "2"));
    let handshake = scene.of("alice", "/ws/");
    let mut answered: Vec<(Client, u16)> = std::thread::scope(|scope| {
        let upgrade = || {
            let (client, answer) = scene.gate.upgrade(&handshake);
            (client, answer.status)
        };
        let all: Vec<_> = (0..50).map(|_| scope.spawn(upgrade)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    eventually("the others to end", || (scene.gate.sessions() == 3).then_some(()));
    let (mut live, mut closed, mut refused) = (0, 0, 0);
    for (client, status) in &mut answered {
        match status {
            429 => refused += 1,
            101 => {
                let _ = client.try_send(&masked(0x81, b"in"));
                let frame = client.frame();
                match frame.close() {
                    None => live += u64::from(frame.payload == b"in"),
                    Some(close) => {
                        assert_eq!(told(&close), TOLD);
                        closed += 1;
                    }
                }
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!((live, closed + refused), (3, 47));
    assert_eq!(scene.gate.refused("user_sessions_exceeded"), refused);
    assert_eq!(scene.gate.metric("websocket_closes_total{reason=\"user_sessions_exceeded\"}"), closed);
    assert_eq!((scene.upgrades("accepted"), scene.upgrades("limited")), (50 - refused, refused));
    drop(answered);
    eventually("all to be let go", || (scene.gate.control.gate().users.keys() == 0).then_some(()));
}

#[test]
fn nobody_who_is_refused_pushes_anybody_out() {
    let scene = Scene::with(|config| {
        limit(config, 1)
            .route("path = '/*'")
            .route("path = '/admin/'\nroles = ['admin']")
            .route("path = '/office/'\nallow_addresses = ['192.0.2.0/24']")
    });
    let mut alice = scene.gate.open(&scene.of("alice", "/ws/"));
    let token = |changes| Handshake::to("/ws/").bearer(&scene.issuer.token(&changes));
    for (handshake, label) in [
        (token(json!({"sub": "alice", "exp": 1})), "token_expired"),
        (token(json!({"sub": "alice", "aud": "other"})), "token_audience"),
        (scene.of("alice", "/admin/"), "rule_denied"),
        (scene.of("alice", "/office/"), "address_denied"),
        (scene.of("alice", "/ws/").bearer("x"), "token_ambiguous"),
        (scene.of("alice", "/ws/").instead("Sec-WebSocket-Version: 7"), "upgrade_version"),
    ] {
        assert_eq!(scene.gate.refusal(&handshake).1, label);
    }
    let foreign = scene.of("alice", "/ws/").origin("https://evil.example");
    assert_eq!(scene.gate.refusal_by_close(&foreign), (4003, "origin_denied".into()));
    Gate::assert_echo(&mut alice);
    assert_eq!(scene.backend.connections(), 1);
}

#[test]
fn a_route_with_its_own_limit_closes_none_of_another_route() {
    let scene = Scene::with(|config| {
        limit(config, 1)
            .route("path = '/a/'")
            .route("path = '/own/'\n[route.limits]\nsessions_per_user = 1")
            .route("path = '/any/'\n[route.limits]\nsessions_per_user = 'off'")
    });
    let to = |target: &str| scene.gate.open(&scene.of("alice", target));
    let (mut any, mut a, mut own) = (to("/any/"), to("/a/"), to("/own/"));
    let mut next = to("/own/");
    assert_eq!(told(&own.close()), TOLD);
    for client in [&mut any, &mut a, &mut next] {
        Gate::assert_echo(client);
    }
    let mut last = to("/a/");
    assert_eq!(told(&a.close()), TOLD);
    for client in [&mut any, &mut next, &mut last] {
        Gate::assert_echo(client);
    }
}

#[test]
fn the_displaced_reaches_the_backend_no_more() {
    let scene = Scene::with(|config| limit(config, 1));
    scene.backend.script(Script::Listen(Vec::new()));
    let mut oldest = scene.gate.open(&scene.of("alice", "/ws/"));
    let before = masked(0x81, b"in time");
    oldest.send(&before);
    scene.backend.until(0, "what she says", |heard| heard.after.len() == before.len());
    scene.backend.script(Script::Echo(Vec::new()));
    Gate::assert_echo(&mut scene.gate.open(&scene.of("alice", "/ws/")));
    // It goes on talking whether it has read its Close or not.
    for _ in 0..5 {
        oldest.try_send(&masked(0x81, b"too late"));
    }
    assert_eq!(told(&oldest.close()), TOLD);
    let heard = scene.backend.until(0, "the end", |heard| heard.ended);
    let after = &heard.after[before.len()..];
    assert_eq!((after[0], after.len()), (0x88, 6 + 24), "{after:?}");
}
