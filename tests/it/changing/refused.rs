//! Files that are not taken over: everything stays as it was.

use std::fs;
use std::time::Duration;

use super::super::harness::{Backend, Config, Followed, Gate, Handshake, Issuer, eventually};
use super::outcome;

fn good(issuer: &Issuer) -> Handshake {
    Handshake::to("/ws/").bearer(&issuer.good_token())
}

fn last(gate: &Gate) -> u64 {
    gate.metric("config_last_reload_successful")
}

fn base(issuer: &Issuer, backend: &Backend) -> Config {
    Config::new(issuer, backend).route("path = '/ws/'\nroles = ['user']")
}

/// Who is in stays in, who may in comes in, who may not is refused.
fn as_before(gate: &Gate, issuer: &Issuer, client: &mut super::super::harness::Client) {
    Gate::assert_echo(client);
    assert_eq!(outcome(gate, &good(issuer)), "101");
    let other = issuer.token(&serde_json::json!({"realm_access": {"roles": []}}));
    assert_eq!(outcome(gate, &Handshake::to("/ws/").bearer(&other)), "403 rule_denied");
    assert_eq!(outcome(gate, &Handshake::to("/other/").bearer(&other)), "404 route_unknown");
    assert_eq!(gate.control.gate().snapshot.load().generation, 0);
}

#[test]
fn a_broken_file_keeps_everything_and_says_where_and_what_instead() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = base(&issuer, &backend);
    let gate = Followed::start(&config);
    let mut client = gate.open(&good(&issuer));
    assert_eq!(last(&gate), 1, "at the start all is well");
    let text = config.text();
    let line = |text: &str, of: &str| text.lines().position(|line| line.starts_with(of)).unwrap() + 1;
    let misspelt = text.replace("[session]", "[sesion]");
    let unknown = format!("{text}colour = 'red'\n");
    let wrong = text.replace("close_timeout = '500ms'", "close_timeout = 'soon'");
    let no_toml = format!("{text}claims = {{ a = \n");
    let rule = text.replace("roles = ['user']", "allow = 'claims.x =='");
    for (text, parts) in [
        (no_toml.clone(), vec![format!("line {}: ", line(&no_toml, "claims")), "not TOML".into()]),
        (
            unknown.clone(),
            vec![
                format!("line {}: ", line(&unknown, "colour")),
                "route[1].colour = 'red'".into(),
                "unknown key; accepted here: ".into(),
            ],
        ),
        (
            misspelt.clone(),
            vec![
                format!("line {}: sesion", line(&misspelt, "[sesion]")),
                "unknown key; accepted here: ".into(),
            ],
        ),
        (
            wrong.clone(),
            vec![format!(
                "line {}: session.close_timeout = 'soon': accepted: ",
                line(&wrong, "close_timeout")
            )],
        ),
        (
            rule.clone(),
            vec![format!(
                "line {}: route[1].allow = 'claims.x ==': line 1, column 12: ",
                line(&rule, "allow")
            )],
        ),
        (String::new(), vec!["issuer: is missing: write at least one [[issuer]]".into()]),
        ("\u{0}\u{1}".into(), vec!["line 1: not TOML".into()]),
    ] {
        let told = gate.refused_reload(&text).concat();
        for part in &parts {
            assert!(told.contains(part), "{part:?} in {told:?}");
        }
        assert_eq!(last(&gate), 0, "{told}");
        as_before(&gate, &issuer, &mut client);
    }
    assert!(
        gate.log().iter().any(|line| line["event"] == "config_reload_refused" && line["level"] == "error")
    );
    assert!(gate.reloads("failure") >= 7 && gate.reloads("success") == 0);
    gate.reload(&config);
    assert_eq!((last(&gate), gate.reloads("success")), (1, 1));
    Gate::assert_echo(&mut client);
}

#[test]
fn all_problems_of_a_file_are_told_at_once() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = base(&issuer, &backend);
    let gate = Followed::start(&config);
    gate.refused_reload(
        &config.set("log.level", "'loud'").set("token.cache", "0").set("csp.colour", "1").text(),
    );
    eventually("three problems", || {
        let log = gate.log_text();
        ["log.level = 'loud'", "token.cache = 0", "csp.colour = 1"]
            .iter()
            .all(|part| log.contains(part))
            .then_some(())
    });
    assert_eq!(gate.reloads("failure"), 1, "one file, one failure");
}

#[test]
fn a_file_that_is_no_text_or_no_file_is_refused_and_named() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = base(&issuer, &backend);
    let gate = Followed::start(&config);
    let mut client = gate.open(&good(&issuer));
    let refused = |what: &str| {
        let before = gate.reloads("failure");
        gate.control.reload();
        eventually(what, || (gate.reloads("failure") > before).then_some(()));
        eventually("its reason", || {
            let line = gate.log().into_iter().rfind(|line| line["event"] == "config_reload_refused")?;
            line["message"].as_str().map(str::to_owned)
        })
    };
    fs::write(gate.file(), b"[listen]\naddress = \"\xff\xfe\"\n").unwrap();
    refused("a file that is not UTF-8");
    as_before(&gate, &issuer, &mut client);
    fs::remove_file(gate.file()).unwrap();
    let told = refused("a file that is missing");
    assert!(told.contains(&gate.file().display().to_string()) && told.contains("No such file"), "{told}");
    as_before(&gate, &issuer, &mut client);
    fs::create_dir(gate.file()).unwrap();
    refused("a folder");
    as_before(&gate, &issuer, &mut client);
    fs::remove_dir(gate.file()).unwrap();
    gate.reload(&config);
    assert_eq!(last(&gate), 1);
}

