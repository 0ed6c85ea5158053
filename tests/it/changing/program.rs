//! The program itself: SIGHUP, and what the command line and the environment say over the file.

use super::super::harness::{Backend, Client, Config, Gate, Handshake, Issuer, Running, eventually};

fn config(issuer: &Issuer, backend: &Backend) -> Config {
    Config::new(issuer, backend)
}

/// With the keys of its issuer.
fn start(config: &Config, arguments: &[&str], variables: &[(&str, &str)]) -> Running {
    let program = Running::start(&config.text(), arguments, variables);
    program.says("jwks_ready", 1);
    program
}

fn to(path: &str, issuer: &Issuer) -> Handshake {
    Handshake::to(path).bearer(&issuer.good_token())
}

fn open(program: &Running, handshake: &Handshake) -> Client {
    let (client, answer) = program.upgrade(handshake);
    assert_eq!(answer.status, 101, "{}", program.said());
    client
}

#[test]
fn a_hangup_reloads_whether_the_file_has_changed_or_not() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = config(&issuer, &backend);
    let program = start(&config.clone().route("path = '/a/'"), &[], &[]);
    let mut client = open(&program, &to("/a/", &issuer));
    program.signal("HUP", 1);
    program.says("config_reloaded", 1);
    program.write(&config.clone().route("path = '/a/'").route("path = '/b/'").text());
    program.signal("HUP", 1);
    program.says("config_reloaded", 2);
    eventually("the new route", || (program.status(&to("/b/", &issuer)) == 101).then_some(()));
    Gate::assert_echo(&mut client);
    program.write(&config.route("path = '/b/'").text());
    program.signal("HUP", 1);
    assert_eq!(client.close(), (4003, "route_unknown".into()));
}

#[test]
fn a_hangup_with_a_broken_file_ends_nothing_and_says_why() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = config(&issuer, &backend);
    let mut program = start(&config, &[], &[]);
    let mut client = open(&program, &to("/", &issuer));
    program.write("[listen]\nadress = '127.0.0.1:0'\n");
    program.signal("HUP", 1);
    program.says("config_reload_refused", 1);
    program.says("line 2: listen.adress = '127.0.0.1:0': unknown key; accepted here: ", 1);
    std::fs::remove_file(program.folder.path("sidegate.toml")).unwrap();
    program.signal("HUP", 1);
    program.says("No such file", 1);
    Gate::assert_echo(&mut client);
    assert_eq!(program.status(&to("/", &issuer)), 101);
    assert!(program.is_alive());
}

#[test]
fn a_storm_of_hangups_ends_with_the_last_content() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = config(&issuer, &backend);
    let route = |n: usize| config.clone().route("path = '/a/'").route(&format!("path = '/r{n}/'")).text();
    let mut program = start(&config.clone().route("path = '/a/'"), &[], &[]);
    let mut client = open(&program, &to("/a/", &issuer));
    for n in 1..=10 {
        program.write(&route(n));
        program.signal("HUP", 50);
        Gate::assert_echo(&mut client);
    }
    eventually("the last content", || (program.status(&to("/r10/", &issuer)) == 101).then_some(()));
    assert_eq!(program.status(&to("/r9/", &issuer)), 404);
    Gate::assert_echo(&mut client);
    assert!(program.is_alive());
    assert!(!program.said().contains("config_reload_refused"), "{}", program.said());
}

#[test]
fn what_the_command_line_says_of_the_log_survives_a_reload() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = config(&issuer, &backend);
    let program = start(&config.clone().set("log.level", "'error'"), &["--log-level", "info"], &[]);
    for (n, (level, format)) in [("warn", "json"), ("error", "text"), ("info", "json")].iter().enumerate() {
        let changed = config.clone().set("log.level", &format!("'{level}'"));
        program.write(&changed.set("log.format", &format!("'{format}'")).text());
        program.signal("HUP", 1);
        program.says("config_reloaded", n + 1);
        assert_eq!(program.status(&Handshake::to("/")), 401);
        program.says("handshake_refused", n + 1);
    }
    // The form was only said by the file, so it changed with it.
    assert!(program.said().contains(" INFO handshake_refused reason=token_missing"), "{}", program.said());

    let program = start(&config, &["--log-format", "text"], &[]);
    program.write(&config.set("log.format", "'json'").set("log.requests", "true").text());
    program.signal("HUP", 1);
    program.says(" INFO config_reloaded ", 1);
    assert!(!program.said().contains('{'), "{}", program.said());
}

#[test]
fn what_the_environment_says_goes_before_the_new_file_too() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = config(&issuer, &backend);
    let variables = [("SIDEGATE__LISTEN__ADDRESS", "127.0.0.1:0"), ("SIDEGATE__REFUSE__WEBSOCKET", "close")];
    let program = start(&config.clone().set("listen.address", "'127.0.0.1:1'"), &[], &variables);
    program.write(&config.set("listen.address", "'127.0.0.1:2'").set("refuse.websocket", "'http'").text());
    program.signal("HUP", 1);
    program.says("config_reloaded", 1);
    let (mut client, answer) = program.upgrade(&Handshake::to("/"));
    assert_eq!((answer.status, client.close()), (101, (4001, "token_missing".into())));
}
