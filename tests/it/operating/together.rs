//! Several operators at once, and operators against handshakes that are under way.

use std::collections::BTreeSet;
use std::sync::Barrier;

use serde_json::{Value, json};

use super::super::harness::{Gate, Handshake, eventually};
use super::desk::Desk;

#[test]
fn the_same_revocation_asked_for_by_many_at_once_is_one() {
    const OPERATORS: usize = 16;
    let desk = Desk::new();
    let live: Vec<_> = (0..10).map(|_| desk.open(&desk.token_of("alice"))).collect();
    let together = Barrier::new(OPERATORS);
    let answers: Vec<_> = std::thread::scope(|scope| {
        let operators: Vec<_> = (0..OPERATORS)
            .map(|_| {
                scope.spawn(|| {
                    together.wait();
                    (0..5).map(|_| desk.revoke(&json!({"sub": "alice"}))).collect::<Vec<_>>()
                })
            })
            .collect();
        operators.into_iter().flat_map(|operator| operator.join().unwrap()).collect()
    });
    let told = |status: u16| answers.iter().filter(|said| said.status == status).count();
    assert_eq!((told(201), told(200)), (1, OPERATORS * 5 - 1));
    let ids: BTreeSet<_> = answers.iter().map(|said| said.json()["id"].to_string()).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let closed: u64 = answers.iter().map(|said| said.json()["closed"].as_u64().unwrap()).sum();
    assert_eq!(closed, live.len() as u64, "each session is closed by one of them");
    assert_eq!(desk.gate.metric("blacklist_entries"), 1);
    for live in live {
        live.assert_closed(&desk, 4003, "user_revoked");
    }
    assert_eq!(desk.lines("revocation").len(), OPERATORS * 5);
}

#[test]
fn revoked_and_taken_back_at_once_is_in_the_end_what_the_last_one_said() {
    let desk = Desk::new();
    let token = desk.token_of("alice");
    let id = desk.revoked(&json!({"sub": "alice"}))["id"].clone();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let said = desk.revoke(&json!({"sub": "alice"}));
                    assert!(matches!(said.status, 200 | 201) && said.json()["id"] == id, "{said:?}");
                }
            });
            scope.spawn(|| {
                for _ in 0..20 {
                    let status = desk.withdraw(&id).status;
                    assert!(matches!(status, 204 | 404), "{status}");
                }
            });
        }
    });
    let entries = desk.gate.metric("blacklist_entries");
    assert_eq!(desk.get("/revocations")["total"], entries);
    assert_eq!(desk.withdraw(&id).status, if entries == 1 { 204 } else { 404 });
    desk.assert_welcome(&token);
    desk.revoked(&json!({"sub": "alice"}));
    desk.assert_unwelcome(&token, "user_revoked");
}

#[test]
fn each_of_those_that_come_while_all_are_thrown_out_is_closed_once_or_came_later() {
    const CLIENTS: usize = 6;
    const EACH: usize = 50;
    let desk = Desk::new();
    let close = || {
        let told = desk.ask("DELETE /sessions?all=true").json();
        assert!(told["matched"].as_u64() >= told["closed"].as_u64(), "{told}");
        told["closed"].as_u64().unwrap()
    };
    let token = desk.token_of("alice");
    let handshake = |n: usize| {
        let to = Handshake::to("/ws/").bearer(&token);
        if n.is_multiple_of(2) { to } else { to.page() }
    };
    let (opened, mut closed) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut opened = Vec::new();
                    for n in 0..EACH {
                        let (mut client, answer) = desk.gate.upgrade(&handshake(n));
                        if answer.status == 101 {
                            opened.push(client);
                        } else {
                            let reason = client.json(&answer)["reason"].clone();
                            assert_eq!((answer.status, reason), (503, Value::from("operator_closed")));
                        }
                    }
                    opened
                })
            })
            .collect();
        let mut closed = 0;
        while clients.iter().any(|client| !client.is_finished()) {
            closed += close();
        }
        (clients.into_iter().flat_map(|client| client.join().unwrap()).collect::<Vec<_>>(), closed)
    });
    closed += close();
    assert_eq!(closed, (CLIENTS * EACH) as u64, "each is closed by one of the orders");
    for mut client in opened {
        assert_eq!(client.close(), (1012, "operator_closed".into()));
        assert_eq!(client.rest(), b"");
    }
    eventually("nobody", || (desk.gate.sessions() == 0).then_some(()));
    let refused = desk.gate.refused("operator_closed");
    desk.assert_metric("websocket_closes_total{reason=\"operator_closed\"}", closed - refused);
    Gate::assert_echo(&mut desk.gate.open(&handshake(0)));
}
