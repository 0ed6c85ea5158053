//! Reading a TOML file into checked settings. Every problem of a file is found in one go, each with
//! its key path, line, value and what is accepted; every key that is read leaves its effective value
//! behind; a key that nobody read is a problem.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::effective::Effective;
use super::value::{Raw, Value, quoted};

/// Prefix of the environment variables that override a scalar.
pub const ENVIRONMENT_PREFIX: &str = "SIDEGATE__";

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Key path, such as `listen.address` or `route[2].path`.
    pub path: String,
    pub line: Option<usize>,
    /// As written; empty if there is none.
    pub value: String,
    /// What is wrong and what is accepted.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}", self.path)?;
            if !self.value.is_empty() {
                write!(f, " = {}", self.value)?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.message)
    }
}

#[derive(Default)]
struct Sink {
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    effective: Vec<Effective>,
    /// Overrides from the environment by lower-cased key path, with the variable's name.
    environment: BTreeMap<String, (String, String)>,
}

/// A configuration file being read.
pub struct Document<'t> {
    text: &'t str,
    root: Option<DeTable<'t>>,
    sink: RefCell<Sink>,
}

impl<'t> Document<'t> {
    /// Parses the file. Syntax errors are collected like all other problems.
    pub fn parse(text: &'t str, environment: impl Iterator<Item = (String, String)>) -> Self {
        let (root, errors) = DeTable::parse_recoverable(text);
        let root = root.into_inner();
        let mut sink = Sink::default();
        for error in &errors {
            sink.problems.push(Problem {
                path: String::new(),
                line: error.span().map(|span| line_of(text, &span)),
                value: String::new(),
                message: format!("not TOML: {}", error.message().replace('\n', "; ")),
            });
        }
        for (name, value) in environment {
            if let Some(rest) = name.strip_prefix(ENVIRONMENT_PREFIX) {
                let path = rest.to_ascii_lowercase().replace("__", ".");
                sink.environment.insert(path, (name, value));
            }
        }
        // After a syntax error the rest of the tree is a guess: its problems would be noise.
        let root = errors.is_empty().then_some(root);
        Self { text, root, sink: RefCell::new(sink) }
    }

    /// The root table; `None` if the file is not TOML.
    pub fn root(&self) -> Option<Section<'_>> {
        self.root.as_ref().map(|table| Section::new(self, String::new(), Some(table), None))
    }

    /// What was found: problems, warnings, and the effective value of each key that was read.
    pub fn finish(self) -> (Vec<Problem>, Vec<Problem>, Vec<Effective>) {
        let mut sink = self.sink.into_inner();
        // Of a file that is no TOML nothing was read, so nothing is known to be left over.
        for (path, (name, value)) in sink.environment.into_iter().filter(|_| self.root.is_some()) {
            sink.problems.push(Problem {
                path: name,
                line: None,
                value: quoted(&value),
                message: format!("`{path}` is no scalar key of the configuration"),
            });
        }
        sink.problems.sort_by_key(|problem| problem.line);
        (sink.problems, sink.warnings, sink.effective)
    }
}

fn line_of(text: &str, span: &Range<usize>) -> usize {
    text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1
}

/// One table. When dropped it reports the keys that nobody asked for.
pub struct Section<'d> {
    document: &'d Document<'d>,
    path: String,
    table: Option<&'d DeTable<'d>>,
    span: Option<Range<usize>>,
    asked: RefCell<Vec<String>>,
}

impl<'d> Section<'d> {
    fn new(
        document: &'d Document<'d>,
        path: String,
        table: Option<&'d DeTable<'d>>,
        span: Option<Range<usize>>,
    ) -> Self {
        Self { document, path, table, span, asked: RefCell::default() }
    }

    /// Whether the file has this table at all.
    pub fn is_given(&self) -> bool {
        self.table.is_some()
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn entry(&self, key: &str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.asked.borrow_mut().push(key.to_owned());
        self.table?.get(key)
    }

    /// Whether the file or the environment gives this key.
    pub fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
            || self.document.sink.borrow().environment.contains_key(&self.full(key))
    }

