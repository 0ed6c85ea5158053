//! What counts as a change of the file, and how soon.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::time::Duration;

use sidegate::app::reload::Reloader;
use tokio::time::Instant;

use super::super::harness::{Backend, Config, Folder, Followed, Gate, Handshake, Issuer, eventually};
use super::outcome;

/// So soon a changed file is in force.
const SOON: Duration = Duration::from_secs(2);

fn to(path: &str, issuer: &Issuer) -> Handshake {
    Handshake::to(path).bearer(&issuer.good_token())
}

/// Two configurations of the same length.
fn pair(issuer: &Issuer, backend: &Backend) -> [Config; 2] {
    let config = Config::new(issuer, backend);
    [config.clone().route("path = '/one/'"), config.route("path = '/two/'")]
}

fn in_force(gate: &Gate, issuer: &Issuer) -> [String; 2] {
    ["/one/", "/two/"].map(|path| outcome(gate, &to(path, issuer)))
}

/// Waits for the second of the [`pair`].
fn second_is_soon_in_force(gate: &Gate, issuer: &Issuer, since: Instant) {
    eventually("the new file", || (outcome(gate, &to("/two/", issuer)) == "101").then_some(()));
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    assert_eq!(in_force(gate, issuer), ["404 route_unknown", "101"]);
}

#[test]
fn a_file_that_another_one_is_renamed_to_is_followed() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let [one, two] = pair(&issuer, &backend);
    let gate = Followed::start(&one);
    assert_eq!(in_force(&gate, &issuer), ["101", "404 route_unknown"]);
    let since = Instant::now();
    gate.write(&two.text());
    second_is_soon_in_force(&gate, &issuer, since);
    assert_eq!((gate.reloads("success"), gate.reloads("failure")), (1, 0));
}

#[test]
fn a_file_that_is_written_anew_in_place_with_the_same_length_is_followed() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let [one, two] = pair(&issuer, &backend);
    assert_eq!(one.text().len(), two.text().len());
    let gate = Followed::start(&one);
    let since = Instant::now();
    fs::File::options().write(true).open(gate.file()).unwrap().write_all(two.text().as_bytes()).unwrap();
    second_is_soon_in_force(&gate, &issuer, since);
}

/// As a kubelet does: `sidegate.toml` → `..data/sidegate.toml`, and `..data` → a folder with a date.
#[test]
fn a_config_map_that_swaps_its_link_is_followed() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let folder = Folder::new();
    for (name, config) in ["..first", "..second"].iter().zip(pair(&issuer, &backend)) {
        fs::create_dir(folder.path(name)).unwrap();
        fs::write(folder.path(name).join("sidegate.toml"), config.text()).unwrap();
    }
    symlink("..first", folder.path("..data")).unwrap();
    let file = folder.path("sidegate.toml");
    symlink("..data/sidegate.toml", &file).unwrap();
    let text = fs::read_to_string(&file).unwrap();
    let gate = Gate::serve(&text, Some(Reloader::new(file, Box::new(|settings| settings))));
    gate.await_keys();
    assert_eq!(in_force(&gate, &issuer), ["101", "404 route_unknown"]);
    let since = Instant::now();
    symlink("..second", folder.path("..data_tmp")).unwrap();
    folder.rename(&folder.path("..data_tmp"), "..data");
    fs::remove_dir_all(folder.path("..first")).unwrap();
    second_is_soon_in_force(&gate, &issuer, since);
    assert!(!gate.log_text().contains("config_reload_refused"), "{}", gate.log_text());
}

#[test]
fn a_file_that_changes_while_the_gate_starts_is_followed() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let [one, two] = pair(&issuer, &backend);
    let folder = Folder::new();
    // As `run` does: the file is watched first and read then.
    let read = one.text();
    let file = folder.write("sidegate.toml", &read);
    let reloader = Reloader::new(file, Box::new(|settings| settings));
    folder.write("sidegate.toml", &two.text());
    let gate = Gate::serve(&read, Some(reloader));
    gate.await_keys();
    second_is_soon_in_force(&gate, &issuer, Instant::now());
}

#[test]
fn a_file_written_anew_with_the_same_content_is_no_change_but_a_hangup_reloads_it() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::new(&issuer, &backend);
    let gate = Followed::start(&config);
    for _ in 0..3 {
        gate.write(&config.text());
        fs::File::open(gate.file()).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        std::thread::sleep(Duration::from_millis(450));
    }
    assert_eq!((gate.reloads("success"), gate.reloads("failure")), (0, 0));
    assert_eq!(gate.control.gate().snapshot.load().generation, 0);
    gate.reload(&config);
    assert_eq!(gate.control.gate().snapshot.load().generation, 1);
}

#[test]
fn a_file_that_is_written_in_place_is_never_taken_over_half() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::new(&issuer, &backend).route("path = '/one/'\nroles = ['user']");
    let config =
        (0..10).fold(config, |config, n| config.route(&format!("path = '/{n}/'"))).route("path = '/two/'");
    let gate = Followed::start(&config);
    let mut client = gate.open(&to("/two/", &issuer));
    // A file that ends between two routes is a configuration too, one that would close the session.
    let text = config.route("path = '/three/'").text();
    let mut file = fs::File::create(gate.file()).unwrap();
    for piece in text.split_inclusive("[[route]]\n") {
        file.write_all(piece.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    let since = Instant::now();
    eventually("the whole file", || (outcome(&gate, &to("/three/", &issuer)) == "101").then_some(()));
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    Gate::assert_echo(&mut client);
    assert_eq!(gate.control.gate().snapshot.load().generation, 1, "{}", gate.log_text());
}
