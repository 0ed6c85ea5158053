//! What is written down is what the program does: config.example.toml, the README, the command line and
//! the messages about a wrong configuration.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use sidegate::app::config::{Loaded, read, reference};
use sidegate::app::{Log, bind};

/// What every configuration needs; it stands at the end, so that lines count from what is tried.
const ISSUER: &str = "[[issuer]]\nurl = \"https://sso.example.com/realms/demo\"\naudiences = [\"chat\"]\n";

/// Every table of the configuration file.
const SECTIONS: [&str; 33] = [
    "listen",
    "runtime",
    "admin",
    "upstream",
    "http",
    "issuer",
    "token",
    "identity",
    "origin",
    "cors",
    "csp",
    "security_headers",
    "limits",
    "blacklist",
    "heartbeat",
    "session",
    "refuse",
    "refuse.codes",
    "route",
    "route.upstream",
    "route.token",
    "route.identity",
    "route.origin",
    "route.cors",
    "route.csp",
    "route.security_headers",
    "route.limits",
    "route.heartbeat",
    "route.session",
    "route.refuse",
    "drain",
    "log",
    "metrics",
];

/// They touch nothing unless they are written, so the example has them commented out as a whole.
const OPTIONAL: [&str; 3] = ["cors", "csp", "security_headers"];

const ROOT_KEYS: &str = "admin, blacklist, cors, csp, drain, heartbeat, http, identity, issuer, limits, listen, log, metrics, origin, refuse, route, runtime, security_headers, session, token, upstream";

fn file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

fn load(text: &str) -> Loaded {
    read(text, std::iter::empty())
}

fn problems(loaded: &Loaded) -> Vec<String> {
    loaded.problems.iter().map(ToString::to_string).collect()
}

/// `route[1]` is `[[route]]` to a reader.
fn plain(section: &str) -> String {
    section.replace("[1]", "")
}

/// The keys that the code accepts, by table: it says so itself when asked for one that is none.
fn accepted() -> BTreeMap<String, BTreeSet<String>> {
    let mut text = "bogus = 1\n".to_owned();
    for section in SECTIONS {
        let heading = if matches!(section, "issuer" | "route") {
            format!("[[{section}]]")
        } else {
            format!("[{section}]")
        };
        text.extend([heading.as_str(), "\nbogus = 1\n"]);
        text += match section {
            "issuer" => "url = 'https://sso.example.com'\naudiences = ['chat']\n",
            "route" => "path = '/*'\n",
            "csp" => "policy = { default-src = [] }\n",
            _ => "",
        };
    }
    let loaded = load(&text);
    let keys = |message: &str| message.split(", ").map(str::to_owned).collect();
    let accepted: BTreeMap<_, _> = loaded
        .problems
        .iter()
        .map(|problem| {
            let keys = keys(problem.message.strip_prefix("unknown key; accepted here: ").unwrap());
            (plain(problem.path.trim_end_matches("bogus").trim_end_matches('.')), keys)
        })
        .collect();
    assert_eq!(accepted.len(), SECTIONS.len() + 1, "{accepted:#?}");
    accepted
}

/// Lines `key = value`, also those that are commented out, with their table.
struct Line<'t> {
    section: &'t str,
    key: &'t str,
    commented: bool,
    text: &'t str,
}

/// The table that a line begins, also one that is commented out.
fn heading(line: &str) -> Option<&str> {
    let is_optional = |bare: &&str| OPTIONAL.iter().any(|name| bare.starts_with(&format!("[{name}]")));
    let bare = line.strip_prefix("# ").filter(is_optional);
    let text = bare.unwrap_or(line).split('#').next()?.trim();
    text.starts_with('[').then(|| text.trim_matches(['[', ']']))
}

fn lines(example: &str) -> Vec<Line<'_>> {
    let mut section = "";
    let mut lines = Vec::new();
    for text in example.lines() {
        if let Some(heading) = heading(text) {
            section = heading;
            continue;
        }
        let live = text.strip_prefix("# ").unwrap_or(text);
        if let Some((key, _)) = live.split_once(" = ")
            && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        {
            lines.push(Line { section, key, commented: live.len() < text.len(), text: live });
        }
    }
    lines
}

#[test]
fn the_example_names_every_key_and_no_other() {
    let example = file("config.example.toml");
    let lines = lines(&example);
    for (section, keys) in accepted() {
        // What a route overrides is explained where it stands for all.
        if section.starts_with("route.") {
            continue;
        }
        let is_table = |key: &&String| {
            let path = if section.is_empty() { (*key).clone() } else { format!("{section}.{key}") };
            example.lines().filter_map(heading).any(|heading| heading == path)
        };
        let documented = lines.iter().filter(|line| line.section == section).map(|line| line.key.to_owned());
        let documented: BTreeSet<_> = documented.chain(keys.iter().filter(is_table).cloned()).collect();
        if section != "identity.headers" {
            assert_eq!(documented, keys, "[{section}]");
        }
    }
}

#[test]
fn the_example_is_a_configuration_and_has_every_default() {
    let loaded = load(&file("config.example.toml"));
    assert_eq!((problems(&loaded), loaded.warnings.len()), (Vec::new(), 0));
    assert!(loaded.config.is_some());
    let shown: BTreeMap<_, _> = loaded
        .effective
        .iter()
        .filter(|entry| entry.given)
        .map(|entry| (format!("{}.{}", plain(&entry.section), entry.key), entry.value.as_str()))
        .collect();
    let reference = reference();
    assert!(reference.len() >= 60, "{reference:?}");
    for entry in &reference {
        let key = format!("{}.{}", plain(&entry.section), entry.key);
        // Only an example can stand where there is no default.
        if ["issuer.url", "issuer.audiences", "route.path"].contains(&key.as_str()) {
            assert!(shown.contains_key(&key), "{key}");
        } else {
            assert_eq!(shown.get(&key), Some(&entry.value.as_str()), "{key}");
        }
    }
    assert_eq!(shown.len(), reference.len());
}

#[test]
fn each_line_of_the_example_says_what_it_is_for() {
    for line in lines(&file("config.example.toml")) {
        let comment = line.text.rsplit_once(" # ").map_or("", |(_, comment)| comment);
        assert!(comment.len() > 10, "{}", line.text);
    }
}

