//! `sidegate explain`: the judge of a real handshake, each check in order with the line of the configuration
//! that decides it. Keys are fetched from the issuer as the gate does; the token is never shown.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use tokio::time::timeout;

use super::config::{Config, deciding};
use super::feed::FileFeed;
use super::reload::Fetchers;
use super::sharing;
use crate::base::effective::Effective;
use crate::base::reject::Reason;
use crate::io::jwks::Issuer;
use crate::policy::bearer;
use crate::policy::carrier::Carrier;
use crate::policy::jwt;
use crate::policy::peer::Peer;
use crate::policy::request::{self, Kind};
use crate::policy::trace::{Step, Trace};
use crate::proxy::gate::Gate;
use crate::proxy::guest::Who;
use crate::proxy::handshake::{Bearer, authenticate};
use crate::proxy::judge;
use crate::proxy::plan::{Settings, Snapshot};
use crate::proxy::revoked;
use crate::proxy::visit::Visit;
use crate::telemetry::logging::{Format, Level, Log, LogSettings};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::record::Recorder;

/// So long the first keys are waited for.
const KEYS: Duration = Duration::from_secs(10);

/// The request to be explained.
#[derive(Debug)]
pub struct Asked {
    pub token: Option<String>,
    pub path: String,
    pub origin: Option<String>,
    /// `None` = that of `public_url`, or the first of `hosts`.
    pub host: Option<String>,
    pub peer: IpAddr,
}

/// What was found.
#[derive(Debug)]
struct Explained {
    steps: Vec<Step>,
    /// The path of the route, if there is one.
    route: String,
    /// Which `[[issuer]]` of the file the token is of.
    issuer: Option<usize>,
    shadow: bool,
    /// What was revoked at any gate is known to it.
    is_shared: bool,
    verdict: Result<(), Reason>,
    /// Why there are no keys.
    trouble: Vec<String>,
}

/// Explains to standard output; `true` = it would be let in.
pub fn run(config: Config, path: &Path, asked: &Asked) -> Result<bool> {
    let effective = config.effective.clone();
    let log = Log::to_memory(LogSettings { format: Format::Json, level: Level::Warn, requests: false });
    let metrics = Arc::new(Metrics::new(&config.metrics));
    let gate = Gate::new(config.settings, Arc::new(Recorder { log, metrics }), u32::MAX, [0; 16]);
    drop(FileFeed::open(Arc::clone(&gate)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let explained = runtime.block_on(explain(&gate, asked))?;
    let text = page(&explained, &effective, path);
    // A reader that has seen enough closes the pipe: no reason to panic.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
    Ok(explained.verdict.is_ok())
}

/// The request as a client would send it, the token in the first carrier that the route takes.
fn head(settings: &Settings, asked: &Asked) -> Result<Parts> {
    let public = settings.public_url.as_ref().map(|url| url.host.as_str());
    let host = asked.host.as_deref().or(public);
    let host = host.or(settings.hosts.first().map(String::as_str)).unwrap_or("localhost");
    let (path, _) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let plan = settings.routes.find(path).map_or(&settings.unmatched, |(plan, _)| plan);
    let mut target = asked.path.clone();
    let mut headers: Vec<(HeaderName, String)> = vec![(header::HOST, host.to_owned())];
    headers.extend(asked.origin.iter().map(|origin| (header::ORIGIN, origin.clone())));
    if let Some(token) = &asked.token {
        match plan.token.from.first() {
            Some(Carrier::Subprotocol) => {
                headers.push((header::SEC_WEBSOCKET_PROTOCOL, format!("Bearer, {token}")));
            }
            Some(Carrier::Query(name)) => {
                let _ = write!(target, "{}{name}={token}", if target.contains('?') { '&' } else { '?' });
            }
            Some(Carrier::Cookie(name)) => headers.push((header::COOKIE, format!("{name}={token}"))),
            Some(Carrier::Header) | None => headers.push((header::AUTHORIZATION, format!("Bearer {token}"))),
        }
    }
    let mut request = http::Request::get(&target);
    for (name, value) in headers {
        let value =
            HeaderValue::try_from(&value).with_context(|| format!("{name} cannot be sent like that"))?;
        request = request.header(name, value);
    }
    let request = request.body(()).context("--path is no path; accepted: such as /ws/ or /ws/?a=b")?;
    Ok(request.into_parts().0)
}

async fn explain(gate: &Arc<Gate>, asked: &Asked) -> Result<Explained> {
    let snapshot = gate.snapshot.load_full();
    let settings = &snapshot.settings;
    let head = head(settings, asked)?;
    if let Err(reason) = request::check(&head, &settings.hosts) {
        bail!("{}: {}", reason.label(), reason.row().advice);
    }
    let mut fetchers = Fetchers::default();
    // The keys of the token's issuer, or why they cannot be had.
    if let Some(issuer) = issuer_of(&snapshot, &head) {
        let fetched = issuer.next_fetch();
        fetchers.fetch(gate, &snapshot);
        let _ = timeout(KEYS, fetched).await;
    }
    let peer = Peer::of(asked.peer, &head.headers, &settings.trusted_proxies);
    let host = request::host(&head.headers).unwrap_or_default();
    let visit = Visit { head: &head, host, peer: &peer, noted: None };
    let mut who =
        Who { address: peer.address, request_id: "explain".into(), origin: None, plan: None, facts: None };
    let mut trace = Trace::On(Vec::new());
    let verdict = judge(gate, &snapshot, visit, &mut who, &mut trace).await;
    let plan = who.plan.as_ref();
    let log = gate.recorder.log.take();
    let mut trouble = Vec::new();
    for line in log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()) {
        let told = line.get("message").and_then(|message| message.as_str()).map(str::to_owned);
        trouble.extend(told.filter(|told| !trouble.contains(told)));
    }
    let issuer = issuer_of(&snapshot, &head)
        .and_then(|issuer| settings.issuers.iter().position(|policy| policy.url == issuer.policy.url));
    Ok(Explained {
        issuer,
        route: plan.map(|plan| plan.name.clone()).unwrap_or_default(),
        shadow: plan.is_some_and(|plan| plan.shadow),
        is_shared: snapshot.shared.is_some(),
        verdict,
        trouble,
        steps: match trace {
            Trace::On(steps) => steps,
            Trace::Off => Vec::new(),
        },
    })
}

/// The issuer that the request's token names.
fn issuer_of<'s>(snapshot: &'s Snapshot, head: &Parts) -> Option<&'s Arc<Issuer>> {
    let settings = &snapshot.settings;
    let found = settings.routes.find(head.uri.path());
    let plan = found.map_or(&settings.unmatched, |(plan, _)| plan);
    let found = bearer::find(head, &plan.token).ok().flatten()?;
    let jwt = jwt::parse(&found.token).ok()?;
    snapshot.issuer(jwt.claims.get("iss")?.as_str()?)
}

