//! A file that is gone: its last content holds, and what happens to those who come depends.

use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use serde_json::json;

use super::super::harness::{Config, Handshake, eventually};
use super::desk::{Desk, Folder, LOCAL, quoted, request};

/// A gate with routes for those without a token, whose file counts as lost after half a second.
fn desk(on_stale: &str) -> Desk {
    let folder = Folder::new();
    folder.write("blacklist", "sub alice\n");
    Desk::within(folder, |config: Config, folder| {
        config
            .set("blacklist.file", &quoted(&folder.path("blacklist")))
            .set("blacklist.on_stale", &format!("'{on_stale}'"))
            .set("blacklist.stale_after", "'500ms'")
            .set("limits.attempts_per_address", "'1000/60s'")
            .route("path = '/ws/'")
            .route("path = '/api'")
            .route("path = '/none'\nauth = 'none'")
            .route("path = '/optional'\nauth = 'optional'")
            .route("path = '/shadow'\nmode = 'shadow'")
    })
}

/// Status of `/readyz`, and what is missing.
fn ready(desk: &Desk) -> (u16, String) {
    let said = desk.ask("GET /readyz");
    (said.status, said.json()["missing"].to_string())
}

#[test]
fn a_lost_file_refuses_those_who_come_with_a_token_until_it_is_back() {
    let desk = desk("refuse_new");
    let (alice, bob) = (desk.token_of("alice"), desk.token_of("bob"));
    let mut live = desk.open(&bob);
    assert_eq!(ready(&desk), (200, "[]".into()));
    std::fs::remove_file(desk.folder.path("blacklist")).unwrap();

    let to = |path: &str| Handshake::to(path).bearer(&bob);
    eventually("staleness", || (ready(&desk).0 == 503).then_some(()));
    assert!(ready(&desk).1.contains("blacklist"), "{:?}", ready(&desk));
    let connections = desk.backend.connections();
    let unavailable = (503, "blacklist_unavailable".to_owned());
    for handshake in [to("/ws/"), to("/optional"), to("/ws/").page(), Handshake::to("/ws/").bearer(&alice)] {
        let (mut client, answer) = desk.gate.upgrade(&handshake);
        assert!(answer.header("retry-after").is_some(), "{}", answer.text);
        let reason = client.json(&answer)["reason"].as_str().unwrap().to_owned();
        assert_eq!((answer.status, reason), unavailable, "{:?}", handshake.line);
    }
    assert_eq!(desk.plain(&bob), unavailable);
    assert_eq!(desk.backend.connections(), connections, "the backend heard of it");
    assert_eq!(desk.gate.control.gate().attempts.tracked(), 0, "it is not the client's doing");
    // What is wrong with a token is still told first.
    let expired = desk.token(&json!({"exp": 1_000}));
    assert_eq!(desk.gate.refusal(&Handshake::to("/ws/").bearer(&expired)), (401, "token_expired".into()));
    // Nobody else is concerned: who is on it, who comes without a token, who is only watched.
    live.assert_echo();
    for handshake in [Handshake::to("/none"), to("/none"), Handshake::to("/optional"), to("/shadow")] {
        desk.live(&handshake).assert_echo();
    }
    assert_eq!(desk.gate.metric("would_refuse_total{reason=\"blacklist_unavailable\"}"), 1);
    // An operator's word counts all the while.
    assert_eq!(desk.revoked(&json!({"jti": "bob-jti"}))["closed"], 1);
    live.assert_closed(&desk, 4001, "token_revoked");

    desk.folder.write("blacklist", "sub carol\n");
    eventually("recovery", || (ready(&desk).0 == 200).then_some(()));
    eventually("the new content", || (desk.plain(&alice).0 == 200).then_some(()));
    desk.assert_unwelcome(&desk.token_of("carol"), "user_revoked");
    desk.assert_unwelcome(&bob, "token_revoked");
    assert_eq!(desk.lines("blacklist_file_lost").len(), 1, "{:?}", desk.lines("blacklist_file_lost"));
}

