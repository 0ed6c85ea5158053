//! `[blacklist] file`: what stands in it holds, from before the first handshake until it is taken out.

use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::harness::{Config, Issuer, eventually};
use super::desk::{Desk, Folder, quoted};

/// What the contract grants a changed file.
const SOON: Duration = Duration::from_secs(2);
/// What a busy machine may add to that.
const SLACK: Duration = Duration::from_millis(500);

fn with_file(config: Config, folder: &Folder) -> Config {
    config.set("blacklist.file", &quoted(&folder.path("blacklist")))
}

fn desk(text: &str) -> Desk {
    let folder = Folder::new();
    folder.write("blacklist", text);
    Desk::within(folder, with_file)
}

/// Waits until a change of the file counts, and for no longer than it may take.
fn soon(what: &str, changed: Instant, mut look: impl FnMut() -> bool) {
    eventually(what, || look().then_some(()));
    assert!(changed.elapsed() < SOON + SLACK, "{what} after {:?}", changed.elapsed());
}

#[test]
fn it_is_loaded_before_the_first_handshake_is_served() {
    let desk = desk("sub alice\njti bob-jti\nsid carol-sid\n");
    for (name, reason) in [("alice", "user_revoked"), ("bob", "token_revoked"), ("carol", "token_revoked")] {
        desk.assert_unwelcome(&desk.token_of(name), reason);
    }
    desk.assert_welcome(&desk.token_of("dave"));
    assert_eq!(desk.gate.metric("blacklist_entries"), 3);
    let page = desk.get("/revocations");
    assert_eq!(page["total"], 3);
    let first = page["revocations"].as_array().unwrap();
    let expected = json!({"sub": "alice", "iss": desk.issuer.url(), "reason": null, "expires_at": null});
    assert!(first.iter().any(|row| row["revocation"] == expected), "{page}");
    let line = desk.lines("revocation").remove(0);
    let told = |name: &str| line[name].clone();
    assert_eq!(
        ["by", "entries", "skipped", "full", "closed"].map(told),
        [json!("file"), json!(3), json!(0), json!(0), json!(0)]
    );
    assert!(
        desk.gate.metrics().contains("sidegate_blacklist_last_contact_timestamp_seconds{feed=\"file\"} ")
    );
}

