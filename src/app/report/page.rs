//! The page that an operator reads: a table for each route, then why, and what decides it.

use std::cmp::Reverse;
use std::fmt::Write as _;

use super::line::MAX_LINE;
use super::mending::{self, Known};
use super::summary::{Distinct, Group, Route, Summary, printable};
use crate::base::reject::Reason;

const HEADINGS: [&str; 7] = ["reason", "count", "share", "users", "first seen", "last seen", "who"];
/// These stand to the right, so that digits are below each other.
const NUMBERS: std::ops::Range<usize> = 1..4;

pub fn page(summary: &Summary, known: Option<&Known<'_>>) -> String {
    let mut page = String::new();
    for (name, route) in &summary.routes {
        section(&mut page, name, route, known);
    }
    if summary.routes.is_empty() {
        let _ = writeln!(
            page,
            "no line of a route in shadow mode among {}; set mode = \"shadow\" on a [[route]]",
            counted(summary.lines, "line")
        );
    }
    let mut note = |count: u64, text: &str| {
        if count > 0 {
            let _ = writeln!(page, "{}{text}", counted(count, "line"));
        }
    };
    let are = |count| if count == 1 { "is no log line" } else { "are not log lines" };
    note(summary.foreign, &format!(" {} of sidegate", are(summary.foreign)));
    note(summary.too_long, &format!(" over {} KiB, skipped", MAX_LINE / 1024));
    note(summary.dropped, " dropped by the gate when nobody read its log: the counts are too low");
    note(summary.beyond, " more, of further routes and reasons");
    if summary.has_forgotten() {
        page.push_str("so many sessions have one line only that some may be counted twice\n");
    }
    if known.is_none() && summary.routes.values().any(|route| !route.groups.is_empty()) {
        page.push_str("with --config FILE each key is shown with its line and value\n");
    }
    page
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn section(page: &mut String, name: &str, route: &Route, known: Option<&Known<'_>>) {
    let mut groups: Vec<_> = route.groups.iter().collect();
    groups.sort_by_key(|(reason, group)| (Reverse(group.count()), label(**reason)));
    let parts: Vec<_> = [
        (route.refused_sessions, route.sessions, "session"),
        (route.refused_requests, route.requests, "request"),
    ]
    .into_iter()
    .filter(|(_, all, _)| *all > 0)
    .map(|(refused, all, what)| format!("{refused} of {}", counted(all, what)))
    .collect();
    let ends = |(reason, group): &(&Option<Reason>, &Group)| {
        group.closed > 0 || reason.is_some_and(|reason| !reason.refuses())
    };
    let closed = if groups.iter().any(ends) { " or closed" } else { "" };
    let (parts, name_shown) = (parts.join(" and "), printable(name));
    let _ = writeln!(page, "{parts} on {name_shown} would have been refused{closed}\n");
    if groups.is_empty() {
        return;
    }
    let rows: Vec<_> =
        groups.iter().map(|(reason, group)| row(**reason, group, route.sessions + route.requests)).collect();
    table(page, &rows);
    if let Some(known) = known.filter(|known| !known.has_route(name)) {
        let _ = writeln!(page, "  {} has no [[route]] of this path\n", known.path.display());
    }
    for (reason, group) in groups {
        let _ = writeln!(page, "  {}", label(*reason));
        if let Some(reason) = reason {
            for line in mending::lines(*reason, group, name, known) {
                let _ = writeln!(page, "    {line}");
            }
        }
    }
    page.push('\n');
}

fn label(reason: Option<Reason>) -> &'static str {
    reason.map_or("(a reason that this version does not know)", Reason::label)
}

fn row(reason: Option<Reason>, group: &Group, all: u64) -> [String; HEADINGS.len()] {
    let seen = |time: &Option<String>| {
        time.as_deref()
            .and_then(|time| time.split('.').next())
            .map_or("–".into(), |time| format!("{time}Z"))
    };
    let users = match (group.users.len(), group.users.more) {
        (0, _) => "–".into(),
        (users, more) => format!("{users}{}", if more { "+" } else { "" }),
    };
    // In tenths of a percent, rounded.
    let share = (group.count() * 1000 + all / 2) / all.max(1);
    [
        label(reason).to_owned(),
        group.count().to_string(),
        format!("{}.{} %", share / 10, share % 10),
        users,
        seen(&group.first),
        seen(&group.last),
        who(reason, group),
    ]
}

/// Examples of what tells most about the reason; where lines have none of it, of what they have.
fn who(reason: Option<Reason>, group: &Group) -> String {
    let users = ("", &group.users);
    let clients = ("client ", &group.clients);
    let origins = ("origin ", &group.origins);
    let addresses = ("address ", &group.addresses);
    let is_one = |reasons: &[Reason]| reason.is_some_and(|reason| reasons.contains(&reason));
    let first = if is_one(&[Reason::OriginDenied]) {
        origins
    } else if is_one(&[Reason::TokenAudience, Reason::TokenClient]) {
        clients
    } else if is_one(&[Reason::AddressDenied, Reason::AddressSessionsExceeded]) {
        addresses
    } else {
        users
    };
    let found = [first, users, origins, addresses].into_iter().find(|(_, distinct)| distinct.len() > 0);
    found.map_or("–".into(), |(what, distinct)| format!("{what}{}", examples(distinct)))
}

fn examples(distinct: &Distinct) -> String {
    let shown: Vec<_> = distinct
        .examples
        .iter()
        // So that one name never looks like two.
        .map(|text| {
            let quoted = text.contains([' ', ',', '"']);
            if quoted { format!("\"{}\"", text.replace('"', "\\\"")) } else { text.clone() }
        })
        .collect();
    let rest = distinct.len() - shown.len();
    match (distinct.more, rest) {
        (true, _) => format!("{} and more", shown.join(", ")),
        (false, 0) => shown.join(", "),
        (false, rest) => format!("{} and {rest} more", shown.join(", ")),
    }
}

fn table(page: &mut String, rows: &[[String; HEADINGS.len()]]) {
    let headings = HEADINGS.map(str::to_owned);
    let all = || std::iter::once(&headings).chain(rows);
    let widths: Vec<usize> = (0..HEADINGS.len())
        .map(|column| {
            all().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    for row in all() {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = if NUMBERS.contains(&column) {
                write!(line, "  {cell:>width$}")
            } else {
                write!(line, "  {cell:<width$}")
            };
        }
        let _ = writeln!(page, "{}", line.trim_end());
    }
    page.push('\n');
}
