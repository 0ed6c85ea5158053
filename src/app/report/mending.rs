//! Which configuration lines decide a reason, and what would mend it.

use std::path::Path;

use super::summary::{Distinct, Group, printable};
use crate::app::config::deciding;
use crate::base::effective::Effective;
use crate::base::reject::Reason;
use crate::base::value::quoted;
use crate::policy::origin::serialized;

/// A configuration whose lines can be named.
#[derive(Clone, Copy, Debug)]
pub struct Known<'c> {
    pub path: &'c Path,
    pub effective: &'c [Effective],
}

impl Known<'_> {
    /// Whether it has a `[[route]]` of this path.
    pub fn has_route(&self, route: &str) -> bool {
        deciding(self.effective, route, "route.path").is_some()
    }

    fn is_written(&self, route: &str, key: &str) -> bool {
        deciding(self.effective, route, key).is_some_and(|entry| entry.given)
    }

    /// The entries of a key: one, or one for each issuer whose tokens were seen.
    fn entries(&self, route: &str, key: &str, issuers: &Distinct) -> Vec<&Effective> {
        let Some(key) = key.strip_prefix("issuer.") else {
            return deciding(self.effective, route, key).into_iter().collect();
        };
        let urls = self.effective.iter().filter(|e| e.key == "url" && e.section.starts_with("issuer["));
        let (seen, others): (Vec<_>, Vec<_>) =
            urls.partition(|url| issuers.examples.iter().any(|issuer| quoted(issuer) == url.value));
        // Where no token was verified any of them may be meant.
        let issuers = if seen.is_empty() { others } else { seen };
        let keys = issuers.iter().map(|url| format!("{}.{key}", url.section));
        keys.filter_map(|key| deciding(self.effective, route, &key)).collect()
    }

    fn show(&self, entry: &Effective) -> String {
        let file = self.path.display();
        let key = format!("{}.{} = {}", entry.section, entry.key, printable(&entry.value));
        match entry.line {
            Some(line) => format!("{file}:{line}: {key}"),
            None if entry.given => format!("{file}: {key} (from the environment)"),
            None => format!("{file}: {key} (default)"),
        }
    }
}

