//! The house stands as `src/lib.rs` says: imports go down from floor to floor and never in a ring, and
//! no floor contains what belongs to a higher one.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Folders with the number of their floor. Two of one floor do not know each other.
const FLOORS: [(&str, u8); 7] =
    [("base", 0), ("policy", 1), ("telemetry", 1), ("state", 2), ("io", 3), ("proxy", 4), ("app", 5)];

/// Lines of a file without its tests. The aim is 300; beyond this a file has to be divided.
const MAX_LINES: usize = 420;

const MAX_MAIN: usize = 60;

fn floor(folder: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == folder).map(|(_, floor)| *floor)
}

/// One file, its comments and literals blanked out.
#[derive(Debug)]
struct Source {
    /// Below src/, such as `policy/route.rs`.
    name: String,
    module: Vec<String>,
    production: String,
    tests: String,
}

impl Source {
    fn new(name: &str, text: &str) -> Self {
        let code = blanked(text);
        let only_tests = name.ends_with("/tests.rs");
        let (production, tests) = match code.split_once("#[cfg(test)]\nmod tests {") {
            _ if only_tests => (String::new(), code),
            Some((production, tests)) => (production.to_owned(), tests.to_owned()),
            None => (code, String::new()),
        };
        let path = name.trim_end_matches(".rs").trim_end_matches("/mod");
        let module = if path == "lib" { Vec::new() } else { path.split('/').map(str::to_owned).collect() };
        Self { name: name.to_owned(), module, production, tests }
    }

    fn folder(&self) -> &str {
        self.name.split_once('/').map_or("", |(folder, _)| folder)
    }

    /// Absolute paths, without `crate`, of all that it imports or names.
    fn imports(&self) -> Vec<Vec<String>> {
        imports(&self.production, &self.module)
    }

    fn imports_with_tests(&self) -> Vec<Vec<String>> {
        let mut inner = self.module.clone();
        // tests.rs is a module of its own already.
        if !self.name.ends_with("/tests.rs") {
            inner.push("tests".into());
        }
        let mut all = self.imports();
        all.extend(imports(&self.tests, &inner));
        all
    }
}

