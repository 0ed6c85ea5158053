//! Handshakes that are under way when the configuration is swapped, and storms of both.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;

use super::super::harness::{
    Backend, Client, Config, Followed, Gate, Handshake, Issuer, Key, Script, eventually,
};
use super::outcome;

fn page(issuer: &Issuer) -> Handshake {
    Handshake::to("/").page().bearer(&issuer.good_token())
}

/// The Close of a page that was refused.
fn refused(client: &mut Client) -> String {
    assert_eq!(client.head().status, 101);
    let (code, label) = client.close();
    format!("{code} {label}")
}

fn nothing_is_left(gate: &Gate) {
    eventually("all to be let go", || {
        let inner = gate.control.gate();
        let left =
            (inner.sessions.count(), inner.permits.taken(), inner.users.keys(), inner.addresses.keys());
        (left == (0, 0, 0, 0)).then_some(())
    });
    eventually("connections to be let go", || (gate.control.gate().connections.taken() == 0).then_some(()));
    assert_eq!(gate.metric("websocket_active_connections"), 0);
    assert_eq!(gate.metric("websocket_connected_users"), 0);
}

#[test]
fn a_handshake_whose_backend_holds_its_answer_is_judged_by_the_new_configuration() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |lines: &str| Config::new(&issuer, &backend).route(&format!("path = '/'\n{lines}"));
    let gate = Followed::start(&config(""));
    backend.hold();
    let mut waiting = [(); 3].map(|()| gate.send(&page(&issuer).bytes()));
    backend.request(2);
    assert_eq!(gate.sessions(), 3, "they are past their verdict");
    gate.reload(&config("roles = ['admin']"));
    // Told at once, while the backend still thinks.
    for client in &mut waiting {
        assert_eq!(refused(client), "4003 rule_denied");
    }
    backend.release();
    for n in 0..3 {
        let heard = backend.until(n, "the end of its connection", |heard| heard.ended);
        assert_eq!(heard.after, b"", "the backend got something of a client that was refused");
    }
    assert_eq!(gate.refused("rule_denied"), 3);
    assert_eq!(gate.metric("websocket_connections_total{status=\"forbidden\"}"), 3);
    assert_eq!(gate.metric("websocket_connections_total{status=\"accepted\"}"), 0);
    assert!(!gate.log_text().contains("session_opened"));
    drop(waiting);
    nothing_is_left(&gate);
}

#[test]
fn a_handshake_whose_backend_holds_its_answer_and_that_is_still_allowed_goes_on() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |lines: &str| Config::new(&issuer, &backend).route(&format!("path = '/'\n{lines}"));
    let gate = Followed::start(&config(""));
    backend.hold();
    let mut client = gate.send(&page(&issuer).bytes());
    backend.request(0);
    gate.reload(&config("roles = ['user']"));
    gate.reload(&config(""));
    backend.release();
    assert_eq!(client.head().status, 101);
    Gate::assert_echo(&mut client);
    assert_eq!(backend.heard().len(), 1, "dialled once");
}

#[test]
fn a_handshake_that_waits_for_keys_is_judged_by_the_new_configuration() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |lines: &str| Config::new(&issuer, &backend).route(&format!("path = '/'\n{lines}"));
    for (lines, expected) in [
        ("roles = ['admin']", "4003 rule_denied"),
        ("origin = { allow = ['https://x.example.com'] }", "4003 origin_denied"),
        ("allow_addresses = ['192.0.2.1']", "4003 address_denied"),
        ("token = { from = ['query:t'] }", "4001 token_missing"),
        ("", "101"),
    ] {
        let gate = Followed::start(&config(""));
        let new = Key::new("k2");
        issuer.publish(&[&issuer.key, &new]);
        issuer.change(|answers| answers.delay = Duration::from_millis(250));
        let before = issuer.fetches();
        let handshake =
            Handshake::to("/").page().bearer(&new.sign(&new.header(), &issuer.claims(&json!({}))));
        let mut waiting = gate.send(&handshake.bytes());
        eventually("the issuer to be asked", || (issuer.fetches() > before).then_some(()));
        let dialled = backend.heard().len();
        gate.reload(&config(lines));
        if expected == "101" {
            assert_eq!(waiting.head().status, 101);
            Gate::assert_echo(&mut waiting);
        } else {
            assert_eq!(refused(&mut waiting), expected);
            assert_eq!(backend.heard().len(), dialled, "{expected}: dialled");
            assert_eq!(gate.refused(expected.split_once(' ').unwrap().1), 1, "told once");
        }
        issuer.change(|answers| answers.delay = Duration::ZERO);
        issuer.publish(&[&issuer.key]);
    }
}