#[test]
fn with_allow_the_last_content_goes_on_to_hold_and_one_warning_is_all() {
    let desk = desk("allow");
    std::fs::remove_file(desk.folder.path("blacklist")).unwrap();
    let line = desk.gate.logged("blacklist_file_lost");
    assert_eq!(line["level"], "warn");
    assert!(line["message"].as_str().unwrap().contains("blacklist"), "{line}");
    // Longer than `stale_after`, and long enough for another look at it.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(ready(&desk), (200, "[]".into()));
    desk.assert_unwelcome(&desk.token_of("alice"), "user_revoked");
    desk.assert_welcome(&desk.token_of("bob"));
    assert_eq!(desk.lines("blacklist_file_lost").len(), 1);
    // Gone a second time is a second warning.
    desk.folder.write("blacklist", "sub alice\nsub bob\n");
    eventually("it to be back", || (desk.plain(&desk.token_of("bob")).0 == 403).then_some(()));
    std::fs::remove_file(desk.folder.path("blacklist")).unwrap();
    eventually("the second warning", || (desk.lines("blacklist_file_lost").len() == 2).then_some(()));
    desk.assert_unwelcome(&desk.token_of("bob"), "user_revoked");
}

#[test]
fn a_feed_that_was_never_in_touch_is_stale_from_the_start() {
    // A directory can be opened, but not read: what is checked before the start lets it pass.
    let folder = Folder::new();
    std::fs::create_dir(folder.path("blacklist")).unwrap();
    let desk = Desk::within(folder, |config, folder| {
        config.set("blacklist.file", &quoted(&folder.path("blacklist"))).set("blacklist.stale_after", "'1h'")
    });
    assert_eq!(ready(&desk).0, 503);
    assert_eq!(desk.plain(&desk.token_of("bob")), (503, "blacklist_unavailable".into()));
    desk.gate.logged("blacklist_file_lost");
    // And it recovers as any other.
    std::fs::remove_dir(desk.folder.path("blacklist")).unwrap();
    desk.folder.write("blacklist", "sub alice\n");
    eventually("recovery", || (ready(&desk).0 == 200).then_some(()));
    desk.assert_welcome(&desk.token_of("bob"));
    desk.assert_unwelcome(&desk.token_of("alice"), "user_revoked");
}

#[test]
fn a_file_that_is_missing_at_the_start_is_a_configuration_error() {
    let (issuer, backend) = (super::super::harness::Issuer::start(), super::super::harness::Backend::start());
    let config = Config::new(&issuer, &backend).set("blacklist.file", "'/no/such/file'");
    let loaded = sidegate::app::config::read(&config.text(), std::iter::empty());
    assert!(loaded.config.is_none());
    let problems = format!("{:?}", loaded.problems);
    assert!(problems.contains("blacklist.file") && problems.contains("/no/such/file"), "{problems}");
}

#[test]
fn the_probes_tell_of_it_too() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("blacklist")).unwrap();
    let desk = Desk::within(folder, |config, folder| {
        config.set("blacklist.file", &quoted(&folder.path("blacklist")))
    });
    // Without the operator's token, for kubelet has none.
    let mut client = desk.gate.operator();
    client.send(&request("GET /readyz", &[LOCAL, "Connection: close"], ""));
    assert_eq!(client.head().status, 503);
    assert_eq!(desk.ask("GET /livez").status, 200);
}

/// Puts a file in the place of what hangs, and lets go whoever hangs on it.
struct Unblock<'a>(&'a Folder);

impl Drop for Unblock<'_> {
    fn drop(&mut self) {
        const O_NONBLOCK: i32 = 0o4000;
        let aside = self.0.path("aside");
        let _ = std::fs::rename(self.0.path("blacklist"), &aside);
        self.0.write("blacklist", "");
        let _ = std::fs::OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(aside);
    }
}

#[test]
fn a_file_that_hangs_is_stale_too() {
    let desk = desk("refuse_new");
    let pipe = desk.folder.path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    std::fs::rename(pipe, desk.folder.path("blacklist")).unwrap();
    let _unblock = Unblock(&desk.folder);
    eventually("staleness", || (ready(&desk).0 == 503).then_some(()));
    assert_eq!(desk.plain(&desk.token_of("bob")).0, 503);
}