/// The keys that decide, as the table of reasons names them, for what really happened.
fn keys(reason: Reason, group: &Group, route: &str, known: Option<&Known<'_>>) -> Vec<&'static str> {
    let mut keys: Vec<_> = reason.row().keys.split_whitespace().collect();
    if reason == Reason::TokenMissing && group.requests > 0 {
        // `auth` is the default of `http`.
        let by_http = known.is_none_or(|known| known.is_written(route, "route.http"));
        keys.retain(|_| group.sessions > 0 || !by_http);
        keys.extend(by_http.then_some("route.http"));
    }
    if reason == Reason::TokenExpired && group.closed > 0 {
        keys.retain(|_| group.count() > group.closed);
        keys.push("session.on_expiry");
    }
    keys
}

/// A key as one speaks of it: `[origin] allow`.
fn spoken(key: &str, entry: Option<&Effective>) -> String {
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    match section {
        "route" | "issuer" => format!("[[{section}]] {name}"),
        _ if entry.is_some_and(|entry| entry.section.starts_with("route[")) => {
            format!("{key} of this [[route]]")
        }
        _ => format!("[{section}] {name}"),
    }
}

/// The lines that decide, then what can be done.
pub fn lines(reason: Reason, group: &Group, route: &str, known: Option<&Known<'_>>) -> Vec<String> {
    let keys = keys(reason, group, route, known);
    let mut lines = Vec::new();
    let mut first = None;
    if let Some(known) = known {
        let entries: Vec<_> = keys.iter().flat_map(|key| known.entries(route, key, &group.issuers)).collect();
        // What asks for nothing has not decided.
        let asks = |entry: &&&Effective| entry.given || !["[]", "{}"].contains(&entry.value.as_str());
        lines.extend(entries.iter().filter(asks).map(|entry| known.show(entry)));
        first = entries.first().copied();
    }
    if lines.is_empty() {
        let spoken: Vec<_> = keys.iter().map(|key| spoken(key, None)).collect();
        lines.push(match (keys.is_empty(), known) {
            (true, _) => "no key of the configuration decides it".into(),
            (false, Some(_)) => format!("{}: not written", spoken.join(", ")),
            (false, None) => spoken.join(", "),
        });
    }
    lines.extend(mend(reason, group, first));
    lines
}

/// What mends a reason whoever it met.
const GENERAL: [(Reason, &str); 10] = [
    (
        Reason::TokenAlgorithm,
        "add the algorithm of these tokens to [[issuer]] algorithms, if the issuer means to sign with it",
    ),
    (Reason::TokenIssuer, "an [[issuer]] of its own would let tokens of another issuer in"),
    (
        Reason::TokenAudience,
        "if such clients are meant: give them an audience mapper at the issuer, or add their audience to [[issuer]] audiences",
    ),
    (Reason::RuleDenied, "give these users at the issuer what the route asks for, or ask for less"),
    (Reason::AddressDenied, "add these addresses, if they are meant"),
    (Reason::AttemptsExceeded, RAISE),
    (Reason::UserSessionsExceeded, RAISE),
    (Reason::AddressSessionsExceeded, RAISE),
    (Reason::MessageRateExceeded, RAISE),
    (Reason::MessageTooBig, RAISE),
];
const RAISE: &str = "raise the limit, if so much is meant";

/// Proposals; where none is sure, what a client can do.
fn mend(reason: Reason, group: &Group, entry: Option<&Effective>) -> Vec<String> {
    let mut told = Vec::new();
    if reason == Reason::OriginDenied {
        told.extend(origins(group, entry));
    }
    if reason == Reason::TokenClient {
        told.extend(clients(group, entry));
    }
    if reason == Reason::TokenMissing {
        let key = if group.sessions > 0 { "auth" } else { "http" };
        told.push(format!(
            "clients without a token: {key} = \"optional\" would let them in as anonymous, where no roles or claims are asked for"
        ));
    }
    if reason == Reason::TokenExpired && group.closed > 0 {
        told.push(format!(
            "{} of them had come in and outlived their token: they would be closed and come back with a new one; on_expiry = \"keep\" would let them stay",
            group.closed
        ));
    }
    let general = GENERAL.iter().filter(|(general, _)| *general == reason);
    told.extend(general.map(|(_, text)| (*text).to_owned()));
    if told.is_empty() || (reason == Reason::TokenExpired && group.closed < group.count()) {
        told.insert(0, format!("clients: {}", reason.row().advice));
    }
    told
}

fn origins(group: &Group, entry: Option<&Effective>) -> Vec<String> {
    let listed = |origin: &str| entry.is_some_and(|entry| entry.value.contains(&quoted(origin)));
    // What is no origin of a page, or listed and yet denied, is not mended by listing it.
    let denied = group.origins.examples.iter().filter_map(|origin| serialized(origin));
    let denied: Vec<_> = denied.filter(|origin| !listed(origin)).map(|origin| quoted(&origin)).collect();
    let mut told = Vec::new();
    if !denied.is_empty() {
        let place = spoken("origin.allow", entry);
        told.push(format!("add {} to {place}, if such pages are meant", denied.join(", ")));
    }
    if group.without_origin > 0 {
        told.push(format!(
            "{} without Origin: allow_missing = true would let them in, but none whose token is a cookie",
            group.without_origin
        ));
    }
    told
}

fn clients(group: &Group, entry: Option<&Effective>) -> Option<String> {
    let plain = |client: &&String| client.bytes().all(|b| b.is_ascii_graphic());
    let clients: Vec<_> = group.clients.examples.iter().filter(plain).map(|client| quoted(client)).collect();
    let place = spoken("issuer.clients", entry);
    (!clients.is_empty()).then(|| format!("add {} to {place}, if such clients are meant", clients.join(", ")))
}
