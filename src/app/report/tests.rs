use std::fmt::Write as _;

use proptest::prelude::*;
use serde_json::json;

use super::line::Fields;
use super::page::page;
use super::*;
use crate::app::config;
use crate::base::effective::Effective;
use crate::telemetry::logging::{Format, Level, Log, LogSettings};

/// A line as the gate writes it; `more` = fields in JSON, with a comma before them.
fn line(second: u32, event: &str, id: &str, more: &str) -> String {
    format!(
        r#"{{"time":"2026-03-01T09:30:{second:02}.995Z","level":"info","event":"{event}","route":"/ws/*","address":"203.0.113.7","request_id":"{id}","mode":"shadow"{more}}}"#
    )
}

fn opened(id: &str, more: &str) -> String {
    line(1, "session_opened", id, more)
}

fn closed(id: &str, more: &str) -> String {
    line(2, "session_closed", id, more)
}

const MISSING: &str = r#","would_refuse":"token_missing""#;
const EXPIRED: &str = r#","would_refuse":"token_expired""#;

fn summary(lines: &[impl AsRef<str>]) -> Summary {
    let text: String = lines.iter().flat_map(|line| [line.as_ref(), "\n"]).collect();
    let mut summary = Summary::default();
    read(text.as_bytes(), &mut summary).unwrap();
    summary
}

fn effective(text: &str) -> Vec<Effective> {
    let loaded = config::read(text, std::iter::empty());
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    loaded.effective
}

/// The page with this configuration.
fn page_with(lines: &[impl AsRef<str>], text: &str) -> String {
    let effective = effective(text);
    page(&summary(lines), Some(&Known { path: Path::new("gate.toml"), effective: &effective }))
}

const ISSUER: &str = "[[issuer]]\nurl = 'https://sso.example.com/realms/demo'\naudiences = ['chat']\n";

/// Sessions and refused ones of the one route, then the groups' counts.
fn counts(lines: &[impl AsRef<str>]) -> (u64, u64, Vec<u64>) {
    let summary = summary(lines);
    let route = summary.routes.get("/ws/*").unwrap();
    let mut groups: Vec<_> = route.groups.values().map(summary::Group::count).collect();
    groups.sort_unstable();
    (route.sessions, route.refused_sessions, groups)
}

// ---- reading lines -------------------------------------------------------------------------------------

#[test]
fn a_line_is_found_in_whatever_a_log_driver_makes_of_it() {
    let json = opened("1", MISSING);
    let text = "2026-03-01T09:30:01.995Z INFO session_opened route=/ws/* address=203.0.113.7 request_id=1 mode=shadow would_refuse=token_missing";
    for bare in [json.as_str(), text] {
        for wrapped in [
            bare.to_owned(),
            format!("{bare}\r"),
            format!("2026-03-01T09:30:17.000000001Z stdout F {bare}"),
            format!("Mar  1 09:30:17 host-1 sidegate[4242]: {bare}"),
            format!("sidegate-1  | {bare}"),
            json!({"log": format!("{bare}\n"), "stream": "stdout", "time": "2026-03-01T09:30:17Z"})
                .to_string(),
            json!({"MESSAGE": bare, "PRIORITY": "6"}).to_string(),
        ] {
            assert_eq!(counts(&[&wrapped]), (1, 1, vec![1]), "{wrapped}");
        }
    }
}

