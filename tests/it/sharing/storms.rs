//! 100,000 revocations at once.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::super::harness::{Config, Issuer, Running, eventually};
use super::replicas::{replica, with_redis};
use super::server::{Redis, a_while};

const MANY: usize = 100_000;

/// Resident memory of a process, in bytes.
fn resident(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// As another replica would add them, as fast as the server takes them.
fn flood(redis: &Redis, iss: &str) {
    let mut commands = String::new();
    for n in 0..MANY {
        let value = format!("onrtro:{n:08x}-1111-2222-3333-444444444444");
        let words = [
            "XADD",
            "sidegate:{v1}:revocations",
            "*",
            "by",
            "flood",
            "ttl",
            "3600",
            "op",
            "revoke",
            "kind",
            "jti",
            "iss",
            iss,
            "value",
            &value,
        ];
        let _ = write!(commands, "*{}\r\n", words.len());
        for word in words {
            let _ = write!(commands, "${}\r\n{word}\r\n", word.len());
        }
    }
    let mut pipe = Command::new("redis-cli")
        .args(["-p", &redis.port.to_string(), "--pipe"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    pipe.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    assert!(pipe.wait().unwrap().success());
}

#[test]
fn all_are_taken_over_in_bounded_memory_while_others_are_served() {
    let redis = Redis::start();
    let issuer = Issuer::start();
    let backend = super::super::harness::Backend::start();
    let text = with_redis(Config::new(&issuer, &backend), &redis.url(), "").text();
    let program = Running::start(&text, &[], &[]);
    program.says("blacklist_redis_in_touch", 1);
    let desk = replica(&issuer, &redis.url(), "", |config| config);
    let victim = desk
        .token(&json!({"sub": "x", "jti": format!("onrtro:{:08x}-1111-2222-3333-444444444444", MANY - 1)}));
    let (live, mut other) = (desk.open(&victim), desk.open(&desk.token_of("alice")));
    let before = resident(program.id());
    let began = Instant::now();
    flood(&redis, &issuer.url());
    let mut slowest = Duration::ZERO;
    while desk.gate.control.gate().blacklist.len() < MANY {
        assert!(began.elapsed() < Duration::from_secs(60), "{}", desk.gate.control.gate().blacklist.len());
        let asked = Instant::now();
        other.assert_echo();
        slowest = slowest.max(asked.elapsed());
        desk.assert_welcome(&desk.token_of("bob"));
    }
    live.assert_closed(&desk, 4001, "token_revoked");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    // One line for each thousand, not for each.
    assert!(desk.lines("revocation").len() <= 2 * MANY / 100, "{}", desk.lines("revocation").len());
    // The program: no more than the README grants for each entry.
    let refused = || {
        let handshake = super::super::harness::Handshake::to("/ws/").bearer(&victim);
        program.status(&handshake) == 401
    };
    eventually("the program to know the last", || refused().then_some(()));
    let each = (resident(program.id()).saturating_sub(before)) / MANY as u64;
    assert!(each <= 250, "{each} bytes for each entry");
    // A gate that starts now reads all of it before it lets anybody in.
    let late = super::replicas::lonely(&issuer, &redis.url(), "", |config| config);
    let since = Instant::now();
    while !super::replicas::is_in_touch(&late) {
        let status = late.plain(&victim).0;
        assert!(status == 503 || super::replicas::is_in_touch(&late), "{status} before all was read");
        assert!(since.elapsed() < Duration::from_secs(30));
        a_while();
    }
    assert_eq!(late.gate.control.gate().blacklist.len(), MANY);
}

#[test]
fn beyond_max_entries_nothing_is_pushed_out_and_it_is_counted() {
    let redis = Redis::start();
    let issuer = Issuer::start();
    let small = replica(&issuer, &redis.url(), "", |config| config.set("blacklist.max_entries", "10"));
    let large = replica(&issuer, &redis.url(), "", |config| config);
    for n in 0..15 {
        large.revoked(&json!({"sub": n.to_string()}));
    }
    eventually("five that did not fit", || {
        (small.gate.metric("blacklist_rejected_total") >= 5).then_some(())
    });
    assert_eq!(small.gate.metric("blacklist_entries"), 10);
    small.assert_unwelcome(&small.token_of("0"), "user_revoked");
    small.gate.logged("blacklist_full");
}