/// As a handshake is judged, up to the blacklist.
async fn judge(
    gate: &Gate,
    snapshot: &Snapshot,
    visit: Visit<'_>,
    who: &mut Who,
    trace: &mut Trace,
) -> Result<(), Reason> {
    let judged = judge::upgrade(&snapshot.settings, visit, trace).map_err(|(reason, plan)| {
        who.plan = plan;
        reason
    })?;
    who.plan = Some(Arc::clone(&judged.plan));
    let mut verdict = authenticate(snapshot, visit, Kind::Upgrade, judged, who, trace).await?;
    let blacklist = &snapshot.settings.blacklist;
    if let Some(shared) = &snapshot.shared {
        sharing::look_once(gate, shared).await;
    }
    let (what, keys) = match (&blacklist.file, &snapshot.shared) {
        (None, None) => return Ok(()),
        (Some(_), None) => ("blacklist: the file", "blacklist.file"),
        (None, Some(_)) => ("blacklist: Redis", "blacklist.redis.url"),
        (Some(_), Some(_)) => ("blacklist: the file, and Redis", "blacklist.file blacklist.redis.url"),
    };
    let revoked = revoked::check(gate, snapshot, verdict.bearer.as_ref().map(Bearer::facts)).await;
    verdict.judged.leniency.apply(trace.step(keys, || what.into(), revoked))?;
    Ok(())
}

fn page(explained: &Explained, effective: &[Effective], path: &Path) -> String {
    let mut out = String::new();
    let width =
        explained.steps.iter().map(|step| plain(&step.what).chars().count()).max().unwrap_or(0).min(72);
    for step in &explained.steps {
        let outcome = if step.outcome.is_ok() { "passed" } else { "FAILED" };
        let what = plain(&step.what);
        let _ = write!(out, "{outcome}  {what:<width$}");
        for key in step.keys.split_whitespace() {
            // Of several issuers the token's own decides.
            let key = match (key.strip_prefix("issuer."), explained.issuer) {
                (Some(key), Some(n)) => format!("issuer[{}].{key}", n + 1),
                _ => key.to_owned(),
            };
            let _ = write!(out, "  {}", place(effective, &explained.route, &key, path));
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    for trouble in &explained.trouble {
        let _ = writeln!(out, "note    {trouble}");
    }
    let would: Vec<Reason> = explained.steps.iter().filter_map(|step| step.outcome.err()).collect();
    let _ = match (explained.verdict, would.first()) {
        (Err(reason), _) => {
            let row = reason.row();
            let status = if row.status == 0 { String::new() } else { format!(" ({})", row.status) };
            writeln!(out, "\ndenied: {reason}{status}: {}", row.advice)
        }
        (Ok(()), Some(reason)) if explained.shadow => {
            writeln!(out, "\nallowed: the route is in shadow mode; it would be refused for {reason}")
        }
        (Ok(()), _) => writeln!(out, "\nallowed"),
    };
    out.push_str(if explained.is_shared {
        "Not looked at: limits, and the backend.\n"
    } else {
        "Not looked at: limits, what was revoked at a running gate, and the backend.\n"
    });
    out
}

/// Text of a token on a terminal: nothing that moves the cursor, turns the direction or hides, and no more
/// than fits.
fn plain(text: &str) -> String {
    const MOST: usize = 160;
    let hides = |c: char| {
        c.is_control()
            || matches!(
                c,
                '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            )
    };
    let cut = text.chars().nth(MOST).map_or("", |_| "…");
    let shown: String = text.chars().take(MOST).map(|c| if hides(c) { '\u{fffd}' } else { c }).collect();
    shown + cut
}

/// Where a key is decided, and how.
fn place(effective: &[Effective], route: &str, key: &str, path: &Path) -> String {
    let Some(entry) = deciding(effective, route, key) else { return key.to_owned() };
    let written = match entry.line {
        Some(line) => format!("{}:{line}", path.display()),
        None if entry.given => "environment".to_owned(),
        None => "default".to_owned(),
    };
    format!("{}.{} = {} ({written})", entry.section, entry.key, entry.value)
}