#[test]
fn broken_lines_are_named_by_their_number_and_skipped() {
    let text = "# who has left\n\nsub alice\r\n  sub\tbob  # since May\nsubject carol\nsub\njti a b c d\nSUB erin\n\
                issued_before 2026-01-01T00:00:00Z\nsub frank https://elsewhere.example\n\u{fffd}\u{0}\nsub gina";
    let desk = desk(text);
    let lines = desk.lines("blacklist_line_skipped");
    let numbers: Vec<_> = lines.iter().map(|line| line["line"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [5, 6, 7, 8, 9, 10, 11]);
    assert!(lines.iter().all(|line| line["level"] == "warn" && line["message"].is_string()), "{lines:?}");
    for name in ["alice", "bob", "gina"] {
        desk.assert_unwelcome(&desk.token_of(name), "user_revoked");
    }
    for name in ["carol", "erin", "frank", "a"] {
        desk.assert_welcome(&desk.token_of(name));
    }
    let line = desk.lines("revocation").remove(0);
    assert_eq!((&line["entries"], &line["skipped"], &line["level"]), (&json!(3), &json!(7), &json!("warn")));
    // A file of nothing but broken lines does not fill the log.
    desk.folder.write("blacklist", &"nonsense\n".repeat(5000));
    eventually("the next reading", || (desk.lines("revocation").len() == 2).then_some(()));
    assert!(desk.lines("blacklist_line_skipped").len() < 100);
    assert_eq!(desk.lines("revocation")[1]["skipped"], 5000);
}

#[test]
fn with_two_issuers_the_third_word_says_which() {
    let other = Issuer::start();
    let folder = Folder::new();
    folder.write("blacklist", &format!("sub alice\nsub bob {}\n", other.url()));
    let desk =
        Desk::of(Issuer::start(), folder, |config, folder| with_file(config, folder).issuer(&other, ""));
    desk.assert_welcome(&desk.token_of("alice"));
    desk.assert_welcome(&desk.token_of("bob"));
    desk.assert_unwelcome(&other.token(&json!({"sub": "bob"})), "user_revoked");
    assert_eq!(desk.lines("blacklist_line_skipped")[0]["line"], 1);
}

#[test]
fn a_change_counts_soon_however_it_is_made_and_what_is_taken_out_holds_no_more() {
    let desk = desk("");
    let file = desk.folder.path("blacklist");
    let names = ["alice", "bob", "carol"];
    let live: Vec<_> = names.iter().map(|name| desk.open(&desk.token_of(name))).collect();
    let mut other = desk.open(&desk.token_of("dave"));
    for (n, (name, live)) in names.iter().zip(live).enumerate() {
        let text = format!("sub {name}\n");
        match n {
            // As an editor, as `mv`, and as a ConfigMap does it.
            0 => drop(desk.folder.write("blacklist", &text)),
            1 => std::fs::rename(desk.folder.write("next", &text), &file).unwrap(),
            _ => {
                // The directory behind the link is another one; the link to the file stays.
                let data = desk.folder.path("..data");
                for (version, text) in [("one", "sub bob\n"), ("two", text.as_str())] {
                    std::fs::create_dir(desk.folder.path(version)).unwrap();
                    desk.folder.write(&format!("{version}/blacklist"), text);
                }
                symlink(desk.folder.path("one"), &data).unwrap();
                symlink("..data/blacklist", desk.folder.path("link")).unwrap();
                std::fs::rename(desk.folder.path("link"), &file).unwrap();
                symlink(desk.folder.path("two"), desk.folder.path("..tmp")).unwrap();
                std::fs::rename(desk.folder.path("..tmp"), &data).unwrap();
            }
        }
        let changed = Instant::now();
        live.assert_closed(&desk, 4003, "user_revoked");
        assert!(changed.elapsed() < SOON + SLACK, "{name} after {:?}", changed.elapsed());
        desk.assert_unwelcome(&desk.token_of(name), "user_revoked");
        if n > 0 {
            soon("the one before", changed, || desk.plain(&desk.token_of(names[n - 1])).0 == 200);
        }
    }
    other.assert_echo();
    assert_eq!(desk.gate.metric("blacklist_entries"), 1);
    eventually("the lines of all three", || {
        let closed = desk.lines("revocation").iter().filter_map(|line| line["closed"].as_u64()).sum::<u64>();
        (closed == 3).then_some(())
    });
    desk.assert_metric("revocation_to_close_seconds_count", 3);
}

#[test]
fn all_sessions_that_a_change_names_are_closed_by_whatever_names_them() {
    let desk = desk("");
    let live = ["alice", "bob", "carol"].map(|name| desk.open(&desk.token_of(name)));
    let mut other = desk.open(&desk.token_of("dave"));
    desk.folder.write("blacklist", "sub alice\njti bob-jti\nsid carol-sid\nsub dave-sid\njti dave\n");
    for (live, (code, reason)) in
        live.into_iter().zip([(4003, "user_revoked"), (4001, "token_revoked"), (4001, "token_revoked")])
    {
        live.assert_closed(&desk, code, reason);
    }
    other.assert_echo();
}

#[test]
fn what_both_file_and_operator_name_holds_until_neither_does() {
    let desk = desk("sub alice\nsub bob\n");
    let (alice, bob) = (desk.token_of("alice"), desk.token_of("bob"));
    let id = |name: &str| {
        let page = desk.get("/revocations");
        let rows = page["revocations"].as_array().unwrap();
        rows.iter().find(|row| row["revocation"]["sub"] == name).unwrap()["id"].clone()
    };
    // Known, and the same one; in the file it does not end.
    let said = desk.revoke(&json!({"sub": "alice", "reason": "left"}));
    assert_eq!((said.status, &said.json()["id"]), (200, &id("alice")));
    assert_eq!(said.json()["revocation"]["expires_at"], Value::Null);
    assert_eq!(desk.revoke(&json!({"sub": "bob"})).status, 200);
    assert_eq!(desk.gate.metric("blacklist_entries"), 2);

    let said = desk.withdraw(&id("alice"));
    assert_eq!(said.status, 409, "{said:?}");
    assert!(said.detail().contains("[blacklist] file"), "{said:?}");
    desk.assert_unwelcome(&alice, "user_revoked");
    assert_eq!(desk.lines("revocation_withdrawn"), Vec::<Value>::new());

    // Out of the file: what the operator has taken back is gone, what he has not holds on, for its time.
    desk.folder.write("blacklist", "");
    let changed = Instant::now();
    soon("the line to be forgotten", changed, || desk.plain(&alice).0 == 200);
    desk.assert_welcome(&alice);
    desk.assert_unwelcome(&bob, "user_revoked");
    let page = desk.get("/revocations");
    assert_eq!(page["total"], 1);
    assert!(page["revocations"][0]["revocation"]["expires_at"].is_string(), "{page}");
    assert_eq!(desk.withdraw(&id("bob")).status, 204);
    desk.assert_welcome(&bob);
    // And back into the file.
    desk.folder.write("blacklist", "sub bob\n");
    soon("the line to count", Instant::now(), || desk.plain(&bob).0 == 403);
}

#[test]
fn a_hundred_thousand_lines_are_loaded_quickly_and_no_more_than_there_is_room_for() {
    const MANY: u64 = 100_000;
    let lines = |name: &str| {
        (0..MANY).fold(String::new(), |mut text, n| {
            let _ = writeln!(text, "sub {name}-{n}");
            text
        })
    };
    let folder = Folder::new();
    folder.write("blacklist", &lines("one"));
    let started = Instant::now();
    let desk = Desk::within(folder, |config, folder| {
        with_file(config, folder).set("blacklist.max_entries", &(MANY + 1).to_string())
    });
    let took = started.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(desk.gate.metric("blacklist_entries"), MANY);
    desk.assert_unwelcome(&desk.token_of("one-99999"), "user_revoked");
    desk.revoked(&json!({"sub": "alice"}));

    // One more than fits is named, counted, and pushes nobody out.
    let mut guest = desk.open(&desk.token_of("dave"));
    desk.folder.write("blacklist", &format!("{}sub alice\nsub bob\n", lines("one")));
    let line = eventually("the next reading", || {
        // Frames flow all the while.
        guest.assert_echo();
        desk.lines("revocation").into_iter().find(|line| line["full"] == 1)
    });
    assert_eq!((&line["entries"], &line["level"]), (&json!(MANY + 1), &json!("warn")));
    assert_eq!(desk.gate.metric("blacklist_rejected_total"), 1);
    assert_eq!(desk.gate.metric("blacklist_entries"), MANY + 1);
    desk.assert_unwelcome(&desk.token_of("alice"), "user_revoked");
    desk.assert_welcome(&desk.token_of("bob"));
    guest.assert_echo();
}

#[test]
fn a_file_that_is_only_touched_is_not_taken_over_again() {
    let desk = desk("sub alice\n");
    for _ in 0..2 {
        desk.folder.write("blacklist", "sub alice\n");
        std::thread::sleep(Duration::from_millis(600));
    }
    desk.folder.write("blacklist", "sub alice\nsub bob\n");
    soon("the change", Instant::now(), || desk.plain(&desk.token_of("bob")).0 == 403);
    assert_eq!(desk.lines("revocation").len(), 2, "one at the start and one for the change");
}

#[test]
fn a_comment_begins_where_a_word_begins() {
    let desk = desk("sub alice#2\nsub bob # a comment\nsub carol #another\n");
    desk.assert_welcome(&desk.token_of("alice"));
    desk.assert_unwelcome(&desk.token_of("alice#2"), "user_revoked");
    for name in ["bob", "carol"] {
        desk.assert_unwelcome(&desk.token_of(name), "user_revoked");
    }
}

#[test]
fn a_file_that_is_replaced_as_a_whole_finds_the_room_that_the_old_one_had() {
    let folder = Folder::new();
    folder.write("blacklist", "sub alice\nsub bob\nsub carol\n");
    let desk =
        Desk::within(folder, |config, folder| with_file(config, folder).set("blacklist.max_entries", "4"));
    desk.folder.write("blacklist", "sub dave\nsub erin\nsub frank\n");
    soon("the change", Instant::now(), || desk.plain(&desk.token_of("alice")).0 == 200);
    for name in ["dave", "erin", "frank"] {
        desk.assert_unwelcome(&desk.token_of(name), "user_revoked");
    }
    assert_eq!(desk.gate.metric("blacklist_entries"), 3);
}