/// The example with a section that is commented out brought to life.
fn with_section(example: &str, section: &str) -> String {
    let mut inside = false;
    let live = example.lines().map(|line| {
        inside = heading(line).map_or(inside && !line.is_empty(), |heading| heading == section);
        if inside { line.strip_prefix("# ").unwrap_or(line) } else { line }
    });
    live.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_section_that_is_commented_out_shows_what_it_does_when_it_is_written() {
    let example = file("config.example.toml");
    for section in OPTIONAL {
        let loaded = load(&with_section(&example, section));
        assert_eq!((problems(&loaded), loaded.warnings.len()), (Vec::new(), 0), "[{section}]");
        let values = |loaded: &Loaded, given: bool| -> BTreeMap<String, String> {
            let own = loaded.effective.iter().filter(|entry| entry.section == section);
            own.filter(|e| e.given || !given).map(|e| (e.key.clone(), e.value.clone())).collect()
        };
        let shown = values(&loaded, true);
        assert!(shown.len() >= 3, "[{section}] {shown:?}");
        // Where there is no default, what is shown is an example.
        let needed = match section {
            "csp" => lines(&example).iter().find(|line| line.key == "policy").unwrap().text.to_owned(),
            _ => String::new(),
        };
        let defaults = values(&load(&format!("[{section}]\n{needed}\n{ISSUER}")), false);
        assert_eq!(shown, defaults, "[{section}]");
        assert!(values(&load(&example), false).is_empty(), "[{section}] is not off in the example");
    }
}

#[test]
fn what_is_commented_out_in_the_example_works() {
    let example = file("config.example.toml");
    let mut tried = 0;
    let alone = |line: &&Line<'_>| line.commented && !OPTIONAL.contains(&line.section);
    for line in lines(&example).iter().filter(alone) {
        let text = example.replace(&format!("\n# {}\n", line.text), &format!("\n{}\n", line.text));
        assert_ne!(text, example, "{}", line.text);
        let loaded = load(&text);
        // The file of an example need not be there.
        let wrong = loaded.problems.iter().filter(|problem| !problem.message.contains("No such file"));
        // A logout alone is for a single replica, and the line says so.
        let warned = loaded.warnings.iter().filter(|warning| warning.path != "blacklist.backchannel_logout");
        let wrong: Vec<_> = wrong.chain(warned).map(ToString::to_string).collect();
        assert!(wrong.is_empty(), "{}: {wrong:?}", line.text);
        tried += 1;
    }
    assert!(tried > 10, "{tried}");
}

// ---- wrong configurations ------------------------------------------------------------------------------

const COUNT: &str =
    "accepted: a whole number from 1 to 4294967295 (0 is refused: write \"off\" where a limit may be off)";
const SPAN: &str = "accepted: a duration such as \"30s\", \"5m\" or \"250ms\" (0 is refused: write \"off\" where a limit may be off), or \"off\"";
const SIZE: &str = "accepted: a size such as \"512B\", \"32KiB\", \"16MiB\" or \"1GiB\" (0 is refused: write \"off\" where a limit may be off), or \"off\"";
const UPSTREAM_URL: &str =
    "accepted: \"http://HOST:PORT\", \"https://HOST:PORT\" or \"unix:/PATH\", without path or user";
const CARRIERS: &str =
    "accepted: a list, each entry \"header\", \"subprotocol\", \"query:NAME\" or \"cookie:NAME\"";
const RATE: &str =
    "accepted: a rate such as \"100/1s\" (0 is refused: write \"off\" where a limit may be off), or \"off\"";
const NETWORK: &str = "accepted: a range such as \"10.0.0.0/8\" or \"2001:db8::/32\", or an address";
const SOURCE: &str = "accepted: visible ASCII without \";\" and \",\", such as \"'self'\" or \"https://cdn.example.com\", \"$websocket\" or \"$nonce\"";
const POLICY: &str =
    "is missing or empty; accepted: directives with their sources, such as { default-src = [\"'self'\"] }";
const EVERY_PAGE: &str = "with \"*\" in [origin] allow would let every web page read answers in the visitor's name; name the origins";

/// Each text, before an issuer, has exactly one problem.
fn each_is_told(table: &[(&str, &str)]) {
    for (text, told) in table {
        let loaded = load(&format!("{text}\n{ISSUER}"));
        assert_eq!(problems(&loaded), [*told], "{text}");
        assert!(loaded.config.is_none(), "{text}");
    }
}

#[test]
fn a_wrong_value_is_told_with_its_path_its_line_what_it_is_and_what_is_accepted() {
    each_is_told(&[
        ("[listen]\naddress = 8080", "line 2: listen.address = 8080: accepted: a string, or a list of them"),
        (
            "[listen]\naddress = \"localhost\"",
            "line 2: listen.address = \"localhost\": \"localhost\" is no address with a port; accepted: \"127.0.0.1:8080\", \"[::1]:8080\" or a list of them",
        ),
        (
            "[listen]\nhosts = [\"chat.example.com:443\"]",
            "line 2: listen.hosts = [\"chat.example.com:443\"]: \"chat.example.com:443\" is no host name; accepted: names or addresses without port, such as \"chat.example.com\"",
        ),
        (
            "[listen]\npublic_url = \"https://chat.example.com/ws\"",
            "line 2: listen.public_url = \"https://chat.example.com/ws\": accepted: \"https://chat.example.com\" or \"http://HOST:PORT\", without a path",
        ),
        (
            "[listen]\nmax_connections = 0",
            &format!("line 2: listen.max_connections = 0: {COUNT}, or \"off\""),
        ),
        ("[listen]\nheader_timeout = \"0s\"", &format!("line 2: listen.header_timeout = \"0s\": {SPAN}")),
        ("[listen]\n\nkeep_alive = 75", &format!("line 3: listen.keep_alive = 75: {SPAN}")),
        (
            "[listen]\nheader_size = \"1KiB\"",
            "line 2: listen.header_size = \"1KiB\": accepted: from \"8KiB\" to \"1MiB\"",
        ),
        (
            "[runtime]\nworkers = 1000",
            "line 2: runtime.workers = 1000: accepted: \"auto\" or a whole number from 1 to 256",
        ),
        (
            "[admin]\naddress = \"unix:admin.sock\"",
            "line 2: admin.address = \"unix:admin.sock\": accepted: \"127.0.0.1:9090\" or \"unix:/run/sidegate/admin.sock\"",
        ),
        (
            "[admin]\nprobes = \"9091\"",
            "line 2: admin.probes = \"9091\": accepted: an address with a port, such as \"0.0.0.0:9091\"",
        ),
        (
            "[admin]\ntoken_file = \"/nonexistent/token\"",
            "line 2: admin.token_file = \"/nonexistent/token\": No such file or directory (os error 2); accepted: a readable file with a token in it",
        ),
        (
            "[upstream]\nurl = \"ftp://127.0.0.1\"",
            &format!("line 2: upstream.url = \"ftp://127.0.0.1\": {UPSTREAM_URL}"),
        ),
        // A password is shown to nobody, not even where it is wrong.
        (
            "[upstream]\nurl = \"http://user:secret@127.0.0.1\"",
            &format!("line 2: upstream.url = \"http://***@127.0.0.1\": {UPSTREAM_URL}"),
        ),
        (
            "[upstream]\nprofile = \"uvicorn\"",
            "line 2: upstream.profile = \"uvicorn\": accepted: \"generic\" or \"daphne\"",
        ),
        (
            "[upstream]\ntoken = \"cookie:x\"",
            "line 2: upstream.token = \"cookie:x\": accepted: \"strip\", \"keep\", \"header\", \"query:NAME\" or \"subprotocol:MARKER\"",
        ),
        (
            "[http]\nauth = true",
            "line 2: http.auth = true: accepted: \"pass\" or \"optional\" or \"required\"",
        ),
        ("[token]\nfrom = [\"bearer\"]", &format!("line 2: token.from = [\"bearer\"]: {CARRIERS}")),
        (
            "[token]\nfrom = []",
            &format!("line 2: token.from = []: is empty: no token would ever be found; {CARRIERS}"),
        ),
        ("[token]\ncache = \"many\"", &format!("line 2: token.cache = \"many\": {COUNT}, or \"off\"")),
        (
            "[identity]\npayload = \"X_Claims\"",
            "line 2: identity.payload = \"X_Claims\": has a \"_\", which backends fold to \"-\" or drop; accepted: a header name such as \"X-Auth-Subject\"",
        ),
        ("[identity.headers]\nX-A = 1", "line 2: identity.headers.X-A = 1: accepted: a string"),
    ]);
}

#[test]
fn so_is_a_wrong_policy() {
    each_is_told(&[
        (
            "[origin]\nallow = [\"app.example.com\"]",
            "line 2: origin.allow = [\"app.example.com\"]: \"app.example.com\" is no origin (scheme://host[:port], nothing after it); accepted: \"self\", \"https://app.example.com\", \"https://*.example.com\", \"null\", \"token\" or \"*\"",
        ),
        (
            "[origin]\nallow = [\"*\"]\n[token]\nfrom = [\"cookie:__Host-token\"]",
            "line 2: origin.allow = [\"*\"]: \"*\" with a cookie in [token] from would let every web page use the visitor's token; name the origins",
        ),
        ("[limits]\nmessage = \"1.5MiB\"", &format!("line 2: limits.message = \"1.5MiB\": {SIZE}")),
        (
            "[limits]\nmessages_per_session = \"100\"",
            &format!("line 2: limits.messages_per_session = \"100\": {RATE}"),
        ),
        ("[limits]\nfragments = -1", &format!("line 2: limits.fragments = -1: {COUNT}, or \"off\"")),
        (
            "[session]\non_expiry = \"never\"",
            "line 2: session.on_expiry = \"never\": accepted: \"close\" or \"keep\"",
        ),
        (
            "[session]\nexpiry_grace = \"-1s\"",
            "line 2: session.expiry_grace = \"-1s\": accepted: a duration such as \"10s\"; \"0s\" and \"off\" mean none",
        ),
        (
            "[refuse]\nwebsocket = \"yes\"",
            "line 2: refuse.websocket = \"yes\": accepted: \"auto\" or \"close\" or \"http\"",
        ),
        (
            "[refuse.codes]\nunauthorized = 1000",
            "line 2: refuse.codes.unauthorized = 1000: accepted: a close code: 1008, or 3000 to 4999 (RFC 6455 section 7.4)",
        ),
        (
            "[[route]]\nauth = \"none\"",
            "line 1: route[1].path: is missing: the paths that this route is for; accepted: a string",
        ),
        (
            "[[route]]\npath = \"ws\"",
            "line 2: route[1].path = \"ws\": starts with no \"/\"; accepted: a path such as \"/ws/events/{org_id}/\", \"/api/*\" or \"/*\"",
        ),
        (
            "[[route]]\npath = \"/a/{x}\"\n[[route]]\npath = \"/a/{y}\"",
            "line 4: route[2].path = \"/a/{y}\": matches exactly the same paths as the route \"/a/{x}\": keep one of them",
        ),
        (
            "[[route]]\npath = \"/a/\"\nclaims = { organization = \"{org}\" }",
            "line 3: route[1].claims = { organization = \"{org}\" }: organization: {org} is no parameter of the path \"/a/\"; accepted: text with {name} of the path's parameters",
        ),
        (
            "[[route]]\npath = \"/a/\"\nauth = \"none\"\nroles = [\"x\"]",
            "line 3: route[1].auth = \"none\": \"none\" contradicts roles, claims and allow, which need a token; accepted: \"required\" or \"optional\"",
        ),
        (
            "[[route]]\npath = \"/a/\"\nroles = \"admin\"",
            "line 3: route[1].roles = \"admin\": accepted: a list, each entry a string",
        ),
        (
            "[drain]\ndelay = \"30s\"",
            "line 2: drain.delay = \"30s\": accepted: less than [drain] deadline, or no time is left to close sessions",
        ),
        (
            "[log]\nlevel = \"trace\"",
            "line 2: log.level = \"trace\": accepted: \"debug\" or \"info\" or \"warn\" or \"error\"",
        ),
        ("[log]\nrequests = \"yes\"", "line 2: log.requests = \"yes\": accepted: true or false"),
        (
            "[metrics]\nnamespace = \"my-gate\"",
            "line 2: metrics.namespace = \"my-gate\": accepted: letters, digits and \"_\", no digit first; \"\" = bare names",
        ),
        ("listen = \"127.0.0.1:8080\"", "line 1: listen = \"127.0.0.1:8080\": is a table: write [listen]"),
        ("route = \"/*\"", "line 1: route = \"/*\": is a list of tables: write [[route]]"),
    ]);
}

#[test]
fn so_is_a_wrong_limit() {
    each_is_told(&[
        (
            "[listen]\ntrusted_proxies = \"10.0.0.0/8\"",
            "line 2: listen.trusted_proxies = \"10.0.0.0/8\": accepted: a list, each entry a string",
        ),
        (
            "[listen]\ntrusted_proxies = [\"proxy.example.com\"]",
            &format!(
                "line 2: listen.trusted_proxies = [\"proxy.example.com\"]: \"proxy.example.com\" is no address range; {NETWORK}"
            ),
        ),
        (
            "[listen]\nallow_addresses = [\"10.0.0.1/8\"]",
            "line 2: listen.allow_addresses = [\"10.0.0.1/8\"]: \"10.0.0.1/8\" has host bits set: the range is \"10.0.0.0/8\", the one address \"10.0.0.1\"",
        ),
        (
            "[[route]]\npath = \"/a/\"\nallow_addresses = [\"any\"]",
            &format!("line 3: route[1].allow_addresses = [\"any\"]: \"any\" is no address range; {NETWORK}"),
        ),
        ("[limits]\nattempts_per_address = 20", &format!("line 2: limits.attempts_per_address = 20: {RATE}")),
        (
            "[limits]\nattempts_per_address = \"0/60s\"",
            &format!("line 2: limits.attempts_per_address = \"0/60s\": {RATE}"),
        ),
        (
            "[limits]\nattempts_count = \"every\"",
            "line 2: limits.attempts_count = \"every\": accepted: \"refused\" or \"all\"",
        ),
        (
            "[limits]\nsessions_per_address = 0",
            &format!("line 2: limits.sessions_per_address = 0: {COUNT}, or \"off\""),
        ),
        (
            "[limits]\nsessions_per_user = \"5\"",
            &format!("line 2: limits.sessions_per_user = \"5\": {COUNT}, or \"off\""),
        ),
        (
            "[limits]\non_user_limit = \"close\"",
            "line 2: limits.on_user_limit = \"close\": accepted: \"refuse\" or \"close_oldest\"",
        ),
        (
            "[limits]\ncompression = \"off\"",
            "line 2: limits.compression = \"off\": accepted: \"pass\" or \"strip\"",
        ),
        (
            "[[route]]\npath = \"/a/\"\nlimits = { sessions_per_user = 0 }",
            &format!("line 3: route[1].limits.sessions_per_user = 0: {COUNT}, or \"off\""),
        ),
        // They are the gate's as a whole.
        (
            "[[route]]\npath = \"/a/\"\nlimits = { sessions = 5 }",
            "line 3: route[1].limits.sessions = 5: unknown key; accepted here: compression, fragments, message, messages_per_session, on_user_limit, sessions_per_address, sessions_per_user",
        ),
        (
            "[blacklist]\nretention = \"off\"",
            &format!("line 2: blacklist.retention = \"off\": {}", SPAN.strip_suffix(", or \"off\"").unwrap()),
        ),
        ("[blacklist]\nmax_entries = \"off\"", &format!("line 2: blacklist.max_entries = \"off\": {COUNT}")),
        (
            "[blacklist]\nfile = \"/nonexistent/blacklist\"",
            "line 2: blacklist.file = \"/nonexistent/blacklist\": No such file or directory (os error 2); accepted: a readable file, one entry a line",
        ),
        (
            "[blacklist]\non_stale = \"refuse\"",
            "line 2: blacklist.on_stale = \"refuse\": accepted: \"refuse_new\" or \"allow\"",
        ),
        ("[blacklist]\nstale_after = \"0s\"", &format!("line 2: blacklist.stale_after = \"0s\": {SPAN}")),
    ]);
}

#[test]
fn so_is_what_browsers_would_be_told_wrongly() {
    each_is_told(&[
        ("cors = true", "line 1: cors = true: is a table: write [cors]"),
        (
            "[cors]\nallow_methods = [\"GET, POST\"]",
            "line 2: cors.allow_methods = [\"GET, POST\"]: \"GET, POST\" is no HTTP token; accepted: methods such as \"GET\"",
        ),
        (
            "[cors]\nallow_headers = [\"content type\"]",
            "line 2: cors.allow_headers = [\"content type\"]: \"content type\" is no HTTP token; accepted: header names such as \"content-type\"",
        ),
        (
            "[cors]\nexpose_headers = \"etag\"",
            "line 2: cors.expose_headers = \"etag\": accepted: a list, each entry a string",
        ),
        (
            "[cors]\nallow_credentials = true\nexpose_headers = [\"*\"]",
            "line 3: cors.expose_headers = [\"*\"]: browsers ignore \"*\" with allow_credentials; accepted: each name by itself",
        ),
        (
            "[cors]\nallow_credentials = \"yes\"",
            "line 2: cors.allow_credentials = \"yes\": accepted: true or false",
        ),
        ("[cors]\nmax_age = \"0s\"", &format!("line 2: cors.max_age = \"0s\": {SPAN}")),
        (
            "[origin]\nallow = [\"*\"]\n[cors]\nallow_credentials = true",
            &format!("line 4: cors.allow_credentials = true: {EVERY_PAGE}"),
        ),
        (
            "[cors]\nallow_credentials = true\n[[route]]\npath = \"/a/\"\norigin = { allow = [\"*\"] }",
            &format!("line 3: route[1].cors.allow_credentials: {EVERY_PAGE}"),
        ),
        ("[csp]\nreport_only = true", &format!("line 1: csp.policy: {POLICY}")),
        (
            "[[route]]\npath = \"/a/\"\ncsp = { report_only = true }",
            &format!("line 3: route[1].csp.policy: {POLICY}"),
        ),
        (
            "[csp]\npolicy = { default-src = [\"'self' data:\"] }",
            &format!(
                "line 2: csp.policy.default-src = [\"'self' data:\"]: \"'self' data:\" is no source; {SOURCE}"
            ),
        ),
        (
            "[csp]\npolicy = { connect-src = [\"$ws\"] }",
            &format!("line 2: csp.policy.connect-src = [\"$ws\"]: \"$ws\" is no variable; {SOURCE}"),
        ),
        (
            "[csp]\npolicy = { connect-src = [\"wss:$websocket\"] }",
            &format!(
                "line 2: csp.policy.connect-src = [\"wss:$websocket\"]: \"wss:$websocket\" has a variable inside: it stands for a whole source; {SOURCE}"
            ),
        ),
        (
            "[csp]\npolicy = { \"default src\" = [] }",
            "line 2: csp.policy.default src = []: \"default src\" is no directive; accepted: letters, digits and \"-\", such as \"default-src\"",
        ),
        (
            "[csp]\npolicy = { img-src = [], IMG-src = [] }",
            "line 2: csp.policy.img-src = []: occurs twice (case does not count); accepted: once",
        ),
        (
            "[csp]\npolicy = { img-src = [] }\nupstream = \"merge\"",
            "line 3: csp.upstream = \"merge\": accepted: \"replace\" or \"keep\" or \"add\"",
        ),
        (
            "[csp]\npolicy = { img-src = [] }\nreport_only = 1",
            "line 3: csp.report_only = 1: accepted: true or false",
        ),
        (
            "[security_headers]\ncontent_type_options = \"sniff\"",
            "line 2: security_headers.content_type_options = \"sniff\": accepted: \"nosniff\", or \"off\"",
        ),
        (
            "[security_headers]\nreferrer_policy = \"none\"",
            "line 2: security_headers.referrer_policy = \"none\": accepted: \"no-referrer\" or \"no-referrer-when-downgrade\" or \"origin\" or \"origin-when-cross-origin\" or \"same-origin\" or \"strict-origin\" or \"strict-origin-when-cross-origin\" or \"unsafe-url\", or \"off\"",
        ),
        (
            "[[route]]\npath = \"/a/\"\nsecurity_headers = { frame_options = \"deny\" }",
            "line 3: route[1].security_headers.frame_options = \"deny\": accepted: \"DENY\" or \"SAMEORIGIN\", or \"off\"",
        ),
        (
            "[security_headers]\nstrict_transport_security = \"31536000\"",
            "line 2: security_headers.strict_transport_security = \"31536000\": accepted: \"\" for none, or \"max-age=SECONDS\", optionally with \"; includeSubDomains\" and \"; preload\"",
        ),
    ]);
}

#[test]
fn so_is_a_wrong_expression() {
    let table = [
        ("params.room == 'a'", "params.room is no parameter of the path \"/a/{id}/\""),
        (
            "claim.tenant == 'a'",
            "line 1, column 1: unknown variable \"claim\"; accepted: claims, params, request",
        ),
        (
            "claims.tenant =",
            "line 1, column 15: token recognition error at: '='; accepted: a condition in CEL",
        ),
        ("size(claims.groups)", "line 1, column 1: is a number, never true or false"),
        (
            "request.query == ''",
            "line 1, column 8: unknown member request.query; accepted: address, headers, host, method, origin, path",
        ),
        (
            "request.headers['X-Org'] == 'a'",
            "line 1, column 16: \"X-Org\" never occurs: names of headers are lower-case",
        ),
        (
            "request.headers.authorization != ''",
            "line 1, column 16: the header \"authorization\" is never shown: it carries tokens",
        ),
        (
            "claims.name.matches('a')",
            "line 1, column 13: no function \"matches\" is called on a value with 1 argument; accepted: text.startsWith(s), .endsWith(s), .contains(s), size(x), string(x), int(x), uint(x), double(x), bool(x), bytes(x), type(x), has(a.b), and on lists and maps all(x, c), exists(x, c), exists_one(x, c), filter(x, c), map(x, e)",
        ),
    ];
    for (expression, told) in table {
        each_is_told(&[(
            &format!("[[route]]\npath = \"/a/{{id}}/\"\nallow = \"{expression}\""),
            &format!("line 3: route[1].allow = \"{expression}\": {told}"),
        )]);
    }
    each_is_told(&[
        ("[[route]]\npath = \"/a/\"\nallow = true", "line 3: route[1].allow = true: accepted: a string"),
        (
            "[[route]]\npath = \"/a/\"\nauth = \"none\"\nallow = \"true\"",
            "line 3: route[1].auth = \"none\": \"none\" contradicts roles, claims and allow, which need a token; accepted: \"required\" or \"optional\"",
        ),
    ]);
}

#[test]
fn a_wrong_issuer_is_told_as_well() {
    const URL: &str = "url = \"https://sso.example.com\"\n";
    let table: &[(&str, &str)] = &[
        (
            "",
            "issuer: is missing: write at least one [[issuer]] with url and audiences, or auth = \"none\" on every [[route]]",
        ),
        (
            "[[issuer]]\naudiences = [\"chat\"]",
            "line 1: issuer[1].url: is missing: the `iss` of its tokens, byte for byte; accepted: a string",
        ),
        (
            "[[issuer]]\nurl = \"sso\"\naudiences = [\"chat\"]",
            "line 2: issuer[1].url = \"sso\": accepted: an absolute http or https URL without user or fragment",
        ),
        (
            &format!("[[issuer]]\n{URL}"),
            "line 1: issuer[1].audiences: is missing: name at least one value of `aud`, or write any_audience = true to take tokens for anybody",
        ),
        (
            &format!("[[issuer]]\n{URL}audiences = [\"chat\"]\nany_audience = true"),
            "line 4: issuer[1].any_audience = true: contradicts audiences: leave out one of them",
        ),
        (
            &format!("[[issuer]]\n{URL}audiences = [\"chat\"]\nalgorithms = [\"HS256\"]"),
            "line 4: issuer[1].algorithms = [\"HS256\"]: accepted: a list, each entry \"RS256\" or \"RS384\" or \"RS512\" or \"PS256\" or \"PS384\" or \"PS512\" or \"ES256\" or \"ES384\" or \"EdDSA\"",
        ),
        (
            &format!("{ISSUER}{ISSUER}"),
            "line 5: issuer[2].url = \"https://sso.example.com/realms/demo\": occurs twice: the issuer of a token must be one",
        ),
        (
            "[issuer]\nurl = \"https://sso.example.com\"",
            "line 1: issuer = [issuer]: is a list of tables: write [[issuer]]",
        ),
    ];
    for (text, told) in table {
        assert_eq!(problems(&load(text)), [*told], "{text}");
    }
}

#[test]
fn what_is_no_toml_is_told_with_its_line() {
    for (text, told) in [
        ("[listen\naddress = 1", "line 1: not TOML: unclosed table, expected `]`"),
        ("[listen]\naddress = \"a", "line 2: not TOML: invalid basic string, expected `\"`"),
        ("[listen]\nhosts = []\nhosts = []", "line 3: not TOML: duplicate key"),
    ] {
        // The environment is not to blame for keys that could not be read.
        let environment = [("SIDEGATE__LISTEN__ADDRESS".to_owned(), "127.0.0.1:1".to_owned())];
        assert_eq!(problems(&read(text, environment.into_iter())), [told], "{text}");
    }
}

#[test]
fn a_key_that_is_not_built_yet_is_an_unknown_key() {
    const LISTEN: &str = "address, allow_addresses, handshake_timeout, header_size, header_timeout, hosts, keep_alive, max_connections, public_url, trusted_proxies";
    const BLACKLIST: &str = "backchannel_logout, file, max_entries, on_stale, redis, retention, stale_after";
    for section in ["tickets", "tracing"] {
        let told = format!("line 1: {section} = [{section}]: unknown key; accepted here: {ROOT_KEYS}");
        assert_eq!(problems(&load(&format!("[{section}]\n{ISSUER}"))), [told]);
    }
    for (section, key, value, accepted) in [
        ("blacklist", "shared_signals", "true", BLACKLIST),
        ("listen", "proxy_protocol", "true", LISTEN),
        ("listen", "http2", "true", LISTEN),
        ("listen", "tls", "{ cert = \"a\" }", LISTEN),
        ("listen", "adress", "\"\"", LISTEN),
        ("identity", "assertion", "\"x\"", "headers, payload"),
        ("token", "form", "[]", "cache, from"),
    ] {
        let told = format!("line 2: {section}.{key} = {value}: unknown key; accepted here: {accepted}");
        assert_eq!(problems(&load(&format!("[{section}]\n{key} = {value}\n{ISSUER}"))), [told]);
    }
}

#[test]
fn every_problem_is_told_at_once_and_nothing_else() {
    let text = format!(
        "[upstream]\nurl = \"8000\"\n[limits]\nmessage = 1\n[[route]]\npath = \"/ws/\"\nmode = \"off\"\n[log]\ncolour = true\n{ISSUER}"
    );
    let expected = [
        format!("line 2: upstream.url = \"8000\": {UPSTREAM_URL}"),
        format!("line 4: limits.message = 1: {SIZE}"),
        "line 7: route[1].mode = \"off\": accepted: \"enforce\" or \"shadow\"".to_owned(),
        "line 9: log.colour = true: unknown key; accepted here: format, level, requests".to_owned(),
    ];
    assert_eq!(problems(&load(&text)), expected);
}

/// What a configuration that is accepted is warned of.
fn warnings(text: &str) -> Vec<String> {
    let loaded = load(&format!("{text}\n{ISSUER}"));
    assert_eq!(problems(&loaded), Vec::<String>::new(), "{text}");
    assert!(loaded.config.is_some(), "{text}");
    loaded.warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_allowed_and_likely_a_mistake_is_a_warning() {
    for (text, told) in [
        (
            "[token]\nfrom = [\"cookie:token\"]",
            "line 4: token.from = [\"cookie:token\"]: the cookie \"token\" lacks the prefix \"__Host-\": a sibling domain can set it",
        ),
        (
            "[cors]\nallow_headers = [\"*\"]",
            "line 4: cors.allow_headers = [\"*\"]: \"*\" does not cover Authorization (Fetch §4.8): a page cannot send its token; name it too",
        ),
    ] {
        assert_eq!(warnings(&format!("[listen]\ntrusted_proxies = []\n{text}")), [told]);
    }
}

#[test]
fn whoever_counts_addresses_should_say_whether_there_is_a_proxy() {
    const SHARED: &str = "is missing, and [limits] count per address: behind a proxy all clients share one; name the proxy's addresses, or write trusted_proxies = [] if clients connect directly";
    let off = "[limits]\nattempts_per_address = \"off\"";
    assert_eq!(warnings(""), [format!("listen.trusted_proxies: {SHARED}")]);
    assert_eq!(warnings(&format!("[listen]\nhosts = []\n{off}\nsessions_per_address = 9")).len(), 1);
    for silent in [off, "[listen]\ntrusted_proxies = []", "[listen]\ntrusted_proxies = [\"10.0.0.0/8\"]"] {
        assert_eq!(warnings(silent), Vec::<String>::new(), "{silent}");
    }
}

#[test]
fn the_environment_overrides_single_values_outside_of_lists_of_tables() {
    let with = |name: &str, value: &str| {
        read(ISSUER, [(name.to_owned(), value.to_owned()), ("HOME".to_owned(), "/".to_owned())].into_iter())
    };
    for (name, value, section, key, shown) in [
        ("SIDEGATE__LISTEN__ADDRESS", "0.0.0.0:80", "listen", "address", "\"0.0.0.0:80\""),
        ("SIDEGATE__LISTEN__MAX_CONNECTIONS", "100", "listen", "max_connections", "100"),
        ("SIDEGATE__UPSTREAM__CONNECT_TIMEOUT", "off", "upstream", "connect_timeout", "\"off\""),
        ("SIDEGATE__LOG__REQUESTS", "true", "log", "requests", "true"),
        ("SIDEGATE__REFUSE__CODES__TIMEOUT", "4321", "refuse.codes", "timeout", "4321"),
        ("SIDEGATE__RUNTIME__WORKERS", "3", "runtime", "workers", "3"),
        ("SIDEGATE__METRICS__NAMESPACE", "", "metrics", "namespace", "\"\""),
    ] {
        let loaded = with(name, value);
        assert_eq!(problems(&loaded), Vec::<String>::new(), "{name}");
        let entry = loaded.effective.iter().find(|entry| entry.section == section && entry.key == key);
        assert_eq!(entry.map(|entry| (entry.value.as_str(), entry.given)), Some((shown, true)), "{name}");
    }
    for (name, value, told) in [
        (
            "SIDEGATE__LISTEN__COLOUR",
            "red",
            "SIDEGATE__LISTEN__COLOUR = \"red\": `listen.colour` is no scalar key of the configuration"
                .to_owned(),
        ),
        (
            "SIDEGATE__ISSUER__URL",
            "https://evil",
            "SIDEGATE__ISSUER__URL = \"https://evil\": `issuer.url` is no scalar key of the configuration"
                .to_owned(),
        ),
        ("SIDEGATE__LISTEN__KEEP_ALIVE", "0s", format!("SIDEGATE__LISTEN__KEEP_ALIVE = \"0s\": {SPAN}")),
        (
            "SIDEGATE__LISTEN__HOSTS",
            "a",
            "SIDEGATE__LISTEN__HOSTS = \"a\": accepted: a list, each entry a string".to_owned(),
        ),
    ] {
        let loaded = with(name, value);
        assert_eq!(problems(&loaded), [told]);
        assert!(loaded.config.is_none(), "{name}");
    }
}

// ---- the command line ----------------------------------------------------------------------------------

fn sidegate(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidegate"));
    command.args(arguments).env_remove("SIDEGATE_CONFIG");
    command.output().unwrap()
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn written(name: &str, text: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("docs-{name}.toml"));
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn check_says_ok_and_shows_what_is_in_effect() {
    let path = written("good", &file("config.example.toml"));
    let output = sidegate(&["check", "--config", path.to_str().unwrap()]);
    assert_eq!((code(&output), text(&output.stderr)), (Some(0), String::new()));
    let shown = text(&output.stdout);
    let effective = shown.strip_prefix("ok\n").unwrap();
    assert!(effective.contains("\n[listen]\naddress = \"127.0.0.1:8080\"\n"), "{effective}");
    // What it shows is a configuration again, and the same one.
    let again = load(effective);
    assert_eq!(problems(&again), Vec::<String>::new());
    let values = |loaded: &Loaded| -> Vec<_> {
        loaded.effective.iter().map(|e| (e.section.clone(), e.key.clone(), e.value.clone())).collect()
    };
    assert_eq!(values(&again), values(&load(&file("config.example.toml"))));
}

#[test]
fn check_tells_every_problem_on_standard_error_and_returns_78() {
    let path = written("wrong", &format!("[listen]\naddress = 1\nhosts = 2\ntrusted_proxies = []\n{ISSUER}"));
    let path = path.to_str().unwrap();
    let output = sidegate(&["check", "--config", path]);
    assert_eq!((code(&output), text(&output.stdout)), (Some(78), String::new()));
    let expected = format!(
        "error: {path}: line 2: listen.address = 1: accepted: a string, or a list of them\nerror: {path}: line 3: listen.hosts = 2: accepted: a list, each entry a string\n"
    );
    assert_eq!(text(&output.stderr), expected);
    assert_eq!(code(&sidegate(&["run", "--config", path])), Some(78));
}

#[test]
fn a_missing_file_is_78_and_a_wrong_command_64() {
    for command in ["check", "run"] {
        let output = sidegate(&[command, "--config", "/nonexistent/sidegate.toml"]);
        assert_eq!(code(&output), Some(78), "{command}");
        let told = text(&output.stderr);
        assert!(told.contains("/nonexistent/sidegate.toml") && told.contains("--config"), "{told}");
    }
    for arguments in [&["serve"][..], &[], &["check", "--colour"], &["check", "--config"]] {
        assert_eq!(code(&sidegate(arguments)), Some(64), "{arguments:?}");
    }
    for arguments in [["--help"], ["--version"]] {
        assert_eq!(code(&sidegate(&arguments)), Some(0), "{arguments:?}");
    }
}

#[test]
fn the_path_of_the_file_may_stand_in_the_environment() {
    let path = written("environment", ISSUER);
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidegate"));
    let output = command.arg("check").env("SIDEGATE_CONFIG", &path).output().unwrap();
    assert_eq!(code(&output), Some(0), "{}", text(&output.stderr));
    let overridden = command.env("SIDEGATE__LISTEN__ADDRESS", "127.0.0.1:81").output().unwrap();
    assert!(text(&overridden.stdout).contains("\naddress = \"127.0.0.1:81\"\n"));
}

#[test]
fn completions_know_every_command() {
    let output = sidegate(&["completions", "bash"]);
    assert_eq!(code(&output), Some(0));
    let script = text(&output.stdout);
    for command in commands() {
        assert!(script.contains(&command), "{command}");
    }
}

fn commands() -> Vec<String> {
    let help = text(&sidegate(&["--help"]).stdout);
    let (_, rest) = help.split_once("Commands:\n").unwrap();
    let (list, _) = rest.split_once("\n\n").unwrap();
    let commands: Vec<_> = list
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect();
    assert!(commands.len() >= 6, "{help}");
    commands
}

// ---- the README ----------------------------------------------------------------------------------------

/// What stands under a heading, up to the next one of the same rank.
fn chapter<'t>(readme: &'t str, heading: &str) -> &'t str {
    let (_, rest) = readme.split_once(&format!("\n## {heading}\n")).unwrap();
    rest.split("\n## ").next().unwrap()
}

/// The cells of the table rows whose first cell is code.
fn rows(text: &str) -> Vec<Vec<&str>> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|line| {
            line.trim_end_matches(" |").split(" | ").map(|cell| cell.trim_matches([' ', '`'])).collect()
        })
        .collect()
}