    /// Whether the key is absent or an empty list.
    pub fn has_none(&self, key: &str) -> bool {
        let entry = self.written(key);
        entry.is_none_or(|entry| entry.get_ref().as_array().is_some_and(|items| items.is_empty()))
    }

    /// Reports what is wrong with a key; the message says what is accepted.
    pub fn problem(&self, key: &str, message: impl Into<String>) {
        let problem = self.describe(key, &message.into());
        self.document.sink.borrow_mut().problems.push(problem);
    }

    /// Reports what is wrong with one name of a [`Self::map`].
    pub fn problem_in(&self, key: &str, name: &str, message: impl Into<String>) {
        let table = self.written(key).and_then(|entry| entry.get_ref().as_table());
        let inner = Section::new(self.document, self.full(key), table, self.span.clone());
        inner.problem(name, message);
        let names = table.into_iter().flat_map(|table| table.keys());
        inner.asked.borrow_mut().extend(names.map(|name| name.get_ref().to_string()));
    }

    /// Reports what is allowed and yet likely a mistake.
    pub fn warning(&self, key: &str, message: impl Into<String>) {
        let warning = self.describe(key, &message.into());
        self.document.sink.borrow_mut().warnings.push(warning);
    }

    fn describe(&self, key: &str, message: &str) -> Problem {
        let entry = self.written(key);
        let span = entry.map(Spanned::span).or_else(|| self.span.clone());
        let value =
            entry.and_then(|entry| self.document.text.get(entry.span())).map(masked).unwrap_or_default();
        let path = if key.is_empty() { self.path.clone() } else { self.full(key) };
        let line = span.map(|span| line_of(self.document.text, &span));
        Problem { path, line, value, message: masked(message) }
    }

    fn written(&self, key: &str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.table?.get(key)
    }

    fn line(&self, key: &str) -> Option<usize> {
        self.written(key).map(|entry| line_of(self.document.text, &entry.span()))
    }

    fn leave(&self, key: &str, value: &str, given: bool, line: Option<usize>) {
        let (section, key, value) = (self.path.clone(), key.to_owned(), masked(value));
        let effective = Effective { section, key, value, given, line };
        self.document.sink.borrow_mut().effective.push(effective);
    }

    /// The value of a key that may be absent.
    pub fn optional<T: Value>(&self, key: &str) -> Option<T> {
        let entry = self.entry(key);
        // Tables in arrays have no name that a variable could give.
        let named = !self.path.contains('[');
        let override_by =
            named.then(|| self.document.sink.borrow_mut().environment.remove(&self.full(key))).flatten();
        let raw = match (&override_by, entry) {
            (Some((_, text)), _) => Raw::Environment(text.clone()),
            (None, Some(entry)) => raw(entry.get_ref()),
            (None, None) => return None,
        };
        let value = T::read(&raw);
        match (&value, override_by) {
            (Some(value), None) => self.leave(key, &value.show(), true, self.line(key)),
            (Some(value), Some(_)) => self.leave(key, &value.show(), true, None),
            (None, Some((name, text))) => self.document.sink.borrow_mut().problems.push(Problem {
                path: name,
                line: None,
                value: quoted(&text),
                message: format!("accepted: {}", T::accepts()),
            }),
            (None, None) => self.problem(key, format!("accepted: {}", T::accepts())),
        }
        value
    }

    /// The value of a key, or its default.
    pub fn get<T: Value>(&self, key: &str, default: T) -> T {
        let known = self.document.sink.borrow().problems.len();
        if let Some(value) = self.optional(key) {
            return value;
        }
        if self.document.sink.borrow().problems.len() == known {
            self.leave(key, &default.show(), false, None);
        }
        default
    }

    /// The value of a key that must be there.
    pub fn required<T: Value>(&self, key: &str, why: &str) -> Option<T> {
        let there = self.has(key);
        let value = self.optional(key);
        if !there {
            self.problem(key, format!("is missing: {why}; accepted: {}", T::accepts()));
        }
        value
    }