#[test]
fn what_is_no_line_of_ours_is_counted_and_told() {
    let foreign = [
        "garbage".to_owned(),
        "{".into(),
        "{}".into(),
        "[1]".into(),
        r#"{"event":"session_opened","mode":"shadow","route":"/ws/*"}"#.into(),
        r#"{"level":"info","event":7}"#.into(),
        r#"{"log":"garbage"}"#.into(),
        json!({"log": json!({"log": opened("1", MISSING)}).to_string()}).to_string(),
        opened("1", MISSING).replace('}', ""),
        "2026-03-01T09:30:01.995Z INFO session_opened mode=\"shadow".into(),
        "2026-03-01T09:30:01.995Z INFO session_opened mode=\"shadow\"x=1".into(),
        "2026-03-01T09:30:01.995Z INFO session_opened mode".into(),
        "2026-03-01T09:30:01.995Z INFO something happened mode=shadow".into(),
        "yesterday INFO session_opened mode=shadow".into(),
        "\u{1b}[31mred\u{7}".into(),
    ];
    let summary = summary(&foreign);
    assert_eq!((summary.lines, summary.foreign), (foreign.len() as u64, foreign.len() as u64));
    let page = page(&summary, None);
    assert_eq!(
        page,
        "no line of a route in shadow mode among 15 lines; set mode = \"shadow\" on a [[route]]\n15 lines are not log lines of sidegate\n"
    );
    // Nor is what is not even text.
    let mut summary = Summary::default();
    read(&b"\xff\xfe\x00\n\n  \n\x80"[..], &mut summary).unwrap();
    assert_eq!((summary.lines, summary.foreign), (2, 2));
}