/// What the first cells of these rows name, one thing or several.
fn names(text: &str) -> BTreeSet<&str> {
    rows(text).iter().filter_map(|row| row.first().copied()).flat_map(|cell| cell.split("`, `")).collect()
}

/// Label, status, close code, advice of the one table in the code, in its order.
fn reasons() -> Vec<[String; 4]> {
    let code = file("src/base/reject.rs");
    let (_, rest) = code.split_once("\nreasons! {\n").unwrap();
    let (table, _) = rest.split_once("\n}\n").unwrap();
    let number = |number: &str| if number == "0" { "–".to_owned() } else { number.to_owned() };
    table
        .lines()
        .map(|line| {
            let quoted: Vec<_> = line.split('"').collect();
            let [_, label, middle, _bearer, _, _keys, _, advice, _]: [&str; 9] = quoted.try_into().unwrap();
            let mut words = middle.split_whitespace();
            let status = number(words.next().unwrap());
            let close = match words.next().unwrap().trim_end_matches(',').trim_start_matches("Close::") {
                "Unauthorized" => "4001",
                "Forbidden" => "4003",
                "TooManyRequests" => "4029",
                "Timeout" => "4008",
                "Never" => "–",
                code => code.trim_start_matches("Code(").trim_end_matches(')'),
            };
            [label.to_owned(), status, close.to_owned(), advice.to_owned()]
        })
        .collect()
}

