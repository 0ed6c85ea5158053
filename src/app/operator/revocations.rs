//! Who may not come back.

use std::time::{Duration, UNIX_EPOCH};

use http::StatusCode;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::{Map, Value, json};

use super::super::answer::{Answer, Asker, json_answer};
use super::asked::{Wrong, bad, by, page_size, parameters};
use crate::base::clock::Unix;
use crate::base::value::{Raw, Span, Value as _, quoted};
use crate::policy::json::Object;
use crate::policy::revocation::{Kind, Selector};
use crate::proxy::gate::Gate;
use crate::proxy::revoking::{self, Done};
use crate::state::blacklist::Listed;
use crate::telemetry::logging::Level;

/// Longest body of a request.
const MAX_BODY: usize = 16 * 1024;
/// Longest claim that a revocation may name, in bytes; no token has longer ones.
const MAX_VALUE: usize = 4096;
const MAX_NOTE: usize = 256;
/// Clocks may differ by so much before a moment is in the future.
const AHEAD: Duration = Duration::from_secs(60);

fn told(listed: &Listed) -> Value {
    let selector = &listed.selector;
    let mut told = Map::new();
    let mut put = |name: &str, value: Value| told.insert(name.to_owned(), value);
    if selector.kind != Kind::Before {
        put(selector.kind.claim(), selector.value.as_str().into());
    }
    if let Some(moment) = selector.issued_before {
        put("issued_before", moment.to_string().into());
    }
    put("iss", selector.iss.as_str().into());
    put("reason", listed.note.as_deref().into());
    put("expires_at", listed.expires.map(|moment| moment.to_string()).into());
    told.into()
}

pub fn list(gate: &Gate, query: &str) -> Result<Answer, Wrong> {
    let parameters = parameters(query, &["limit", "after"])?;
    let limit = page_size(&parameters)?;
    let after = parameters.get("after").map(|text| text.parse::<u32>());
    let after = after.transpose().map_err(|_| bad("after; accepted: the `next` of the page before"))?;
    let page = gate.blacklist.list(after, limit, Unix::now());
    let revocations: Vec<Value> =
        page.items.iter().map(|listed| json!({"id": listed.id, "revocation": told(listed)})).collect();
    let body = json!({"revocations": revocations, "total": page.total, "next": page.next});
    Ok(json_answer(StatusCode::OK, &body))
}

pub async fn post(gate: &Gate, from: Asker, body: Incoming) -> Result<Answer, Wrong> {
    let too_long = |_| Wrong(StatusCode::PAYLOAD_TOO_LARGE, format!("accepted: at most {MAX_BODY} bytes"));
    let bytes = Limited::new(body, MAX_BODY).collect().await.map_err(too_long)?.to_bytes();
    let asked = Object::parse(&bytes).map_err(|error| bad(format!("no JSON object: {error}")))?;
    let snapshot = gate.snapshot.load_full();
    let issuers: Vec<&str> = snapshot.issuers.iter().map(|issuer| issuer.policy.url.as_str()).collect();
    let now = Unix::now();
    let selector = selector(&asked, &issuers, now)?;
    let ttl = match text(&asked, "ttl")? {
        None => snapshot.settings.blacklist.retention,
        Some(ttl) => {
            let span = Span::read(&Raw::Text(ttl.to_owned()));
            span.ok_or_else(|| bad(format!("ttl = {ttl:?}; accepted: {}", Span::accepts())))?.0
        }
    };
    let note = text(&asked, "reason")?;
    if note.is_some_and(|note| note.len() > MAX_NOTE) {
        return Err(bad(format!("reason; accepted: at most {MAX_NOTE} bytes")));
    }
    let done = revoking::revoke(gate, &selector, Unix(now.0 + ttl), note, now, |line| by(line, from)).await;
    let Done { revoked, shared } = done.map_err(|_| {
        let detail = "[blacklist] max_entries is reached: raise it, or revoke users instead of tokens";
        Wrong(StatusCode::INSUFFICIENT_STORAGE, detail.into())
    })?;
    let status = if revoked.known { StatusCode::OK } else { StatusCode::CREATED };
    let body = json!({
        "id": revoked.listed.id,
        "revocation": told(&revoked.listed),
        "closed": revoked.closed,
        "scope": if shared { "shared" } else { "replica" },
        "durable": shared,
    });
    Ok(json_answer(status, &body))
}