fn sources() -> Vec<Source> {
    fn walk(folder: &Path, prefix: &str, found: &mut Vec<Source>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
            if path.is_dir() {
                walk(&path, &format!("{name}/"), found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(Source::new(&name, &fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut found);
    found.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(found.len() > 40, "where are the sources? {found:?}");
    found
}

/// The code with every character of comments, strings and character literals replaced by a blank.
fn blanked(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let blank = |out: &mut String, what: &str| {
        out.extend(what.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
    };
    while let Some(next) = rest.chars().next() {
        let after_word = out.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let length = match next {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").unwrap() + 2,
            '"' => string_length(rest),
            'r' if !after_word && (rest.starts_with("r\"") || rest.starts_with("r#")) => {
                let hashes = rest.bytes().skip(1).take_while(|b| *b == b'#').count();
                let end = format!("\"{}", "#".repeat(hashes));
                let start = hashes + 2;
                rest.get(start..).and_then(|body| body.find(&end)).map_or(1, |at| start + at + end.len())
            }
            '\'' => char_length(rest),
            _ => 0,
        };
        if length == 0 {
            out.push(next);
            rest = rest.strip_prefix(next).unwrap();
        } else {
            let (literal, after) = rest.split_at(length);
            blank(&mut out, literal);
            rest = after;
        }
    }
    out
}

fn string_length(text: &str) -> usize {
    let mut escaped = false;
    let end = text.char_indices().skip(1).find(|(_, c)| {
        let ends = *c == '"' && !escaped;
        escaped = *c == '\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |(at, _)| at + 1)
}

/// 0 for a lifetime.
fn char_length(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((at, escaped))) => {
            let rest = text.get(at + escaped.len_utf8()..).unwrap_or_default();
            rest.find('\'').map_or(0, |end| at + escaped.len_utf8() + end + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}

/// Words, `::`, and single signs.
fn tokens(code: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let length = match word {
            0 if rest.starts_with("::") => 2,
            0 => first.len_utf8(),
            length => length,
        };
        let (token, after) = rest.split_at(length);
        tokens.push(token);
        rest = after.trim_start();
    }
    tokens
}

/// The paths of one tree such as `a::{b, c::*}`; returns the index behind it.
fn tree(tokens: &[&str], mut at: usize, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    loop {
        match tokens.get(at) {
            Some(&"{") => {
                at += 1;
                while tokens.get(at).is_some_and(|token| *token != "}") {
                    at = tree(tokens, at, &path, found);
                    // A new name, and the comma.
                    while tokens.get(at).is_some_and(|token| *token != "," && *token != "}") {
                        at += 1;
                    }
                    at += usize::from(tokens.get(at) == Some(&","));
                }
                return at + 1;
            }
            Some(name) if *name == "*" || name.starts_with(|c: char| c.is_alphabetic() || c == '_') => {
                path.push((*name).to_owned());
                at += 1;
            }
            _ => break,
        }
        if tokens.get(at) != Some(&"::") {
            break;
        }
        at += 1;
    }
    found.push(path);
    at
}

/// Everything of this crate that the code of `module` names, as absolute paths.
fn imports(code: &str, module: &[String]) -> Vec<Vec<String>> {
    let tokens = tokens(code);
    let declared: BTreeSet<&str> = tokens
        .windows(3)
        .filter_map(|window| match window {
            ["mod", name, ";"] => Some(*name),
            _ => None,
        })
        .collect();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let before = at.checked_sub(1).and_then(|before| tokens.get(before));
        let begins_path =
            tokens.get(at + 1) == Some(&"::") && before.is_none_or(|before| !["::", "."].contains(before));
        let ours = matches!(*token, "crate" | "self" | "super") || declared.contains(token);
        at = if begins_path && ours { tree(&tokens, at, &[], &mut found) } else { at + 1 };
    }
    found.iter().map(|path| absolute(path, module)).collect()
}

fn absolute(path: &[String], module: &[String]) -> Vec<String> {
    let mut base = module.to_vec();
    let mut parts = path.iter().peekable();
    match parts.peek().map(|part| part.as_str()) {
        Some("crate") => {
            base.clear();
            parts.next();
        }
        Some("self") => {
            parts.next();
        }
        _ => {}
    }
    while parts.next_if(|part| *part == "super").is_some() {
        base.pop().unwrap();
    }
    // A last `self` is the module itself.
    base.extend(parts.filter(|part| *part != "self").cloned());
    base
}

fn strings(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|part| (*part).to_owned()).collect()
}

#[test]
fn this_test_can_read_imports() {
    let code = r##"
        use crate::{base::{a, b as c}, io::*}; // use crate::comment::x;
        use super::super::state::{self, d};
        mod child;
        fn f<'a>(x: &'a str) { crate::app::g("crate::text::x", 'x', '\'', r#"crate::raw::"x"#); child::h(); }
        macro_rules! m { () => { $crate::base::value::V }; }
        use std::sync::Mutex;
    "##;
    let found: Vec<_> =
        imports(&blanked(code), &strings(&["policy", "route"])).iter().map(|path| path.join("::")).collect();
    let expected = [
        "base::a",
        "base::b",
        "io::*",
        "state",
        "state::d",
        "app::g",
        "policy::route::child::h",
        "base::value::V",
    ];
    assert_eq!(found, expected);
}

#[test]
fn the_floors_are_the_modules_of_the_library() {
    let sources = sources();
    let library = sources.iter().find(|source| source.name == "lib.rs").unwrap();
    let tokens = tokens(&library.production);
    let declared: BTreeSet<_> = tokens
        .windows(2)
        .filter_map(|pair| if let ["mod", name] = pair { Some(*name) } else { None })
        .collect();
    assert_eq!(declared, FLOORS.map(|(name, _)| name).into());
    for source in &sources {
        let known = floor(source.folder()).is_some() || ["lib.rs", "main.rs"].contains(&source.name.as_str());
        assert!(known, "src/{} is on no floor", source.name);
    }
}

#[test]
fn imports_only_go_down() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for source in &sources() {
        let Some(own) = floor(source.folder()) else { continue };
        for path in source.imports_with_tests() {
            let to = path.first().map_or("", String::as_str);
            seen += 1;
            match floor(to) {
                Some(other) if to == source.folder() || other < own => {}
                _ => wrong.push(format!("src/{} imports {}", source.name, path.join("::"))),
            }
        }
    }
    assert!(seen > 200, "only {seen} imports found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_ring_of_imports_inside_a_folder() {
    let sources = sources();
    let file_of: BTreeMap<&[String], &str> =
        sources.iter().map(|source| (source.module.as_slice(), source.name.as_str())).collect();
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for source in &sources {
        for path in source.imports() {
            let mut ends = (1..=path.len()).rev();
            let target = ends.find_map(|end| file_of.get(path.get(..end)?));
            if let Some(target) = target.filter(|target| **target != source.name) {
                edges.entry(&source.name).or_default().insert(target);
            }
        }
    }
    let on_rings: Vec<_> = edges
        .iter()
        .flat_map(|(from, targets)| targets.iter().map(move |to| (*from, *to)))
        .filter(|(from, to)| reachable(to, &edges).contains(from))
        .map(|(from, to)| format!("src/{from} imports src/{to}"))
        .collect();
    assert!(on_rings.is_empty(), "rings of imports: {on_rings:#?}");
}

fn reachable<'s>(file: &'s str, edges: &BTreeMap<&'s str, BTreeSet<&'s str>>) -> BTreeSet<&'s str> {
    let mut seen = BTreeSet::new();
    let mut open = vec![file];
    while let Some(file) = open.pop() {
        if seen.insert(file) {
            open.extend(edges.get(file).into_iter().flatten());
        }
    }
    seen
}

/// No code of these folders contains any of these; `except` are whole files.
fn lacks(folders: &[&str], banned: &[&str], except: &[&str]) {
    let mut wrong = Vec::new();
    for source in sources() {
        let looked_at = folders.contains(&source.folder()) && !except.contains(&source.name.as_str());
        if !looked_at {
            continue;
        }
        // Blanks around `::` and line ends inside an import must not hide anything.
        let flat = tokens(&source.production).join(" ").replace(" :: ", "::");
        for word in banned {
            let found = flat
                .match_indices(word)
                .any(|(at, _)| !flat.get(..at).unwrap().ends_with(|c: char| c.is_alphanumeric() || c == '_'));
            if found {
                wrong.push(format!("src/{}: {word}", source.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn base_and_policy_are_pure() {
    let banned = [
        "tokio::",
        "hyper::",
        "async ",
        ". await",
        "Mutex",
        "RwLock",
        "Condvar",
        "std::fs",
        "std::env",
        "std::thread",
        "std::net::Tcp",
        "std::net::Udp",
        "TcpStream",
        "TcpListener",
        "std::process",
        "Instant",
        "println",
        "eprintln",
    ];
    lacks(&["base", "policy"], &banned, &[]);
    lacks(&["base", "policy", "telemetry", "state", "io", "proxy"], &["SystemTime"], &["base/clock.rs"]);
}

#[test]
fn state_is_memory_only() {
    let banned = [
        "tokio::net",
        "tokio::fs",
        "tokio::spawn",
        "tokio::task",
        "std::fs",
        "TcpStream",
        "TcpListener",
        "UnixStream",
        "std::thread",
        "async fn",
    ];
    lacks(&["state"], &banned, &[]);
}

#[test]
fn only_the_top_floor_parses_files_of_settings_and_ends_the_process() {
    lacks(&["policy", "telemetry", "state", "io", "proxy"], &["toml::", "std::env"], &[]);
    let all = FLOORS.map(|(name, _)| name);
    lacks(&all, &["process::exit", "process::abort", "unsafe "], &[]);
}

#[test]
fn the_program_is_the_library() {
    let sources = sources();
    let main = sources.iter().find(|source| source.name == "main.rs").unwrap();
    assert!(main.production.lines().count() < MAX_MAIN);
    let tokens = tokens(&main.production);
    let used: BTreeSet<_> = tokens
        .windows(3)
        .filter_map(|window| if let ["sidegate", "::", name] = window { Some(*name) } else { None })
        .collect();
    assert_eq!(used, BTreeSet::from(["app"]));
    assert!(!tokens.iter().any(|token| ["mod", "crate", "struct", "enum", "impl"].contains(token)));
}

#[test]
fn files_stay_readable() {
    let sizes = sources().into_iter().map(|source| (source.production.lines().count(), source.name));
    let long: Vec<_> = sizes.filter(|(lines, _)| *lines > MAX_LINES).collect();
    assert!(long.is_empty(), "divide them: {long:?}");
}