#[test]
fn the_table_of_reasons_is_the_one_of_the_code() {
    let readme = file("README.md");
    let written: BTreeSet<Vec<&str>> = rows(chapter(&readme, "Reasons")).into_iter().collect();
    let reasons = reasons();
    assert!(reasons.len() > 35);
    let expected: BTreeSet<Vec<&str>> = reasons
        .iter()
        .map(|row| row.iter().map(String::as_str).collect::<Vec<_>>())
        // They blame nobody and tell nothing: the text below the table has them.
        .filter(|row| !row.iter().skip(1).all(|cell| cell.is_empty() || *cell == "–"))
        .collect();
    let missing: Vec<_> = expected.difference(&written).collect();
    let wrong: Vec<_> = written.difference(&expected).collect();
    assert!(missing.is_empty() && wrong.is_empty(), "missing: {missing:#?}\nwrong: {wrong:#?}");
    for [label, ..] in &reasons {
        assert!(readme.contains(&format!("`{label}`")), "{label}");
    }
}

/// Lines of a table of the client helpers, without their indentation: the same in both languages.
fn client_table(name: &str, table: &str) -> Vec<String> {
    let text = file(name);
    let (_, rest) = text.split_once(&format!("{table} = {{\n")).unwrap();
    let (table, _) = rest.split_once("\n}").unwrap();
    table.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn the_clients_know_every_reason_with_its_code_and_remedy() {
    let [page, python] = ["clients/sidegate.mjs", "clients/sidegate.py"];
    for table in ["REASONS", "MEANINGS"] {
        assert_eq!(client_table(page, table), client_table(python, table), "{table}");
    }
    let written = client_table(page, "REASONS");
    let reasons = reasons();
    let expected: Vec<_> = reasons.iter().filter(|[_, _, _, advice]| !advice.is_empty()).collect();
    assert_eq!(written.len(), expected.len());
    for (line, [label, _, close, advice]) in written.iter().zip(expected) {
        let close = if close == "–" { "0" } else { close };
        let does = ["renew", "again", "wait", "stop"];
        let lines = does.map(|does| format!("\"{label}\": [{close}, \"{does}\", \"{advice}\"],"));
        assert!(lines.contains(line), "{line}\nis none of {lines:#?}");
    }
}

#[test]
fn the_first_screen_has_the_two_commands_and_the_rest_every_other() {
    let readme = file("README.md");
    let first: Vec<_> = readme.lines().take(25).collect();
    assert!(first.contains(&"cargo run --release -- demo") && first.contains(&"./test"), "{first:#?}");
    for command in commands() {
        assert!(readme.contains(&format!("`sidegate {command}")), "{command}");
    }
    assert_eq!(readme.matches("\n<!-- bench:begin -->\n").count(), 1);
    assert_eq!(readme.matches("\n<!-- bench:end -->\n").count(), 1);
}

#[test]
fn the_table_of_commands_is_the_one_of_the_program() {
    let readme = file("README.md");
    let written: BTreeSet<_> = names(chapter(&readme, "Configuration"))
        .iter()
        .filter_map(|name| name.strip_prefix("sidegate "))
        .collect();
    assert_eq!(written, commands().iter().map(String::as_str).collect());
}

/// The text of every file of the program.
fn sources(directory: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        text += &if path.is_dir() { sources(&path) } else { fs::read_to_string(path).unwrap() };
    }
    text
}