    /// A table of its own below this one.
    pub fn section(&self, key: &str) -> Section<'d> {
        let entry = self.entry(key);
        let table = entry.and_then(|entry| {
            let table = entry.get_ref().as_table();
            if table.is_none() {
                self.problem(key, format!("is a table: write [{}]", self.full(key)));
            }
            table
        });
        Section::new(self.document, self.full(key), table, entry.map(Spanned::span))
    }

    /// An array of tables, `[[key]]`.
    pub fn sections(&self, key: &str) -> Vec<Section<'d>> {
        let Some(entry) = self.entry(key) else { return Vec::new() };
        let items =
            entry.get_ref().as_array().filter(|items| items.iter().all(|item| item.get_ref().is_table()));
        let Some(items) = items else {
            self.problem(key, format!("is a list of tables: write [[{}]]", self.full(key)));
            return Vec::new();
        };
        let numbered = items.iter().enumerate();
        numbered
            .map(|(i, item)| {
                let path = format!("{}[{}]", self.full(key), i + 1);
                Section::new(self.document, path, item.get_ref().as_table(), Some(item.span()))
            })
            .collect()
    }

    /// A table of free names with string values; `None` if absent.
    pub fn map(&self, key: &str) -> Option<Vec<(String, String)>> {
        self.named(key)
    }

    /// As [`Self::map`], with a default.
    pub fn map_or(&self, key: &str, default: &[(String, String)]) -> Vec<(String, String)> {
        self.named_or(key, default)
    }

    /// As [`Self::map_or`], each name with a list of strings.
    pub fn lists_or(&self, key: &str, default: &[(String, Vec<String>)]) -> Vec<(String, Vec<String>)> {
        self.named_or(key, default)
    }

    fn named<T: Value>(&self, key: &str) -> Option<Vec<(String, T)>> {
        let entry = self.entry(key)?;
        let Some(table) = entry.get_ref().as_table() else {
            self.problem(key, format!("is a table of names, each with {}", T::accepts()));
            return None;
        };
        let mut pairs = Vec::new();
        for (name, value) in table {
            match T::read(&raw(value.get_ref())) {
                Some(value) => pairs.push((name.get_ref().to_string(), value)),
                None => self.problem_in(key, name.get_ref(), format!("accepted: {}", T::accepts())),
            }
        }
        self.leave(key, &show_map(&pairs), true, self.line(key));
        Some(pairs)
    }

    fn named_or<T: Value>(&self, key: &str, default: &[(String, T)]) -> Vec<(String, T)> {
        if self.has(key) {
            return self.named(key).unwrap_or_default();
        }
        self.asked.borrow_mut().push(key.to_owned());
        self.leave(key, &show_map(default), false, None);
        default.to_vec()
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        let Some(table) = self.table else { return };
        let mut asked = self.asked.borrow().clone();
        for key in table.keys().map(|key| key.get_ref().to_string()) {
            if !asked.contains(&key) {
                asked.sort();
                asked.dedup();
                self.problem(&key, format!("unknown key; accepted here: {}", asked.join(", ")));
            }
        }
    }
}

fn show_map<T: Value>(pairs: &[(String, T)]) -> String {
    let pairs: Vec<_> =
        pairs.iter().map(|(name, value)| format!("{} = {}", quoted(name), value.show())).collect();
    if pairs.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", pairs.join(", ")) }
}

