//! Who is on the gate, and the order to close them.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use super::super::answer::{Answer, Asker, json_answer};
use super::asked::{Wrong, bad, by, is_set, page_size, parameters};
use crate::base::clock::Unix;
use crate::base::reject::Reason;
use crate::policy::claims::Facts;
use crate::proxy::gate::Gate;
use crate::proxy::guest::Guest;
use crate::state::sessions::{Entry, Passed, Subject as _};
use crate::telemetry::logging::Level;

/// Which sessions are meant: all that is given must fit.
struct Filter {
    parameters: BTreeMap<String, String>,
    id: Option<u64>,
    address: Option<IpAddr>,
}

const FILTERS: [&str; 8] = ["iss", "sub", "sid", "jti", "client", "route", "address", "id"];

impl Filter {
    fn read(parameters: &BTreeMap<String, String>) -> Result<Self, Wrong> {
        let given = |name: &str| parameters.get(name);
        let id = given("id").map(|text| {
            text.parse().map_err(|_| bad(format!("id = {text:?}; accepted: the id of a session")))
        });
        let address = given("address").map(|text| {
            let address: Result<IpAddr, _> = text.parse();
            address.map_err(|_| bad(format!("address = {text:?}; accepted: an IP address")))
        });
        let parameters = parameters
            .iter()
            .filter(|(name, _)| FILTERS.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        Ok(Self { parameters, id: id.transpose()?, address: address.transpose()?.map(|a| a.to_canonical()) })
    }

    fn is_empty(&self) -> bool {
        self.parameters.is_empty()
    }

    fn names(&self, entry: &Entry<Guest>) -> bool {
        let who = &entry.subject.who;
        let facts = entry.subject.facts();
        let facts = facts.as_deref();
        let is = |name: &str, value: Option<&str>| {
            self.parameters.get(name).is_none_or(|wanted| value == Some(wanted.as_str()))
        };
        self.id.is_none_or(|id| entry.id == id)
            && self.address.is_none_or(|address| who.address == address)
            && is("route", who.plan.as_ref().map(|plan| plan.name.as_str()))
            && is("iss", facts.map(Facts::iss))
            && is("sub", facts.and_then(Facts::sub))
            && is("sid", facts.and_then(Facts::sid))
            && is("jti", facts.and_then(Facts::jti))
            && is("client", facts.and_then(Facts::client))
    }
}

impl Display for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pairs: Vec<_> = self.parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        f.write_str(if pairs.is_empty() { "all" } else { "" })?;
        f.write_str(&pairs.join("&"))
    }
}

pub fn list(gate: &Gate, query: &str) -> Result<Answer, Wrong> {
    let known = [&FILTERS[..], &["limit", "after"]].concat();
    let parameters = parameters(query, &known)?;
    let (filter, limit) = (Filter::read(&parameters)?, page_size(&parameters)?);
    let after = parameters.get("after").map(|text| text.parse::<u64>());
    let after = after.transpose().map_err(|_| bad("after; accepted: the `next` of the page before"))?;
    let mut found = gate.sessions.matching(|entry| filter.names(entry));
    found.sort_by_key(|entry| entry.id);
    let total = found.len();
    let mut rest = found.iter().filter(|entry| after.is_none_or(|after| entry.id > after));
    let page: Vec<_> = rest.by_ref().take(limit).collect();
    let next = page.last().filter(|_| rest.next().is_some()).map(|last| last.id.to_string());
    let sessions: Vec<Value> = page.into_iter().map(|entry| row(entry)).collect();
    let body = json!({"sessions": sessions, "total": total, "next": next});
    Ok(json_answer(StatusCode::OK, &body))
}

fn row(entry: &Entry<Guest>) -> Value {
    let (who, counters) = (&entry.subject.who, &entry.counters);
    let facts = entry.subject.facts();
    let facts = facts.as_deref();
    let load = |counter: &AtomicU64| counter.load(Ordering::Acquire);
    let passed = |passed: &Passed| json!({"messages": passed.messages(), "bytes": passed.bytes()});
    // Before the moment of the last of them, which is told first.
    let (received, sent) = (passed(&counters.received), passed(&counters.sent));
    let moment = |millis: u64| (millis > 0).then(|| Unix(Duration::from_millis(millis)).to_string());
    json!({
        "id": entry.id.to_string(),
        "iss": facts.map(Facts::iss),
        "sub": facts.and_then(Facts::sub),
        "sid": facts.and_then(Facts::sid),
        "jti": facts.and_then(Facts::jti),
        "client": facts.and_then(Facts::client),
        "username": facts.and_then(Facts::username),
        "route": who.plan.as_ref().map(|plan| plan.name.as_str()),
        "address": who.address.to_string(),
        "origin": who.origin.as_deref(),
        "started_at": entry.started.to_string(),
        "expires_at": moment(load(&entry.expires)),
        "last_data_at": moment(load(&counters.last_data)),
        "received": received,
        "sent": sent,
        "rtt_ms": (load(&entry.rtt) > 0).then(|| Duration::from_micros(load(&entry.rtt)).as_secs_f64() * 1000.0),
    })
}

pub fn close(gate: &Gate, asker: Asker, query: &str) -> Result<Answer, Wrong> {
    let known = [&FILTERS[..], &["all", "dry_run"]].concat();
    let parameters = parameters(query, &known)?;
    let filter = Filter::read(&parameters)?;
    let (all, dry_run) = (is_set(&parameters, "all")?, is_set(&parameters, "dry_run")?);
    if filter.is_empty() && !all {
        return Err(bad(format!(
            "names no session; accepted: a filter ({}), or all=true",
            FILTERS.join(", ")
        )));
    }
    let matched = gate.sessions.matching(|entry| filter.names(entry));
    let now = Unix::now();
    let end = |entry: &&Arc<Entry<Guest>>| entry.switch.end(Reason::OperatorClosed, now);
    let closed = if dry_run { 0 } else { matched.iter().filter(end).count() };
    if !dry_run && let Some(line) = gate.recorder.log.line(Level::Info, "sessions_closed") {
        by(line, asker).text("filter", &filter.to_string()).number("closed", closed as u64).write();
    }
    let body = json!({"matched": matched.len(), "closed": closed, "dry_run": dry_run});
    Ok(json_answer(StatusCode::OK, &body))
}
