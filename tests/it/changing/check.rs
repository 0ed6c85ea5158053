//! `sidegate check`: every problem at once, warnings, and what is in effect.

use super::super::harness::{Folder, said, sidegate};

const ISSUER: &str = "[[issuer]]\nurl = \"https://sso.example.com/realms/demo\"\naudiences = [\"chat\"]\n";

/// Exit code, standard output and standard error; the name of the file is left out.
fn check(text: &str) -> (i32, String, Vec<String>) {
    let folder = Folder::new();
    let path = folder.write("sidegate.toml", text);
    let (code, out, err) = said(&mut sidegate("check", &path), "");
    let name = format!("{}: ", path.display());
    (code, out, err.lines().map(|line| line.replacen(&name, "", 1)).collect())
}

fn of_issuer(text: &str) -> (i32, String, Vec<String>) {
    check(&format!("[listen]\ntrusted_proxies = []\n{text}\n{ISSUER}"))
}

const PROXIES: &str = "warning: listen.trusted_proxies: is missing, and [limits] count per address: behind a proxy all clients share one; name the proxy's addresses, or write trusted_proxies = [] if clients connect directly";

#[test]
fn limits_per_address_without_a_word_on_proxies_are_warned_of() {
    let off = "[limits]\nattempts_per_address = \"off\"\n";
    for (text, warned) in [
        ("", true),
        ("[limits]\nattempts_per_address = \"3/1s\"\n", true),
        (off, false),
        (&format!("{off}sessions_per_address = 5\n"), true),
        (&format!("{off}[[route]]\npath = \"/a/\"\n[route.limits]\nsessions_per_address = 5\n"), true),
        (&format!("{off}[[route]]\npath = \"/a/\"\n[route.limits]\nsessions_per_user = 5\n"), false),
        ("[listen]\ntrusted_proxies = []\n", false),
        ("[listen]\ntrusted_proxies = [\"10.0.0.0/8\"]\n", false),
        ("[listen]\nhosts = []\n", true),
    ] {
        let (code, out, err) = check(&format!("{text}{ISSUER}"));
        assert_eq!(code, 0, "{err:?}");
        assert!(out.starts_with("ok\n"), "{out}");
        let told = err.iter().any(|line| {
            line.split("line").next() == Some(PROXIES) || line.contains("trusted_proxies: is missing")
        });
        assert_eq!(told, warned, "{text}: {err:?}");
        assert_eq!(err.len(), usize::from(warned), "{err:?}");
    }
}

#[test]
fn a_cookie_that_a_sibling_domain_can_set_is_warned_of_where_it_is_written() {
    for (text, warned) in [
        ("[token]\nfrom = [\"cookie:__Host-t\"]\n", vec![]),
        ("[token]\nfrom = [\"header\", \"query:t\"]\n", vec![]),
        ("[token]\nfrom = [\"header\", \"cookie:t\"]\n", vec!["line 4: token.from"]),
        (
            "[token]\nfrom = [\"cookie:Host__t\", \"cookie:__host-t\"]\n",
            vec!["line 4: token.from", "line 4: token.from"],
        ),
        (
            "[token]\nfrom = [\"cookie:t\"]\n[[route]]\npath = \"/a/\"\n[[route]]\npath = \"/b/\"\ntoken = { from = [\"cookie:u\"] }\n",
            vec!["line 4: token.from", "line 9: route[2].token.from"],
        ),
    ] {
        let (code, _, err) = of_issuer(text);
        assert_eq!(code, 0, "{err:?}");
        assert_eq!(err.len(), warned.len(), "{err:?}");
        for (line, place) in err.iter().zip(&warned) {
            assert!(
                line.starts_with(&format!("warning: {place} = "))
                    && line.contains("lacks the prefix \"__Host-\""),
                "{line}"
            );
        }
    }
}

#[test]
fn mistakes_in_rules_are_told_with_line_and_position() {
    let table = [
        ("allow = 'claims.x =='", "route[1].allow = 'claims.x ==': line 1, column 12: "),
        (
            "allow = 'clams.x == 1'",
            "line 1, column 1: unknown variable \"clams\"; accepted: claims, params, request",
        ),
        ("allow = 'claims.on && lower(claims.x) == \"a\"'", "line 1, column 14: no function \"lower\""),
        ("allow = 'params.room == \"a\"'", "params.room is no parameter of the path \"/ws/{org}/\""),
        ("allow = 'request.headers.authorization == \"\"'", "never shown: it carries tokens"),
        ("allow = '\"true\"'", "is a text, never true or false"),
        ("allow = ''", "line 1, column 1: "),
        ("allow = true", "accepted: a string"),
        (
            "auth = 'none'\nallow = 'true'",
            "\"none\" contradicts roles, claims and allow, which need a token; accepted: \"required\" or \"optional\"",
        ),
        ("auth = 'none'\nroles = ['a']", "\"none\" contradicts roles"),
        ("auth = 'none'\nclaims = { a = 'b' }", "\"none\" contradicts roles"),
        ("claims = { a = '{room}' }", "{room} is no parameter of the path \"/ws/{org}/\""),
        ("roles = ['']", "names of realm roles, or \"client:role\""),
    ];
    for (rule, part) in table {
        let (code, out, err) = of_issuer(&format!("[[route]]\npath = '/ws/{{org}}/'\n{rule}\n"));
        assert_eq!((code, out.as_str()), (78, ""), "{rule}: {err:?}");
        assert_eq!(err.len(), 1, "{err:?}");
        assert!(err[0].starts_with("error: line 5: route[1]."), "{err:?}");
        assert!(err[0].contains(part), "{part} in {err:?}");
    }
    // All at once, each where it is.
    let rules = table.iter().enumerate();
    let rules: Vec<_> = rules.map(|(n, (rule, _))| format!("[[route]]\npath = '/{n}/'\n{rule}\n")).collect();
    let (code, _, err) = of_issuer(&rules.concat());
    assert_eq!((code, err.len()), (78, table.len()), "{err:#?}");
}

#[test]
fn a_good_file_is_ok_and_what_is_in_effect_is_itself_a_configuration_with_the_same_effect() {
    let text = "[cors]\n[csp]\npolicy = { default-src = [\"'self'\"] }\n[security_headers]\n[[route]]\npath = '/ws/{org}/'\nroles = ['a']\nclaims = { \"a.b\" = '{org}' }\nallow = 'params.org == \"x\"'\n[[route]]\npath = '/b/'\n";
    let out = same_effect(text);
    assert!(out.contains("allow = \"params.org == \\\"x\\\"\"\n"), "{out}");
}

/// What is shown of a configuration has the effect that is shown.
fn same_effect(text: &str) -> String {
    let (code, out, err) = of_issuer(text);
    assert_eq!((code, err.len()), (0, 0), "{err:?}");
    let (code, again, err) = check(out.strip_prefix("ok\n\n").unwrap());
    assert_eq!((code, again.as_str()), (0, out.as_str()), "{err:?}");
    out
}

#[test]
fn what_is_in_effect_on_a_route_with_sections_of_its_own_is_itself_a_configuration() {
    same_effect("[[route]]\npath = '/ws/{org}/'\n[route.origin]\nallow = ['token']\n");
}
