//! Who may ask the admin listener, and whom it delays.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tokio::time::Instant;

use super::super::harness::{Backend, Client, Config, Gate, Issuer, Listening, PATIENCE};
use super::desk::{Desk, Folder, LOCAL, SECRET, Said, answer, quoted, request};

/// Everything that is the operator's alone, and what it would do.
const GUARDED: [&str; 8] = [
    "GET /sessions",
    "DELETE /sessions?all=true",
    "GET /revocations",
    "POST /revocations",
    "DELETE /revocations/0",
    "GET /limits",
    "GET /config",
    "POST /drain",
];

/// A request to the admin listener from this address of the loopback network.
fn ask_from(from: Ipv4Addr, to: SocketAddr, line: &str, lines: &[&str], body: &str) -> Said {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(IpAddr::V4(from), 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let mut client = Client::over(TcpStream::from(socket), Arc::default());
    let lines: Vec<_> = lines.iter().copied().chain(["Connection: close"]).collect();
    client.send(&request(line, &lines, body));
    answer(&mut client)
}

fn ask(desk: &Desk, line: &str, lines: &[&str]) -> Said {
    ask_from(Ipv4Addr::LOCALHOST, desk.gate.admin, line, lines, "")
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

#[test]
fn without_a_token_file_all_of_it_is_403_with_the_remedy() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let gate = Gate::start(&Config::new(&issuer, &backend).route("path = '/ws/'\nauth = 'none'"));
    let mut live = gate.open(&super::super::harness::Handshake::to("/ws/"));
    for line in GUARDED {
        for lines in
            [vec![LOCAL], vec![LOCAL, "Authorization: Bearer "], vec![LOCAL, "Authorization: Bearer x"]]
        {
            let said = ask_from(Ipv4Addr::LOCALHOST, gate.admin, line, &lines, "");
            assert_eq!(said.status, 403, "{line}");
            let detail = said.detail();
            assert!(detail.contains("token_file") && detail.contains("unix:"), "{line}: {detail}");
        }
    }
    Gate::assert_echo(&mut live);
    assert_eq!(gate.control.gate().blacklist.len(), 0);
}

#[test]
fn a_wrong_token_and_none_get_one_and_the_same_answer() {
    let desk = Desk::new();
    let mut live = desk.open(&desk.token_of("alice"));
    let mut answers = Vec::new();
    for line in GUARDED {
        for lines in [vec![LOCAL], vec![LOCAL, "Authorization: Bearer 0perator-s3creT"]] {
            let said = ask(&desk, line, &lines);
            assert_eq!(said.status, 401, "{line}");
            let lines: Vec<_> = said.head.text.lines().filter(|line| !line.starts_with("date:")).collect();
            answers.push((lines.join("\n"), said.body));
        }
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
    assert!(answers[0].0.contains("www-authenticate: Bearer"), "{}", answers[0].0);
    assert!(!answers[0].1.contains(SECRET), "{}", answers[0].1);
    live.assert_echo();
    assert_eq!(desk.get("/revocations")["total"], 0);
}

#[test]
fn what_is_nearly_the_token_is_not_it() {
    let desk = Desk::new();
    let double = format!("{}\r\nAuthorization: Bearer x", bearer(SECRET));
    for wrong in [
        bearer(&SECRET[1..]),
        bearer(&SECRET[..SECRET.len() - 1]),
        bearer(&format!("{SECRET}x")),
        bearer(&format!("{SECRET} {SECRET}")),
        bearer(""),
        format!("Authorization: Basic {SECRET}"),
        format!("Authorization: {SECRET}"),
        format!("Authorization: Bearer\t{SECRET}"),
        format!("Authorization: Bearer  {SECRET}"),
        format!("X-Authorization: Bearer {SECRET}"),
        format!("Cookie: token={SECRET}"),
    ] {
        assert_eq!(ask(&desk, "GET /limits", &[LOCAL, &wrong]).status, 401, "{wrong:?}");
    }
    for target in [format!("/limits?token={SECRET}"), format!("/limits?access_token={SECRET}")] {
        assert_eq!(ask(&desk, &format!("GET {target}"), &[LOCAL]).status, 401, "{target}");
    }
    // The right one first and another behind it: whatever is made of that, nothing is changed by it.
    let mut live = desk.open(&desk.token_of("alice"));
    let said = ask(&desk, "DELETE /sessions?sub=nobody&dry_run=true", &[LOCAL, &double]);
    assert!(matches!(said.status, 200 | 401), "{said:?}");
    live.assert_echo();
    // A user's token, be it ever so good, is none of the operator's.
    let token = bearer(&desk.token_of("alice"));
    assert_eq!(ask(&desk, "GET /limits", &[LOCAL, &token]).status, 401);
    assert_eq!(ask(&desk, "GET /limits", &[LOCAL, &bearer(SECRET)]).status, 200);
}

#[test]
fn after_twenty_wrong_tokens_an_address_waits_and_nobody_else() {
    let desk = Desk::new();
    let mut live = desk.open(&desk.token_of("alice"));
    let elsewhere = Ipv4Addr::new(127, 0, 0, 2);
    let from = |from: Ipv4Addr, token: &str| {
        ask_from(from, desk.gate.admin, "GET /limits", &[LOCAL, &bearer(token)], "")
    };
    // A token that was forgotten is no guess, however often.
    for _ in 0..30 {
        assert_eq!(ask_from(elsewhere, desk.gate.admin, "GET /limits", &[LOCAL], "").status, 401);
    }
    assert_eq!(from(elsewhere, SECRET).status, 200);
    for n in 0..20 {
        assert_eq!(from(elsewhere, &format!("guess-{n}")).status, 401, "{n}");
    }
    // Guesses on all kinds of requests count together; from now on the right one is not looked at either.
    for (line, token) in [
        ("GET /limits", "guess"),
        ("GET /limits", SECRET),
        ("POST /drain", SECRET),
        ("DELETE /sessions?all=true", SECRET),
    ] {
        let said = ask_from(elsewhere, desk.gate.admin, line, &[LOCAL, &bearer(token)], "");
        assert_eq!(said.status, 429, "{line} {token}");
        let after: u64 = said.head.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=120).contains(&after), "{after}");
        assert!(!said.detail().is_empty());
    }
    assert_eq!(ask_from(elsewhere, desk.gate.admin, "GET /limits", &[LOCAL], "").status, 429);
    // Kubelet and Prometheus of that address go on, and so does the operator of another.
    for page in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(ask_from(elsewhere, desk.gate.admin, &format!("GET {page}"), &[LOCAL], "").status, 200);
    }
    assert_eq!(from(Ipv4Addr::LOCALHOST, SECRET).status, 200);
    assert_eq!(from(Ipv4Addr::new(127, 0, 0, 3), SECRET).status, 200);
    live.assert_echo();
    // Guesses at the operator's token are not counted against the address as a client.
    assert_eq!(desk.gate.control.gate().attempts.tracked(), 0);
    assert_eq!(desk.get("/limits")["held"]["tracked_addresses"], 0);
}