#[test]
fn every_event_of_the_log_is_explained_and_no_other() {
    let code = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let code = code.split_whitespace().collect::<Vec<_>>().join(" ");
    // `line(Level::Info, "session_opened")`, `line(level, "revocation")`
    let lines = code.split("evel").filter_map(|rest| {
        let word = rest.strip_prefix("::").map(|rest| rest.trim_start_matches(char::is_alphabetic));
        word.unwrap_or(rest).strip_prefix(", \"")
    });
    let events: BTreeSet<_> = lines
        .chain(code.split(" warn(\"").skip(1))
        // It is written without its usual helpers, for there is no room for lines when it is.
        .chain(["log_lines_dropped\""])
        .filter_map(|rest| rest.split('"').next())
        .filter(|event| event.len() > 1)
        .collect();
    assert!(events.len() > 20, "{events:?}");
    let readme = file("README.md");
    assert_eq!(names(chapter(&readme, "Log")), events);
}

#[test]
fn every_configuration_in_the_readme_is_one() {
    let readme = file("README.md");
    let blocks: Vec<_> =
        readme.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 3, "{}", blocks.len());
    for block in blocks {
        let issuer = if block.contains("[[issuer]]") { "" } else { ISSUER };
        let listen = if block.contains("[listen]") { "" } else { "[listen]\ntrusted_proxies = []\n" };
        let loaded = load(&format!("{listen}{block}\n{issuer}"));
        // The file of an example need not be there.
        let wrong = loaded.problems.iter().filter(|problem| !problem.message.contains("No such file"));
        let wrong: Vec<_> = wrong.map(ToString::to_string).collect();
        assert_eq!((wrong, loaded.warnings.len()), (Vec::new(), 0), "{block}");
    }
    for section in SECTIONS.iter().filter(|section| !section.contains('.')) {
        assert!(readme.contains(&format!("[{section}]")), "README says nothing of [{section}]");
    }
}

