//! Very many revocations while the gate goes on with its work.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::super::harness::Handshake;
use super::desk::Desk;

/// A tenth of what a release build is asked for: here each costs ten times as much.
const MANY: usize = 20_000;
/// Connections of operators.
const OPERATORS: usize = 4;
/// More than there is room for.
const TOO_MANY: usize = 400;

#[test]
fn frames_and_handshakes_go_on_while_thousands_are_revoked_and_no_more_are_kept_than_fit() {
    let desk = Desk::with(|config| {
        config.set("blacklist.max_entries", &MANY.to_string()).set("log.level", "'error'")
    });
    let mut live: Vec<_> = (0..20).map(|n| desk.open(&desk.token_of(&format!("guest-{n}")))).collect();
    let (done, full) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (echoes, handshakes) = std::thread::scope(|scope| {
        let operators: Vec<_> = (0..OPERATORS)
            .map(|operator| {
                let (desk, full) = (&desk, &full);
                scope.spawn(move || {
                    let each = (MANY + TOO_MANY) / OPERATORS;
                    let what = |n| json!({"jti": format!("jti-{}", operator * each + n)});
                    for said in desk.revoke_all(&(0..each).map(what).collect::<Vec<_>>()) {
                        match said.status {
                            201 => assert_eq!(said.json()["closed"], 0, "nobody is named"),
                            status => {
                                assert_eq!(status, 507);
                                full.fetch_add(1, SeqCst);
                            }
                        }
                    }
                })
            })
            .collect();
        let handshakes = scope.spawn(|| {
            let mut opened = 0;
            while !done.load(SeqCst) {
                let token = desk.token_of(&format!("late-{opened}"));
                let sent = Instant::now();
                drop(desk.gate.open(&Handshake::to("/ws/").bearer(&token)));
                assert!(sent.elapsed() < Duration::from_secs(2), "{:?}", sent.elapsed());
                opened += 1;
            }
            opened
        });
        let mut echoes = 0;
        while !operators.iter().all(ScopedJoinHandle::is_finished) {
            for live in &mut live {
                let sent = Instant::now();
                live.assert_echo();
                assert!(sent.elapsed() < Duration::from_secs(2), "{:?}", sent.elapsed());
                echoes += 1;
            }
        }
        done.store(true, SeqCst);
        (echoes, handshakes.join().unwrap())
    });
    // Something did go on: each operator alone takes hundreds of milliseconds.
    assert!(echoes > 100 && handshakes > 10, "{echoes} echoes, {handshakes} handshakes");
    assert_eq!(full.into_inner(), TOO_MANY);
    assert_eq!(desk.gate.metric("blacklist_entries"), MANY as u64);
    assert_eq!(desk.gate.metric("blacklist_rejected_total"), TOO_MANY as u64);
    assert_eq!(desk.get("/revocations?limit=1")["total"], MANY);
    live.iter_mut().for_each(super::desk::Live::assert_echo);
}
