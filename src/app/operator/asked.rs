//! What an operator's request says.

use std::collections::BTreeMap;

use http::StatusCode;

use super::super::answer::Asker;
use crate::telemetry::logging::Line;

/// Rows of a page: what is asked for at most, and without asking.
const MOST: usize = 1000;
const SOME: usize = 100;

/// A refusal: what is wrong and what is accepted.
pub struct Wrong(pub StatusCode, pub String);

pub fn bad(message: impl Into<String>) -> Wrong {
    Wrong(StatusCode::BAD_REQUEST, message.into())
}

/// The parameters of a query, each named once and known.
pub fn parameters(query: &str, known: &[&str]) -> Result<BTreeMap<String, String>, Wrong> {
    let mut parameters = BTreeMap::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if !known.contains(&name.as_ref()) {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(bad(format!("{name:?} is no parameter; accepted: {known}")));
        }
        if parameters.insert(name.to_string(), value.into_owned()).is_some() {
            return Err(bad(format!("{name:?} occurs twice")));
        }
    }
    Ok(parameters)
}

pub fn page_size(parameters: &BTreeMap<String, String>) -> Result<usize, Wrong> {
    let Some(text) = parameters.get("limit") else { return Ok(SOME) };
    let limit = text.parse().ok().filter(|limit| (1..=MOST).contains(limit));
    limit.ok_or_else(|| bad(format!("limit = {text:?}; accepted: 1 to {MOST}")))
}

pub fn is_set(parameters: &BTreeMap<String, String>, name: &str) -> Result<bool, Wrong> {
    match parameters.get(name).map(String::as_str) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(bad(format!("{name} = {other:?}; accepted: true or false"))),
    }
}

/// Who asked.
pub fn by(line: Line<'_>, asker: Asker) -> Line<'_> {
    match asker {
        Asker::Unix => line.text("by", "unix"),
        Asker::Address(address) => line.address("by", address),
    }
}