pub async fn withdraw(gate: &Gate, asker: Asker, id: &str) -> Result<Answer, Wrong> {
    let withdrawn = revoking::withdraw(gate, id).await.map_err(|error| {
        Wrong(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("[blacklist] redis: {error}; the revocation holds: try again when Redis is back"),
        )
    })?;
    match withdrawn {
        None => Err(Wrong(StatusCode::NOT_FOUND, "there is no such revocation".into())),
        Some(false) => Err(Wrong(
            StatusCode::CONFLICT,
            "it stands in [blacklist] file as well: take the line out of the file".into(),
        )),
        Some(true) => {
            if let Some(line) = gate.recorder.log.line(Level::Info, "revocation_withdrawn") {
                by(line, asker).text("id", id).write();
            }
            Ok(json_answer(StatusCode::NO_CONTENT, &Value::Null).map(|_| http_body_util::Full::default()))
        }
    }
}

fn text<'v>(asked: &'v Object, name: &str) -> Result<Option<&'v str>, Wrong> {
    let Some(value) = asked.get(name).filter(|value| !value.is_null()) else { return Ok(None) };
    value.as_str().map(Some).ok_or_else(|| bad(format!("{name} = {value}; accepted: a string")))
}

/// What a request to revoke names.
fn selector(asked: &Object, issuers: &[&str], now: Unix) -> Result<Selector, Wrong> {
    const ACCEPTED: &str =
        "accepted: jti, sid, sub, issued_before, or sub and issued_before; with iss, ttl, reason";
    const KNOWN: [&str; 7] = ["jti", "sid", "sub", "issued_before", "iss", "ttl", "reason"];
    if let Some(unknown) = asked.members().map(|(name, _)| name).find(|name| !KNOWN.contains(name)) {
        return Err(bad(format!("{} is unknown; {ACCEPTED}", quoted(unknown))));
    }
    let moment = text(asked, "issued_before")?.map(|text| issued_before(text, now)).transpose()?;
    let (kind, value) = match (text(asked, "jti")?, text(asked, "sid")?, text(asked, "sub")?, moment) {
        (Some(jti), None, None, None) => (Kind::Jti, jti),
        (None, Some(sid), None, None) => (Kind::Sid, sid),
        (None, None, Some(sub), None) => (Kind::Sub, sub),
        (None, None, Some(sub), Some(_)) => (Kind::SubBefore, sub),
        (None, None, None, Some(_)) => (Kind::Before, ""),
        _ => return Err(bad(format!("names nothing, or several things; {ACCEPTED}"))),
    };
    if value.len() > MAX_VALUE || (value.is_empty() && kind != Kind::Before) {
        return Err(bad(format!("{}; accepted: 1 to {MAX_VALUE} bytes", kind.claim())));
    }
    let iss = match (text(asked, "iss")?, issuers) {
        (None, [only]) => only,
        (None, _) => {
            return Err(bad(format!(
                "iss is missing: it may be left out with one [[issuer]] only; accepted: {}",
                issuers.join(", ")
            )));
        }
        (Some(iss), _) => issuers.iter().find(|known| **known == iss).ok_or_else(|| {
            bad(format!("iss = {iss:?} is no [[issuer]]; accepted: {}", issuers.join(", ")))
        })?,
    };
    Ok(Selector { kind, iss: (*iss).to_owned(), value: value.to_owned(), issued_before: moment })
}

/// The local time, and by how many seconds it is ahead of UTC.
fn shifted(text: &str) -> Option<(&str, i64)> {
    let (local, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let number = |text: &str, most: i64| {
        let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<i64>().ok().filter(|n| digits && *n <= most)
    };
    let seconds = number(hours, 23)? * 3600 + number(minutes, 59)? * 60;
    match offset.as_bytes().first()? {
        b'+' => Some((local, seconds)),
        b'-' => Some((local, -seconds)),
        _ => None,
    }
}

/// RFC 3339, with any offset.
fn issued_before(text: &str, now: Unix) -> Result<Unix, Wrong> {
    let wrong = || {
        bad(format!(
            "issued_before = {text:?}; accepted: a moment by RFC 3339, such as \"2026-03-01T09:30:00Z\""
        ))
    };
    let (local, offset) = match text.strip_suffix(['Z', 'z']) {
        Some(local) => (local, 0),
        None => shifted(text).ok_or_else(wrong)?,
    };
    let moment = humantime::parse_rfc3339(&format!("{local}Z")).map_err(|_| wrong())?;
    let local = moment.duration_since(UNIX_EPOCH).map_err(|_| wrong())?;
    let shift = Duration::from_secs(offset.unsigned_abs());
    let moment = if offset > 0 { local.checked_sub(shift) } else { local.checked_add(shift) };
    let moment = moment.ok_or_else(wrong)?;
    if moment > now.0 + AHEAD {
        return Err(bad(format!(
            "issued_before = {text:?} is in the future: it would refuse tokens that nobody has yet; accepted: now or earlier"
        )));
    }
    Ok(Unix(moment))
}