#[test]
fn right_tokens_and_what_is_asked_wrongly_with_them_are_no_guesses() {
    let desk = Desk::new();
    for _ in 0..25 {
        assert_eq!(desk.ask("GET /limits").status, 200);
        assert_eq!(desk.say("POST /revocations", "nonsense").status, 400);
        assert_eq!(desk.ask("DELETE /revocations/0").status, 404);
    }
    assert_eq!(desk.ask("GET /limits").status, 200);
}

#[test]
fn what_comes_from_a_web_page_is_refused_even_with_the_token() {
    let desk = Desk::new();
    let mut live = desk.open(&desk.token_of("alice"));
    let right = bearer(SECRET);
    for line in GUARDED {
        for origin in ["https://evil.example", "null", "http://localhost", "http://127.0.0.1:9090", ""] {
            let said = ask(&desk, line, &[LOCAL, &right, &format!("Origin: {origin}")]);
            assert_eq!(said.status, 403, "{line} {origin:?}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "1.2.3", "", "local host"]
        {
            let said = ask(&desk, line, &[&format!("Host: {host}"), &right]);
            assert!(matches!(said.status, 400 | 403), "{line} {host:?}: {}", said.status);
        }
        assert_eq!(ask(&desk, line, &["Host: localhost", "Host: evil.example", &right]).status, 403);
        assert_eq!(ask(&desk, line, &[&right]).status, 403, "no Host");
    }
    // A preflight gets nothing that would let a page go on.
    let preflight = ["Origin: https://evil.example", "Access-Control-Request-Method: DELETE", LOCAL];
    let said = ask(&desk, "OPTIONS /sessions", &preflight);
    assert_eq!(said.status, 403);
    assert!(!said.head.text.to_lowercase().contains("access-control"), "{}", said.head.text);
    live.assert_echo();
    assert_eq!(desk.get("/revocations")["total"], 0);
    for host in ["localhost:9090", "127.0.0.1", "[::1]:9090", "10.1.2.3:9090"] {
        assert_eq!(ask(&desk, "GET /limits", &[&format!("Host: {host}"), &right]).status, 200, "{host}");
    }
}

#[test]
fn neither_the_probes_nor_the_public_listener_serve_any_of_it() {
    let (issuer, backend, folder) = (Issuer::start(), Backend::start(), Folder::new());
    let token = folder.write("token", SECRET);
    let config = Config::new(&issuer, &backend)
        .set("admin.token_file", &quoted(&token))
        .set("admin.probes", "'127.0.0.1:0'");
    let running = Listening::start(&config);
    let lines = [LOCAL, &bearer(SECRET)];
    for line in GUARDED {
        let said =
            ask_from(Ipv4Addr::LOCALHOST, running.probes.unwrap(), line, &lines, "{\"sub\":\"alice\"}");
        assert_eq!(said.status, 404, "{line}");
        assert!(
            !said.body.contains("sessions") && !said.body.contains("revocations"),
            "{line}: {}",
            said.body
        );
        // To the public listener it is a request like any other: the backend's.
        let said = ask_from(Ipv4Addr::LOCALHOST, running.public, line, &lines, "{\"sub\":\"alice\"}");
        assert_eq!((said.status, said.body.as_str()), (200, "plain"), "{line}");
        assert!(backend.last().line().starts_with(line), "{line}");
    }
    for page in ["/livez", "/readyz", "/metrics", "/drained"] {
        assert_eq!(
            ask_from(Ipv4Addr::LOCALHOST, running.public, &format!("GET {page}"), &lines, "").body,
            "plain"
        );
    }
    assert_eq!(running.control.gate().blacklist.len(), 0);
    assert_eq!(ask_from(Ipv4Addr::LOCALHOST, running.admin.unwrap(), "GET /limits", &lines, "").status, 200);
}

#[test]
fn over_a_unix_socket_all_of_it_is_served_without_a_token_and_guesses_do_not_count() {
    let (issuer, backend, folder) = (Issuer::start(), Backend::start(), Folder::new());
    let path = folder.path("admin.sock");
    let config = Config::new(&issuer, &backend).set("admin.address", &format!("'unix:{}'", path.display()));
    let _running = Listening::start(&config);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let ask = |line: &str, lines: &[&str], body: &str| {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let lines: Vec<_> = lines.iter().copied().chain(["Connection: close"]).collect();
        stream.write_all(&request(line, &lines, body)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse::<u16>().unwrap(), serde_json::from_str::<Value>(body).unwrap_or_default())
    };
    for n in 0..30 {
        assert_eq!(ask("GET /limits", &[LOCAL, &bearer(&format!("guess-{n}"))], "").0, 200);
    }
    let (status, told) = ask("POST /revocations", &[LOCAL], &json!({"sub": "alice"}).to_string());
    assert_eq!((status, &told["scope"]), (201, &json!("replica")));
    for line in ["GET /sessions", "GET /revocations", "GET /config", "DELETE /sessions?all=true"] {
        assert_eq!(ask(line, &[LOCAL], "").0, 200, "{line}");
    }
    // A page cannot reach it, but what forwards to it may be reached by one.
    assert_eq!(ask("GET /sessions", &[LOCAL, "Origin: https://evil.example"], "").0, 403);
    assert_eq!(ask("GET /sessions", &["Host: evil.example"], "").0, 403);
    let id = told["id"].as_str().unwrap();
    assert_eq!(ask(&format!("DELETE /revocations/{id}"), &[LOCAL], "").0, 204);
}

#[test]
fn slow_and_huge_requests_of_operators_and_strangers_delay_no_frame() {
    let desk = Desk::new();
    let mut live = desk.open(&desk.token_of("alice"));
    // A list that is long to write, and requests that never end.
    let rows = |n| json!({"sub": format!("user-{n}"), "reason": "x".repeat(250)});
    desk.revoke_all(&(0..1000).map(rows).collect::<Vec<_>>());
    let right = bearer(SECRET);
    let begun: Vec<_> = (0..100)
        .map(|n| {
            let mut client = desk.gate.operator();
            let lines = if n % 2 == 0 { vec![LOCAL, &right, "Content-Length: 1000"] } else { vec![LOCAL] };
            let bytes = request("POST /revocations", &lines, "");
            // Half a head, or a head and half a body.
            client.send(if n % 2 == 0 { &bytes } else { &bytes[..bytes.len() / 2] });
            client
        })
        .collect();
    // None of them stands in another's way.
    assert_eq!(desk.ask("GET /limits").status, 200);
    // Asked by two at once the admin listener always has something to do: if it did it in the thread of the
    // session, an echo would take as long as a list does.
    let lists = Mutex::new(Vec::new());
    let echoes = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let huge = "x".repeat(200_000);
                while lists.lock().unwrap().len() < 16 {
                    let sent = Instant::now();
                    assert_eq!(desk.ask("GET /revocations?limit=1000").status, 200);
                    lists.lock().unwrap().push(sent.elapsed());
                    let mut client = desk.gate.operator();
                    client.try_send(&request("POST /revocations", &[LOCAL], &huge));
                }
            });
        }
        let mut echoes = Vec::new();
        while lists.lock().unwrap().len() < 16 {
            let sent = Instant::now();
            live.assert_echo();
            echoes.push(sent.elapsed());
        }
        echoes
    });
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let (echo, list) = (median(echoes), median(lists.into_inner().unwrap()));
    assert!(echo * 4 < list, "an echo takes {echo:?}, a list {list:?}");
    drop(begun);
    assert_eq!(desk.get("/revocations")["total"], 1000);
}