/// Answers every connection with one key, so that a fetch succeeds.
fn issuer() -> SocketAddr {
    let body = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"1","use":"sig","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]);
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A gate that serves until this process ends: its address, and that of its admin listener.
fn gate() -> (SocketAddr, SocketAddr) {
    let blacklist = written("blacklist", "# nobody\n");
    let text = format!(
        "[listen]\naddress = '127.0.0.1:0'\n[runtime]\nworkers = 1\n[admin]\naddress = '127.0.0.1:0'\n[upstream]\nurl = 'http://127.0.0.1:1'\nconnect_timeout = '10ms'\n[[issuer]]\nurl = 'http://127.0.0.1/realms/demo'\njwks_uri = 'http://{}/certs'\naudiences = ['chat']\n[blacklist]\nfile = '{}'\n",
        issuer(),
        blacklist.display()
    );
    let config = load(&text).config.unwrap();
    let log = Log::to_memory(config.log);
    let gate = bind(config, log).unwrap();
    let addresses = (*gate.addresses().first().unwrap(), gate.admin_addresses().0.unwrap());
    std::thread::spawn(move || gate.run(false));
    addresses
}

#[test]
fn the_table_of_the_admin_listener_is_what_it_answers() {
    let (_, admin) = gate();
    let answer = get(admin, "/nowhere");
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    let (_, rest) = answer.split_once("\"detail\":\"").unwrap();
    // "GET /livez /readyz, POST /drain"
    let offered: BTreeSet<_> = rest
        .split('"')
        .next()
        .unwrap()
        .split(", ")
        .flat_map(|group| {
            let (method, paths) = group.split_once(' ').unwrap();
            paths.split(' ').map(move |path| format!("{method} {path}"))
        })
        .collect();
    let readme = file("README.md");
    assert_eq!(names(chapter(&readme, "Admin and probes")), offered.iter().map(String::as_str).collect());
}

#[test]
fn the_list_of_metrics_is_what_a_gate_serves() {
    let (address, admin) = gate();
    // Series without a closed set of labels exist from the first event on: here they are.
    assert!(get(address, "/").starts_with("HTTP/1.1 502 "));
    let mut scraped = String::new();
    for _ in 0..500 {
        scraped = get(admin, "/metrics");
        if scraped.contains("jwks_last_success_timestamp_seconds{") {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let served: BTreeSet<String> = scraped
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE sidegate_")?.split_once(' '))
        .map(|(name, kind)| match kind.trim() {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        })
        .collect();
    let readme = file("README.md");
    let written: BTreeSet<String> = rows(chapter(&readme, "Metrics"))
        .iter()
        .filter_map(|row| row.first()?.split('{').next().map(str::to_owned))
        .collect();
    assert_eq!(written, served);
    // Each label that the README names is one, and none is left out.
    for row in rows(chapter(&readme, "Metrics")) {
        let (name, labels) = row.first().unwrap().split_once('{').unwrap_or((row.first().unwrap(), "}"));
        let series = scraped
            .lines()
            .filter_map(|line| line.strip_prefix("sidegate_"))
            .find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ', '_'])));
        let series = series.unwrap();
        let found: BTreeSet<_> = series
            .split_once('{')
            .and_then(|(_, rest)| rest.split_once('}'))
            .map_or_else(Vec::new, |(labels, _)| labels.split(',').collect())
            .into_iter()
            .filter_map(|label| label.split_once('='))
            .map(|(label, _)| label)
            .filter(|label| *label != "le")
            .collect();
        let named: BTreeSet<_> = labels.trim_end_matches('}').split(',').filter(|l| !l.is_empty()).collect();
        assert_eq!(found, named, "{series}");
    }
}