/// Hides the passwords of URLs: what is shown ends in logs and tickets.
pub fn masked(value: &str) -> String {
    let mut parts = value.split("://");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for rest in parts {
        let authority = rest.find(['/', '"', '?', ' ', '\'']).unwrap_or(rest.len());
        let at = rest.get(..authority).and_then(|authority| authority.rfind('@'));
        out.push_str(if at.is_some() { "://***" } else { "://" });
        out.push_str(rest.get(at.unwrap_or(0)..).unwrap_or_default());
    }
    out
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(n) => {
            let digits = n.as_str().replace('_', "");
            i64::from_str_radix(&digits, n.radix()).map_or(Raw::Other, Raw::Integer)
        }
        DeValue::Boolean(b) => Raw::Boolean(*b),
        DeValue::Array(items) => Raw::List(items.iter().map(|item| raw(item.get_ref())).collect()),
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => Raw::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::effective::show;
    use super::super::value::{Count, Span};
    use super::*;

    fn document(text: &str) -> Document<'_> {
        Document::parse(text, std::iter::empty())
    }

    #[test]
    fn every_problem_is_named_with_path_line_value_and_remedy() {
        let doc = document("[listen]\naddress = 1\n\n[listen.deep]\nx = true\ncolour = \"red\"\n");
        {
            let root = doc.root().unwrap();
            let listen = root.section("listen");
            listen.get("address", String::new());
            let deep = listen.section("deep");
            deep.get("x", Count(1));
        }
        let problems: Vec<_> = doc.finish().0.iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "line 2: listen.address = 1: accepted: a string".to_owned(),
                format!("line 5: listen.deep.x = true: accepted: {}", Count::accepts()),
                "line 6: listen.deep.colour = \"red\": unknown key; accepted here: x".to_owned(),
            ]
        );
    }

    #[test]
    fn broken_toml_is_one_problem_with_its_line() {
        let doc = document("[listen]\naddress = \n");
        assert!(doc.root().is_none());
        let problems = doc.finish().0;
        assert_eq!(problems.first().unwrap().line, Some(2));
        assert!(problems.first().unwrap().message.starts_with("not TOML"));
    }

    #[test]
    fn the_environment_overrides_scalars_and_an_unknown_variable_is_a_problem() {
        let env =
            [("SIDEGATE__LISTEN__KEEP_ALIVE", "3s"), ("SIDEGATE__LISTEN__COLOUR", "red"), ("HOME", "/")];
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let doc = Document::parse("[listen]\nkeep_alive = \"1s\"", env);
        {
            let root = doc.root().unwrap();
            let listen = root.section("listen");
            assert_eq!(listen.get("keep_alive", Span(std::time::Duration::ZERO)).show(), "\"3s\"");
        }
        let (problems, _, effective) = doc.finish();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems.first().unwrap().path, "SIDEGATE__LISTEN__COLOUR");
        assert_eq!(show(&effective), "[listen]\nkeep_alive = \"3s\"\n");
    }

    #[test]
    fn a_table_of_lists_names_each_wrong_entry_and_leaves_its_value_behind() {
        let read = |text| {
            let doc = document(text);
            let lists = {
                let root = doc.root().unwrap();
                root.section("csp").lists_or("policy", &[("a".to_owned(), vec!["b".to_owned()])])
            };
            let (problems, _, effective) = doc.finish();
            (lists, problems.iter().map(ToString::to_string).collect::<Vec<_>>(), show(&effective))
        };
        let (lists, problems, shown) = read("[csp]\npolicy = { x = [\"1\", \"2\"], y = [], z = \"3\" }");
        assert_eq!(
            lists,
            [("x".to_owned(), vec!["1".to_owned(), "2".to_owned()]), ("y".to_owned(), Vec::new())]
        );
        assert_eq!(problems, ["line 2: csp.policy.z = \"3\": accepted: a list, each entry a string"]);
        assert_eq!(shown, "[csp]\npolicy = { \"x\" = [\"1\", \"2\"], \"y\" = [] }\n");

        let (lists, problems, shown) = read("[csp]");
        assert_eq!(lists, [("a".to_owned(), vec!["b".to_owned()])]);
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(shown, "[csp]\npolicy = { \"a\" = [\"b\"] }\n");

        let (lists, problems, _) = read("[csp]\npolicy = [\"x\"]");
        assert!(lists.is_empty() && problems.len() == 1, "{problems:?}");
        assert!(problems[0].starts_with("line 2: csp.policy = [\"x\"]: is a table"), "{problems:?}");
    }

    #[test]
    fn passwords_in_urls_are_masked() {
        assert_eq!(masked("\"http://user:pass@host/x\""), "\"http://***@host/x\"");
        assert_eq!(masked("\"http://host/x@y\""), "\"http://host/x@y\"");
        assert_eq!(masked("[\"a://b:c@d\", \"e://f:g@h/i\"]"), "[\"a://***@d\", \"e://***@h/i\"]");
    }
}