#[test]
fn a_handshake_that_waits_for_keys_of_an_issuer_that_goes_is_refused_for_that() {
    let (kept, issuer, backend) = (Issuer::start(), Issuer::start(), Backend::start());
    let one = Config::new(&kept, &backend);
    let gate = Followed::start(&one.clone().issuer(&issuer, ""));
    issuer.change(|answers| answers.delay = Duration::from_millis(250));
    let before = issuer.fetches();
    let unknown = Key::new("k2");
    let token = unknown.sign(&unknown.header(), &issuer.claims(&json!({})));
    let mut waiting = gate.send(&Handshake::to("/").page().bearer(&token).bytes());
    eventually("the issuer to be asked", || (issuer.fetches() > before).then_some(()));
    gate.reload(&one);
    assert_eq!(refused(&mut waiting), "4001 token_issuer");
}

#[test]
fn a_handshake_that_waits_for_keys_is_from_whom_the_new_configuration_says_that_it_is() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |proxies: &str| {
        Config::new(&issuer, &backend)
            .set("listen.trusted_proxies", proxies)
            .set("listen.allow_addresses", "['192.0.2.1']")
    };
    let gate = Followed::start(&config("['127.0.0.1']"));
    let new = Key::new("k2");
    issuer.publish(&[&issuer.key, &new]);
    issuer.change(|answers| answers.delay = Duration::from_millis(250));
    let handshake = Handshake::to("/").page().bearer(&new.sign(&new.header(), &issuer.claims(&json!({}))));
    let mut waiting = gate.send(&handshake.with("X-Forwarded-For: 192.0.2.1").bytes());
    eventually("the issuer to be asked", || (issuer.fetches() > 1).then_some(()));
    gate.reload(&config("[]"));
    assert_eq!(refused(&mut waiting), "4003 address_denied");
}

#[test]
fn a_backend_that_answers_while_the_configuration_is_swapped_never_lets_a_refused_one_through() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |lines: &str| Config::new(&issuer, &backend).route(&format!("path = '/'\n{lines}"));
    let gate = Followed::start(&config(""));
    for round in 0..40 {
        gate.reload(&config(""));
        backend.hold();
        let mut clients = [(); 4].map(|()| gate.send(&page(&issuer).bytes()));
        backend.request(round * 4 + 3);
        std::thread::scope(|scope| {
            scope.spawn(|| gate.reload(&config("roles = ['admin']")));
            backend.release();
        });
        for client in &mut clients {
            // Refused or closed right after it was let in: the same Close.
            assert_eq!(refused(client), "4003 rule_denied", "round {round}");
        }
    }
    nothing_is_left(&gate);
}

/// Two configurations between which the gate goes to and fro. Who may under the one may not under the other.
fn either(issuer: &Issuer, backend: &Backend) -> [Config; 2] {
    let config = Config::new(issuer, backend)
        .set("limits.sessions_per_user", "100000")
        .set("limits.sessions_per_address", "100000");
    let audiences = |aud: &str| {
        let text = config.text().replace("audiences = ['chat']", &format!("audiences = ['{aud}']"));
        Config::default().tables(&text)
    };
    [audiences("chat").route("path = '/one/'"), audiences("staff").route("path = '/two/'")]
}

#[test]
fn two_thousand_handshakes_during_reloads_are_each_answered_by_one_configuration() {
    const THREADS: usize = 4;
    const EACH: usize = 500;
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let configs = either(&issuer, &backend);
    let gate = Followed::start(&configs[0]);
    let (done, reloads) = (AtomicBool::new(false), AtomicUsize::new(0));
    let counts = [(); 3].map(|()| AtomicUsize::new(0));
    // Of each token and path: what the one configuration says, and what the other.
    let token = |aud: &str| issuer.token(&json!({"aud": aud}));
    let (chat, staff) = (token("chat"), token("staff"));
    let kinds = [
        (Handshake::to("/one/").bearer(&chat), ["101", "404 route_unknown"]),
        (Handshake::to("/two/").bearer(&staff), ["404 route_unknown", "101"]),
        (Handshake::to("/one/").bearer(&staff), ["401 token_audience", "404 route_unknown"]),
        (Handshake::to("/two/").bearer(&chat), ["404 route_unknown", "401 token_audience"]),
    ];
    std::thread::scope(|scope| {
        let reloading = scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let n = reloads.fetch_add(1, Ordering::SeqCst);
                gate.reload(&configs[(n + 1) % 2]);
            }
        });
        let clients: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (gate, kinds, counts): (&Gate, _, _) = (&gate, &kinds, &counts);
                scope.spawn(move || {
                    for n in 0..EACH {
                        let (handshake, expected) = &kinds[(thread + n) % kinds.len()];
                        let (mut client, answer) = gate.upgrade(handshake);
                        let answered = match answer.status {
                            101 => "101".to_owned(),
                            status => {
                                format!("{status} {}", client.json(&answer)["reason"].as_str().unwrap())
                            }
                        };
                        // Who was past the verdict may be refused for what no longer holds.
                        let which = expected.iter().position(|expected| *expected == answered);
                        let which = which.unwrap_or_else(|| panic!("{answered}, not one of {expected:?}"));
                        counts[which].fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        let ended: Vec<_> = clients.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::SeqCst);
        reloading.join().unwrap();
        for ended in ended {
            ended.unwrap();
        }
    });
    let [one, two, _] = counts.map(AtomicUsize::into_inner);
    assert_eq!(one + two, THREADS * EACH);
    assert!(one > 100 && two > 100, "{one} by the one and {two} by the other configuration");
    assert!(reloads.into_inner() > 10);
    nothing_is_left(&gate);
    let all = ["accepted", "forbidden", "auth_failed"];
    let all = all.map(|status| gate.metric(&format!("websocket_connections_total{{status=\"{status}\"}}")));
    assert_eq!(all.iter().sum::<u64>(), (THREADS * EACH) as u64, "each is counted once: {all:?}");
}