#[test]
fn other_lines_of_ours_are_no_garbage_and_say_nothing() {
    let enforced = opened("1", "").replace("shadow", "enforce");
    let summary = summary(&[
        enforced.as_str(),
        r#"{"time":"2026-03-01T09:30:01.995Z","level":"info","event":"listening","address":"127.0.0.1:1","workers":2}"#,
        "2026-03-01T09:30:01.995Z WARN accept_paused message=\"no files\"",
        &line(1, "handshake_refused", "2", r#","reason":"upstream_unreachable","status":502"#),
    ]);
    assert_eq!((summary.lines, summary.foreign, summary.routes.len()), (4, 0, 0));
}

#[test]
fn a_line_too_long_is_skipped_and_the_next_one_read() {
    let fill = |length: usize| {
        let rest = opened("1", r#","sid":"""#).len();
        opened("1", &format!(r#","sid":"{}""#, "x".repeat(length - rest)))
    };
    let (fits, too_long) = (fill(line::MAX_LINE), fill(line::MAX_LINE + 1));
    for (text, expected) in [
        (format!("{fits}\n"), (1, 0)),
        (fits.clone(), (1, 0)),
        (format!("{too_long}\n{fits}\n"), (1, 1)),
        (format!("{fits}\n{too_long}"), (1, 1)),
        (format!("{}\n{fits}", too_long.repeat(5)), (1, 1)),
    ] {
        let mut summary = Summary::default();
        read(text.as_bytes(), &mut summary).unwrap();
        let sessions: u64 = summary.routes.values().map(|route| route.sessions).sum();
        assert_eq!((sessions, summary.too_long), expected, "{}", text.len());
    }
    let mut summary = Summary::default();
    read(too_long.as_bytes(), &mut summary).unwrap();
    assert!(page(&summary, None).ends_with("1 line over 64 KiB, skipped\n"));
}

proptest! {
    #[test]
    fn whatever_the_gate_writes_is_read_back(user in "\\PC*|[ -~\\n\\t\"\\\\={}]*", origin in any::<String>(), is_json: bool, wrap in 0..4) {
        let format = if is_json { Format::Json } else { Format::Text };
        let log = Log::to_memory(LogSettings { format, level: Level::Info, requests: false });
        let line = log.line(Level::Info, "session_opened").unwrap();
        line.text("route", "/ws/{room}").text("username", &user).text("origin", &origin).number("n", 7).write();
        let written = log.take();
        let bare = written.trim_end_matches('\n');
        let line = match wrap {
            0 => bare.to_owned(),
            1 => format!("2026-03-01T09:30:17.000000001Z stderr F {bare}"),
            2 => format!("Mar 01 09:30:17 host sidegate[1]: {bare}"),
            _ => json!({"log": written, "stream": "stdout"}).to_string(),
        };
        let fields = Fields::read(&line).unwrap();
        prop_assert_eq!(fields.text("event"), Some("session_opened"));
        prop_assert_eq!(fields.text("route"), Some("/ws/{room}"));
        prop_assert_eq!(fields.text("username"), Some(user.as_str()));
        prop_assert_eq!(fields.text("origin"), Some(origin.as_str()));
        prop_assert!(fields.time().is_some());
    }

    #[test]
    fn no_text_stops_the_reader(text in any::<String>()) {
        let mut summary = Summary::default();
        read(text.as_bytes(), &mut summary).unwrap();
        let page = page(&summary, None);
        prop_assert!(page.chars().all(|c| c == '\n' || !c.is_control()));
    }
}

// ---- counting ------------------------------------------------------------------------------------------

#[test]
fn a_session_counts_once_whichever_of_its_lines_are_there_and_in_which_order() {
    let (pass, refused) = ((1, 0, vec![]), (1, 1, vec![1]));
    for (lines, expected) in [
        (vec![opened("1", "")], &pass),
        (vec![opened("1", ""), closed("1", "")], &pass),
        (vec![closed("1", "")], &pass),
        (vec![opened("1", MISSING)], &refused),
        (vec![opened("1", MISSING), closed("1", MISSING)], &refused),
        (vec![closed("1", MISSING)], &refused),
        // Files in the wrong order.
        (vec![closed("1", MISSING), opened("1", MISSING)], &refused),
        // What happened after the handshake.
        (vec![opened("1", ""), closed("1", EXPIRED)], &refused),
        (vec![closed("1", EXPIRED), opened("1", "")], &refused),
    ] {
        assert_eq!(counts(&lines), *expected, "{lines:?}");
    }
}

#[test]
fn sessions_that_share_a_request_id_are_not_one() {
    let one = [opened("1", MISSING), opened("1", MISSING), closed("1", MISSING), closed("1", MISSING)];
    assert_eq!(counts(&one), (2, 2, vec![2]));
    let in_turn = [opened("1", MISSING), closed("1", MISSING), opened("1", MISSING), closed("1", MISSING)];
    assert_eq!(counts(&in_turn), (2, 2, vec![2]));
    let bob = |line: String| line.replace("203.0.113.7", "203.0.113.8");
    let two =
        [opened("1", MISSING), bob(opened("1", EXPIRED)), bob(closed("1", EXPIRED)), closed("1", MISSING)];
    assert_eq!(counts(&two), (2, 2, vec![1, 1]));
}

#[test]
fn plain_requests_count_each_and_apart() {
    let lines = [
        line(1, "request", "1", MISSING),
        line(1, "request", "1", MISSING),
        line(1, "request", "2", ""),
        opened("3", ""),
    ];
    let page = page(&summary(&lines), None);
    assert!(
        page.starts_with("0 of 1 session and 2 of 3 requests on /ws/* would have been refused\n"),
        "{page}"
    );
    assert!(
        page.contains("\n    [[route]] http\n    clients without a token: http = \"optional\""),
        "{page}"
    );
    assert!(page.contains("  token_missing      2  50.0 %"), "{page}");
}

#[test]
fn a_reason_of_a_newer_version_is_counted_and_not_guessed() {
    let page = page(&summary(&[opened("1", r#","would_refuse":"moon_phase""#)]), None);
    assert!(page.contains("(a reason that this version does not know)"), "{page}");
    assert!(!page.contains("moon_phase"));
}

#[test]
fn a_route_that_would_refuse_nobody_says_so() {
    assert_eq!(
        page(&summary(&[opened("1", ""), opened("2", "")]), None),
        "0 of 2 sessions on /ws/* would have been refused\n\n"
    );
}

#[test]
fn what_the_gate_itself_could_not_write_is_told() {
    let dropped = r#"{"level":"warn","event":"log_lines_dropped","count":12}"#;
    let page = page(&summary(&[opened("1", "").as_str(), dropped]), None);
    assert!(page.contains("12 lines dropped by the gate"), "{page}");
}

#[test]
fn memory_is_bounded_whatever_the_log_says() {
    let mut summary = Summary::default();
    for n in 0..5000 {
        let more = format!(r#","would_refuse":"rule_denied","sub":"s{n}","origin":"https://{n}.example""#);
        summary.add(Some(&opened(&n.to_string(), &more)));
    }
    let shown = page(&summary, None);
    assert!(shown.contains(" 1000+  "), "{shown}");
    assert!(shown.contains("  s0, s1, s2 and more\n"), "{shown}");
    for n in 0..2000 {
        summary.add(Some(&opened("x", MISSING).replace("/ws/*", &format!("/{n}"))));
    }
    assert!(summary.routes.len() <= 500, "{}", summary.routes.len());
    assert!(page(&summary, None).contains(" more, of further routes and reasons\n"));
    assert!(!summary.has_forgotten());
    for n in 0..140_000 {
        summary.add(Some(&opened(&format!("live-{n}"), "")));
    }
    assert!(summary.has_forgotten());
    // The last ones are still known.
    summary.add(Some(&closed("live-139999", "")));
    assert_eq!(summary.routes.get("/ws/*").unwrap().sessions, 145_000);
}

// ---- the page ------------------------------------------------------------------------------------------

fn user(name: &str, client: &str) -> String {
    format!(
        r#","sub":"sub-{name}","username":"{name}","iss":"https://sso.example.com/realms/demo","client":"{client}""#
    )
}

#[test]
fn the_page_says_who_why_and_which_line_mends_it() {
    let origin = |origin: &str| format!(r#","origin":"https://{origin}.example.com""#);
    let would = |reason: &str| format!(r#","would_refuse":"{reason}""#);
    let mut lines = vec!["# the beginning is missing".to_owned()];
    for n in 0..10 {
        lines.push(opened(&format!("good-{n}"), &user("alice", "web")));
    }
    for (n, name) in ["alice", "bob", "carol", "dave", "bob"].into_iter().enumerate() {
        let more = user(name, "web") + &origin("staff") + &would("origin_denied");
        lines.push(opened(&format!("origin-{n}"), &more));
        lines.push(closed(&format!("origin-{n}"), &more));
    }
    lines.push(line(3, "session_opened", "c-1", &(user("carol", "old-app") + &would("token_client"))));
    lines.push(line(4, "session_opened", "c-2", &(user("dave", "cli") + &would("token_client"))));
    lines.push(line(5, "session_opened", "m-1", MISSING));
    let rule = opened("r-1", &(user("bob", "web") + &would("rule_denied"))).replace("/ws/*", "/ws/staff/");
    lines.push(rule);
    let config = "[origin]\nallow = [\"self\"]\n\n[[issuer]]\nurl = \"https://sso.example.com/realms/demo\"\naudiences = [\"chat\"]\nclients = [\"web\"]\n\n[[route]]\npath = \"/ws/*\"\nmode = \"shadow\"\n\n[[route]]\npath = \"/ws/staff/\"\nmode = \"shadow\"\nroles = [\"staff\"]\n";
    let expected = "\
8 of 18 sessions on /ws/* would have been refused

  reason         count   share  users  first seen            last seen             who
  origin_denied      5  27.8 %      4  2026-03-01T09:30:01Z  2026-03-01T09:30:01Z  origin https://staff.example.com
  token_client       2  11.1 %      2  2026-03-01T09:30:03Z  2026-03-01T09:30:04Z  client old-app, cli
  token_missing      1   5.6 %      –  2026-03-01T09:30:05Z  2026-03-01T09:30:05Z  address 203.0.113.7

  origin_denied
    gate.toml:2: origin.allow = [\"self\"]
    add \"https://staff.example.com\" to [origin] allow, if such pages are meant
  token_client
    gate.toml:7: issuer[1].clients = [\"web\"]
    add \"old-app\", \"cli\" to [[issuer]] clients, if such clients are meant
  token_missing
    gate.toml: route[1].auth = \"required\" (default)
    clients without a token: auth = \"optional\" would let them in as anonymous, where no roles or claims are asked for

1 of 1 session on /ws/staff/ would have been refused

  reason       count    share  users  first seen            last seen             who
  rule_denied      1  100.0 %      1  2026-03-01T09:30:01Z  2026-03-01T09:30:01Z  bob

  rule_denied
    gate.toml:16: route[2].roles = [\"staff\"]
    give these users at the issuer what the route asks for, or ask for less

1 line is no log line of sidegate
";
    let page = page_with(&lines, config);
    assert_eq!(page, expected, "{page}");
}

#[test]
fn without_a_configuration_the_keys_are_named() {
    let page = page(&summary(&[opened("1", r#","would_refuse":"rule_denied""#), opened("2", MISSING)]), None);
    assert!(
        page.contains("  rule_denied\n    [[route]] roles, [[route]] claims, [[route]] allow\n"),
        "{page}"
    );
    assert!(page.contains("  token_missing\n    [[route]] auth\n"), "{page}");
    assert!(page.ends_with("\nwith --config FILE each key is shown with its line and value\n"), "{page}");
}

#[test]
fn a_session_that_outlives_its_token_is_told_from_one_that_came_too_late() {
    let late = page_with(&[opened("1", EXPIRED), closed("1", EXPIRED)], ISSUER);
    assert!(late.contains("would have been refused\n"), "{late}");
    assert!(late.contains("issuer[1].leeway = \"10s\" (default)\n    clients: get a new token"), "{late}");
    for lines in [[opened("1", ""), closed("1", EXPIRED)], [closed("1", EXPIRED), opened("1", "")]] {
        let outlived = page_with(&lines, ISSUER);
        assert!(outlived.contains("would have been refused or closed\n"), "{outlived}");
        assert!(
            outlived.contains("\n    gate.toml: session.on_expiry = \"close\" (default)\n    1 of them"),
            "{outlived}"
        );
        assert!(!outlived.contains("leeway"), "{outlived}");
    }
}

#[test]
fn the_line_that_decides_is_the_routes_own_if_it_is_written() {
    let denied = opened("1", r#","would_refuse":"origin_denied","origin":"https://a.example""#);
    let route = |lines: &str| {
        format!(
            "{ISSUER}[origin]\nallow = ['https://b.example']\n[[route]]\npath = '/ws/*'\nmode = 'shadow'\n{lines}"
        )
    };
    let own = page_with(&[&denied], &route("origin = { allow = ['https://c.example'] }\n"));
    assert!(own.contains("gate.toml:9: route[1].origin.allow = [\"https://c.example\"]\n    add \"https://a.example\" to origin.allow of this [[route]]"), "{own}");
    let inherited = page_with(&[&denied], &route("origin = { allow_missing = false }\n"));
    assert!(inherited.contains("gate.toml:5: origin.allow = [\"https://b.example\"]\n"), "{inherited}");
    let unknown = page_with(&[&denied], ISSUER);
    assert!(unknown.contains("gate.toml has no [[route]] of this path\n"), "{unknown}");
    assert!(unknown.contains("gate.toml: origin.allow = [\"self\"] (default)\n"), "{unknown}");
}

#[test]
fn only_what_mends_is_proposed() {
    let denied = |origin: &str| {
        let more = json!({"origin": origin}).to_string();
        let more = more.trim_matches(['{', '}']);
        page_with(&[opened("1", &format!(r#","would_refuse":"origin_denied",{more}"#))], ISSUER)
    };
    for origin in
        ["null", "*", "https://a.example/x", "https://a.example\"]\nx", "", "https://a.example\u{1b}[2J"]
    {
        assert!(!denied(origin).contains("add "), "{origin}");
    }
    let long = format!("https://{}.example", "a".repeat(80));
    assert!(!denied(&long).contains("add "), "half of an origin is another one");
    // It is listed: something else denied it, such as a cookie.
    let listed = opened("1", r#","would_refuse":"origin_denied","origin":"https://a.example""#);
    let listed = page_with(&[listed], &format!("[origin]\nallow = ['https://a.example']\n{ISSUER}"));
    assert!(!listed.contains("add ") && listed.contains("clients: open the socket"), "{listed}");
    let missing = page_with(&[opened("1", r#","would_refuse":"origin_denied""#)], ISSUER);
    assert!(missing.contains("1 without Origin: allow_missing = true"), "{missing}");
}

#[test]
fn of_several_issuers_the_one_is_named_whose_tokens_were_seen() {
    let config = format!("{ISSUER}[[issuer]]\nurl = 'https://b.example'\naudiences = ['b']\n");
    let seen = opened("1", r#","would_refuse":"token_audience","iss":"https://b.example","client":"x""#);
    let page = page_with(&[seen], &config);
    assert!(page.contains(":6: issuer[2].audiences") && !page.contains("issuer[1]"), "{page}");
    let unknown = page_with(&[opened("1", r#","would_refuse":"token_issuer""#)], &config);
    assert!(unknown.contains(":2: issuer[1].url") && unknown.contains(":5: issuer[2].url"), "{unknown}");
}

#[test]
fn plain_requests_are_decided_by_http_where_it_is_written() {
    let requests = [line(1, "request", "1", MISSING)];
    let route = |lines: &str| format!("{ISSUER}[[route]]\npath = '/ws/*'\nmode = 'shadow'\n{lines}");
    let http = page_with(&requests, &route("auth = 'required'\nhttp = 'required'\n"));
    assert!(http.contains(":8: route[1].http") && !http.contains("].auth"), "{http}");
    let auth = page_with(&requests, &route("auth = 'required'\n"));
    assert!(auth.contains(":7: route[1].auth") && !auth.contains("].http"), "{auth}");
    let both = [requests[0].clone(), opened("2", MISSING)];
    let both = page_with(&both, &route("http = 'required'\n"));
    assert!(both.contains("route[1].auth = \"required\" (default)") && both.contains("].http"), "{both}");
}

#[test]
fn no_value_of_a_log_reaches_the_terminal_as_it_is() {
    let hostile = "\u{1b}]0;x\u{7}\u{9b}2J\u{202e}\u{200b}\u{2028}\n\rname";
    let mut more = String::new();
    for name in ["sub", "username", "iss", "client", "origin"] {
        let _ = write!(more, ",\"{name}\":{}", json!(hostile));
    }
    let lines: Vec<_> = ["rule_denied", "origin_denied", "token_client", "token_audience"]
        .iter()
        .map(|reason| opened(reason, &format!(r#"{more},"would_refuse":"{reason}""#)))
        .map(|line| line.replace("/ws/*", "/ws/\\u001b[2J\\u202e").replace("203.0.113.7", "\\u001b[2J"))
        .collect();
    let shown = page(&summary(&lines), None) + &page_with(&lines, ISSUER);
    for c in shown.chars().filter(|c| *c != '\n') {
        assert!(!c.is_control() && !['\u{202e}', '\u{200b}', '\u{2028}'].contains(&c), "{c:?} in {shown:?}");
    }
    assert!(
        shown.contains("on /ws/\\u{1b}[2J\\u{202e} would") && shown.contains("\\u{1b}]0;x\\u{7}"),
        "{shown}"
    );
    assert!(shown.lines().all(|line| line.len() < 500));
}

#[test]
fn values_are_cut_and_one_never_looks_like_two() {
    let name = |name: &str| {
        let more = format!(r#","would_refuse":"rule_denied","sub":"1","username":{}"#, json!(name));
        let page = page(&summary(&[opened("1", &more)]), None);
        page.lines().nth(3).unwrap().rsplit("Z  ").next().unwrap().to_owned()
    };
    assert_eq!(name("alice"), "alice");
    assert_eq!(name("René"), "René");
    assert_eq!(name("a, b and 3 more"), "\"a, b and 3 more\"");
    assert_eq!(name("a\" \"b"), "\"a\\\" \\\"b\"");
    assert_eq!(name(&"x".repeat(80)), "x".repeat(80));
    assert_eq!(name(&"x".repeat(81)), "x".repeat(80) + "…");
    assert_eq!(name(&"\u{1b}".repeat(100)), "\\u{1b}".repeat(13) + "…");
}

#[test]
fn what_the_environment_gives_has_no_line() {
    let variable = ("SIDEGATE__SESSION__ON_EXPIRY".to_owned(), "close".to_owned());
    let text = format!("[session]\non_expiry = 'keep'\n{ISSUER}");
    let effective = config::read(&text, std::iter::once(variable)).effective;
    let known = Known { path: Path::new("gate.toml"), effective: &effective };
    let page = page(&summary(&[opened("1", ""), closed("1", EXPIRED)]), Some(&known));
    assert!(page.contains("gate.toml: session.on_expiry = \"close\" (from the environment)\n"), "{page}");
}
