//! Whoever was away goes on where they stopped; what has expired is deleted; what nobody understands is skipped.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::super::harness::{Issuer, eventually};
use super::replicas::{await_entries, await_loss, await_touch, lonely, replica};
use super::server::{Redis, a_while};

/// A connection between a gate and the server that can be cut.
pub struct Wire {
    pub port: u16,
    open: Arc<Mutex<Option<Vec<TcpStream>>>>,
    /// Bytes from the server.
    pub read: Arc<AtomicUsize>,
}

impl Wire {
    pub fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap().port();
        let open = Arc::new(Mutex::new(Some(Vec::new())));
        let read = Arc::new(AtomicUsize::new(0));
        let (shared, counter) = (Arc::clone(&open), Arc::clone(&read));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let mut open = shared.lock().unwrap();
                let Some(streams) = open.as_mut() else { continue };
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                streams.extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                let pairs = [
                    (client.try_clone().unwrap(), server.try_clone().unwrap(), None),
                    (server, client, Some(Arc::clone(&counter))),
                ];
                for (mut from, mut to, counter) in pairs {
                    std::thread::spawn(move || {
                        let mut bytes = vec![0; 65536];
                        while let Ok(n @ 1..) = from.read(&mut bytes) {
                            if let Some(counter) = &counter {
                                counter.fetch_add(n, Ordering::SeqCst);
                            }
                            if to.write_all(&bytes[..n]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self { port: here, open, read }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn cut(&self) {
        for stream in self.open.lock().unwrap().take().into_iter().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn mend(&self) {
        *self.open.lock().unwrap() = Some(Vec::new());
    }
}

#[test]
fn after_a_lost_connection_only_what_is_new_is_read() {
    let redis = Redis::start();
    let issuer = Issuer::start();
    let wire = Wire::to(redis.port);
    let a = replica(&issuer, &redis.url(), "", |config| config);
    let b = replica(&issuer, &wire.url(), "", |config| config);
    let many: Vec<_> = (0..500).map(|n| json!({"jti": format!("{n}-{}", "x".repeat(200))})).collect();
    assert!(a.revoke_all(&many).iter().all(|said| said.status == 201));
    await_entries(&b, 500);
    let read = wire.read.load(Ordering::SeqCst);
    assert!(read > 100_000, "all of it: {read}");
    wire.cut();
    await_loss(&b);
    a.revoked(&json!({"sub": "alice"}));
    let live = b.open(&b.token_of("alice"));
    wire.mend();
    live.assert_closed(&b, 4003, "user_revoked");
    await_touch(&b);
    await_entries(&b, 501);
    let again = wire.read.load(Ordering::SeqCst) - read;
    assert!(again < 20_000, "only what is new: {again}");
}

#[test]
fn what_has_expired_is_deleted_from_the_stream_and_nothing_else() {
    let redis = Redis::start();
    let issuer = Issuer::start();
    let a = replica(&issuer, &redis.url(), "", |config| config);
    a.revoked(&json!({"sub": "alice", "ttl": "1h"}));
    for n in 0..20 {
        a.revoked(&json!({"jti": n.to_string(), "ttl": "1s"}));
    }
    a.revoked(&json!({"sub": "bob", "ttl": "1h"}));
    let since = Instant::now();
    while redis.say(&["XLEN", "sidegate:{v1}:revocations"]) != "2" {
        assert!(since.elapsed() < Duration::from_secs(25), "never deleted");
        a_while();
    }
    let b = replica(&issuer, &redis.url(), "", |config| config);
    await_entries(&b, 2);
}

#[test]
fn an_entry_that_nobody_understands_is_named_and_skipped() {
    let redis = Redis::start();
    let issuer = Issuer::start();
    let a = replica(&issuer, &redis.url(), "", |config| config);
    let iss = issuer.url();
    for fields in [
        vec!["x", "y"],
        vec!["ttl", "600", "op", "rewoke", "kind", "sub", "iss", &iss, "value", "alice"],
        vec!["op", "revoke", "kind", "sub", "iss", &iss, "value", "alice"],
        vec!["ttl", "-5", "op", "revoke", "kind", "sub", "iss", &iss, "value", "alice"],
    ] {
        redis.say(&[&["XADD", "sidegate:{v1}:revocations", "*"][..], &fields].concat());
    }
    redis.say(&[
        "XADD",
        "sidegate:{v1}:revocations",
        "*",
        "ttl",
        "600",
        "op",
        "revoke",
        "kind",
        "sub",
        "iss",
        &iss,
        "value",
        "bob",
    ]);
    await_entries(&a, 1);
    a.assert_welcome(&a.token_of("alice"));
    a.assert_unwelcome(&a.token_of("bob"), "user_revoked");
    assert_eq!(a.lines("blacklist_entry_skipped").len(), 1, "those without an end have ended");
}

#[test]
fn a_stream_that_is_no_stream_is_told() {
    let redis = Redis::start();
    redis.say(&["SET", "sidegate:{v1}:revocations", "mine"]);
    let desk = lonely(&Issuer::start(), &redis.url(), "", |config| config);
    let told = desk.gate.logged("blacklist_redis_lost");
    assert!(told["message"].as_str().unwrap().contains("wrong kind of value"), "{told}");
    assert_eq!(desk.plain(&desk.token_of("alice")).0, 503);
}

#[test]
fn the_server_may_be_changed_while_the_gate_runs_and_what_is_known_goes_along() {
    let (first, second) = (Redis::start(), Redis::start());
    let issuer = Issuer::start();
    let backend = super::super::harness::Backend::start();
    let text = |url: &str| {
        super::replicas::with_redis(super::super::harness::Config::new(&issuer, &backend), url, "")
            .set("limits.sessions_per_user", "1")
            .set("http.auth", "'required'")
    };
    let followed = super::super::harness::Followed::start(&text(&first.url()));
    let a = replica(&issuer, &first.url(), "", |config| config);
    a.revoked(&json!({"sub": "alice"}));
    let shared = || followed.control.gate().snapshot.load().shared.clone();
    eventually("it to be heard of", || (followed.control.gate().blacklist.len() == 1).then_some(()));
    let bob = issuer.token(&json!({"sub": "bob"}));
    let handshake = || super::super::harness::Handshake::to("/ws/").bearer(&bob);
    let held = followed.open(&handshake());
    followed.reload(&text(&second.url()));
    eventually("the other server", || {
        (second.say(&["XLEN", "sidegate:{v1}:revocations"]) == "1").then_some(())
    });
    let b = replica(&issuer, &second.url(), "", |config| config.set("limits.sessions_per_user", "1"));
    await_entries(&b, 1);
    let refused = b.gate.upgrade(&handshake()).1.status;
    assert_eq!(refused, 429, "its session counts there");
    drop(held);
    eventually("the place to be given back there", || {
        (b.gate.upgrade(&handshake()).1.status == 101).then_some(())
    });
    // And none at all.
    followed.reload(&super::super::harness::Config::new(&issuer, &backend).set("http.auth", "'required'"));
    eventually("no server", || shared().is_none().then_some(()));
    assert!(!followed.control.gate().blacklist.is_stale());
}