#[test]
fn sessions_that_live_through_reloads_lose_nothing() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::new(&issuer, &backend);
    let gate = Followed::start(&config);
    let mut clients = [(); 8].map(|()| gate.open(&page(&issuer)));
    std::thread::scope(|scope| {
        let reloading = scope.spawn(|| {
            for n in 1..=6 {
                gate.reload(&config.clone().set("token.cache", &(1000 + n).to_string()));
            }
        });
        while !reloading.is_finished() {
            clients.iter_mut().for_each(Gate::assert_echo);
        }
        clients.iter_mut().for_each(Gate::assert_echo);
        assert_eq!(gate.sessions(), 8);
    });
    drop(clients);
    nothing_is_left(&gate);
}

#[test]
fn a_storm_of_reloads_ends_with_the_last_content() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::new(&issuer, &backend);
    let gate = Followed::start(&config.clone().route("path = '/r0/'"));
    let mut client = gate.open(&Handshake::to("/r0/").bearer(&issuer.good_token()));
    for n in 1..=500 {
        // Broken ones in between.
        let text = config.clone().route(&format!("path = '/r0/'\n[[route]]\npath = '/r{n}/'")).text();
        gate.write(if n % 7 == 0 { &text[..text.len() - 3] } else { &text });
        gate.control.reload();
        if n % 50 == 0 {
            Gate::assert_echo(&mut client);
            assert_eq!(outcome(&gate, &Handshake::to("/r0/").bearer(&issuer.good_token())), "101");
        }
    }
    let last = Handshake::to("/r500/").bearer(&issuer.good_token());
    eventually("the last content", || (outcome(&gate, &last) == "101").then_some(()));
    assert_eq!(outcome(&gate, &Handshake::to("/r499/").bearer(&issuer.good_token())), "404 route_unknown");
    Gate::assert_echo(&mut client);
    assert_eq!(gate.metric("config_last_reload_successful"), 1);
    assert_eq!(issuer.fetches(), 1);
}

#[test]
fn a_handshake_that_waits_takes_no_permit_of_its_own_way() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    // Judged twice, it must not be in its own way.
    let config = Config::new(&issuer, &backend)
        .set("limits.sessions", "1")
        .set("limits.sessions_per_user", "1")
        .set("limits.sessions_per_address", "1");
    let gate = Followed::start(&config);
    let new = Key::new("k2");
    issuer.publish(&[&issuer.key, &new]);
    issuer.change(|answers| answers.delay = Duration::from_millis(300));
    let handshake = Handshake::to("/").bearer(&new.sign(&new.header(), &issuer.claims(&json!({}))));
    let mut waiting = gate.send(&handshake.bytes());
    eventually("the issuer to be asked", || (issuer.fetches() > 1).then_some(()));
    for n in 0..3 {
        gate.reload(&config.clone().set("token.cache", &(100 + n).to_string()));
    }
    assert_eq!(waiting.head().status, 101);
    Gate::assert_echo(&mut waiting);
}

#[test]
fn clients_that_leave_while_the_configuration_is_swapped_leave_nothing_behind() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let configs = either(&issuer, &backend);
    backend.script(Script::Silence);
    let gate = Followed::start(&configs[0]);
    let handshake = Handshake::to("/one/").bearer(&issuer.good_token());
    for round in 0..10 {
        let clients: Vec<_> = (0..5).map(|_| gate.send(&handshake.bytes())).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| gate.reload(&configs[(round + 1) % 2]));
            drop(clients);
        });
    }
    nothing_is_left(&gate);
}