#[test]
fn without_a_hangup_too_a_missing_file_is_told_and_no_more_than_once() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let gate = Followed::start(&base(&issuer, &backend));
    fs::remove_file(gate.file()).unwrap();
    eventually("the loss", || (gate.reloads("failure") == 1).then_some(()));
    std::thread::sleep(Duration::from_millis(1300));
    assert_eq!(gate.reloads("failure"), 1);
}

#[test]
fn a_file_that_was_away_and_is_back_as_it_was_is_no_failure_any_more() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = base(&issuer, &backend);
    let gate = Followed::start(&config);
    fs::remove_file(gate.file()).unwrap();
    gate.control.reload();
    eventually("the loss", || (last(&gate) == 0).then_some(()));
    gate.write(&config.text());
    eventually("all to be well again", || (last(&gate) == 1).then_some(()));
}

#[test]
fn a_file_cut_off_anywhere_never_harms() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = base(&issuer, &backend);
    let gate = Followed::start(&config);
    let text = config.text();
    for end in (0..text.len()).step_by(7) {
        let before = gate.reloads("success") + gate.reloads("failure");
        gate.write(&text[..end]);
        gate.control.reload();
        eventually("a verdict", || {
            (gate.reloads("success") + gate.reloads("failure") > before).then_some(())
        });
        // Whatever of it was a configuration: nobody comes in without a token.
        assert_eq!(outcome(&gate, &Handshake::to("/ws/")).split(' ').next(), Some("401"), "{}", &text[..end]);
    }
    gate.reload(&config);
    assert_eq!(outcome(&gate, &good(&issuer)), "101");
}

#[test]
fn what_cannot_change_refuses_the_whole_file_and_is_named_with_both_values() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = base(&issuer, &backend).set("metrics.namespace", "'sidegate'");
    let gate = Followed::start(&config);
    let mut client = gate.open(&good(&issuer));
    for (key, value, was) in [
        ("listen.address", "\"127.0.0.1:1\"", "\"127.0.0.1:0\""),
        ("admin.address", "\"127.0.0.1:1\"", "\"127.0.0.1:0\""),
        ("admin.probes", "\"127.0.0.1:0\"", "nothing"),
        ("runtime.workers", "2", "1"),
        ("metrics.namespace", "\"gate\"", "\"sidegate\""),
    ] {
        // Something else in it would let everybody in.
        let changed = config.clone().set(key, value).text().replace("roles = ['user']", "auth = 'none'");
        let told = gate.refused_reload(&changed).concat();
        for part in [format!("{key} was {was} and is {value}"), "restart".into()] {
            assert!(told.contains(&part), "{part:?} in {told:?}");
        }
        as_before(&gate, &issuer, &mut client);
    }
    // Written otherwise, but no other value.
    gate.reload(&config.set("listen.address", "\"127.0.0.1:0\"").set("runtime.workers", "0x1"));
}

#[test]
fn a_list_of_one_address_is_that_address() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = base(&issuer, &backend);
    let gate = Followed::start(&config);
    gate.reload(&config.set("listen.address", "['127.0.0.1:0']"));
}

#[test]
fn what_is_wrong_outside_of_the_file_refuses_it_too() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = base(&issuer, &backend);
    let gate = Followed::start(&config);
    let mut client = gate.open(&good(&issuer));
    let missing = gate.folder.path("revoked").display().to_string();
    let issuers = Config::without_issuer(&backend).issuer(&issuer, &format!("ca_file = '{missing}'"));
    let told = gate.refused_reload(&issuers.text()).concat();
    assert!(told.contains("issuer[1].ca_file") && told.contains(&missing), "{told}");
    as_before(&gate, &issuer, &mut client);
}

#[test]
fn a_blacklist_file_that_is_missing_is_only_a_warning() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = base(&issuer, &backend);
    let gate = Followed::start(&config);
    let mut client = gate.open(&good(&issuer));
    let missing = gate.folder.path("revoked").display().to_string();
    gate.reload(&config.set("blacklist.file", &format!("'{missing}'")));
    let log = gate.log();
    let warning = log.iter().find(|line| line["event"] == "config_warning").expect("a warning");
    let told = warning["message"].as_str().unwrap();
    assert!(told.contains("blacklist.file") && told.contains(&missing), "{told}");
    Gate::assert_echo(&mut client);
    assert_eq!(outcome(&gate, &good(&issuer)), "101");
}
