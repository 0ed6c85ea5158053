//! The metrics of the gate, in OpenMetrics text. Every series with a closed set of labels exists at 0
//! from the start; no label takes a user, an address or a path.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::errors::{ERROR_TYPES, error_type};
use super::sharded::BusyCounter;
use crate::base::reject::{Outcome, Reason};
use crate::base::section::Section;

/// `Content-Type` of the answer: Prometheus refuses the scrape under any other.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `[metrics]`
#[derive(Clone, Debug)]
pub struct MetricsSettings {
    pub namespace: String,
}

impl MetricsSettings {
    pub fn read(section: &Section<'_>) -> Self {
        let namespace: String = section.get("namespace", "sidegate".into());
        let first = namespace.bytes().next();
        let ok = namespace.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && !first.is_some_and(|b| b.is_ascii_digit());
        if !ok {
            section.problem(
                "namespace",
                "accepted: letters, digits and \"_\", no digit first; \"\" = bare names",
            );
        }
        Self { namespace }
    }
}

type One<const N: usize> = [(&'static str, &'static str); N];
type Seconds = Gauge<f64, AtomicU64>;
type Texts<const N: usize> = [(&'static str, String); N];

/// Kinds of frames in the order of the counters below.
pub const MESSAGE_TYPES: [&str; 5] = ["text", "binary", "ping", "pong", "close"];

/// Value of `result` of `websocket_extensions_total`.
const EXTENSIONS: [&str; 2] = ["extended", "refused"];

/// Value of `result` of `config_reloads_total`.
const RELOADS: [&str; 2] = ["success", "failure"];

const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// All metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    accepted: Counter,
    refused: Vec<Counter>,
    pub active: Gauge,
    pub users: Gauge,
    duration: Histogram,
    failures: Vec<Counter>,
    auth_latency: Histogram,
    handshake: Histogram,
    /// In the order of [`MESSAGE_TYPES`].
    pub messages_received: [BusyCounter; 5],
    pub messages_sent: [BusyCounter; 5],
    pub bytes_received: BusyCounter,
    pub bytes_sent: BusyCounter,
    errors: Vec<Counter>,
    closes: Vec<Counter>,
    would_refuse: Vec<Counter>,
    http_requests: Family<Texts<2>, Counter>,
    http_duration: Histogram,
    pub blacklist_entries: Gauge,
    pub blacklist_rejected: Counter,
    blacklist_contact: Family<One<1>, Seconds>,
    revocation_to_close: Histogram,
    ping_rtt: Histogram,
    pub missed_pongs: Counter,
    extensions: Family<One<1>, Counter>,
    pub tracked_addresses: Gauge,
    pub forwarded_ignored: Counter,
    pub limits_alone: Counter,
    pub paused_for_files: Counter,
    pub paused_for_connections: Counter,
    reloads: Family<One<1>, Counter>,
    reload_successful: Gauge,
    jwks_refresh: Family<Texts<2>, Counter>,
    jwks_last_success: Family<Texts<1>, Seconds>,
}

fn long() -> Histogram {
    Histogram::new([1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0])
}

fn short() -> Histogram {
    Histogram::new([
        0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
        10.0,
    ])
}

impl Metrics {
    #[expect(clippy::too_many_lines, reason = "one line for each metric")]
    pub fn new(settings: &MetricsSettings) -> Self {
        let mut registry = match settings.namespace.as_str() {
            "" => Registry::default(),
            namespace => Registry::with_prefix(namespace),
        };
        let r = &mut registry;
        let mut family = |name: &str, help: &str| {
            let family = Family::<One<1>, Counter>::default();
            r.register(name, help, family.clone());
            family
        };
        let connections = family("websocket_connections", "WebSocket upgrades by outcome");
        let failures = family("websocket_auth_failures", "Refusals by reason");
        let errors = family("websocket_errors", "Live sessions ended by an error");
        let closes = family("websocket_closes", "What ended live sessions");
        let pauses = family(
            "accept_paused",
            "Rests of 100 ms for want of file descriptors or of connections; clients wait meanwhile",
        );
        let would = family("would_refuse", "What routes in shadow mode would have refused");

        let mut busy = |name: &str, help: &str| {
            let family = Family::<One<1>, BusyCounter>::default();
            r.register(name, help, family.clone());
            move |label, value| family.get_or_create(&[(label, value)]).clone()
        };
        let received = busy("websocket_messages_received", "Messages and control frames from clients");
        let sent = busy("websocket_messages_sent", "Messages and control frames to clients");
        let bytes = busy("websocket_bytes", "Bytes of frames, received = from clients");

        let gauge = |r: &mut Registry, name: &str, help: &str| {
            let gauge = Gauge::default();
            r.register(name, help, gauge.clone());
            gauge
        };
        let active = gauge(r, "websocket_active_connections", "Live sessions");
        let users =
            gauge(r, "websocket_connected_users", "Distinct users (issuer and sub) with a live session");
        let blacklist_entries = gauge(r, "blacklist_entries", "Revocations that hold");
        let tracked_addresses =
            gauge(r, "limit_tracked_addresses", "Addresses whose refused requests are counted");
        let reload_successful =
            gauge(r, "config_last_reload_successful", "1 = the last changed configuration was taken over");
        reload_successful.set(1);
        let counter = |r: &mut Registry, name: &str, help: &str| {
            let counter = Counter::default();
            r.register(name, help, counter.clone());
            counter
        };
        let blacklist_rejected =
            counter(r, "blacklist_rejected", "Revocations for which max_entries left no room");
        let forwarded_ignored =
            counter(r, "forwarded_ignored", "Requests whose X-Forwarded-* came from no trusted proxy");
        let limits_alone = counter(
            r,
            "limit_alone",
            "Sessions of users counted on this replica alone, for Redis was out of touch",
        );
        let missed_pongs =
            counter(r, "websocket_missed_pongs", "Pings of the gate that no byte has answered in time");
        let extensions = Family::default();
        r.register("websocket_extensions", "Newer tokens seen for live sessions", extensions.clone());
        let reloads = Family::default();
        r.register("config_reloads", "Changes of the configuration", reloads.clone());
        let blacklist_contact = Family::default();
        r.register_with_unit(
            "blacklist_last_contact_timestamp",
            "When a feed of the blacklist was last in touch",
            Unit::Seconds,
            blacklist_contact.clone(),
        );
        let histogram = |r: &mut Registry, name: &str, help: &str, histogram: Histogram| {
            r.register_with_unit(name, help, Unit::Seconds, histogram.clone());
            histogram
        };
        let duration = histogram(r, "websocket_connection_duration", "Life of a session", long());
        let auth_latency =
            histogram(r, "websocket_auth_latency", "From the head read to the verdict", short());
        let handshake =
            histogram(r, "websocket_handshake_duration", "From the head read to the 101", short());
        let revocation_to_close =
            histogram(r, "revocation_to_close", "From a revocation to the Close of a socket", short());
        let ping_rtt = histogram(r, "websocket_ping_rtt", "From a ping of the gate to its pong", short());
        let http_duration =
            histogram(r, "http_request_duration", "From the head read to the head of the answer", short());
        let http_requests = Family::default();
        r.register("http_requests", "Plain HTTP requests", http_requests.clone());
        let jwks_refresh = Family::default();
        r.register("jwks_refresh", "Fetches of an issuer's keys", jwks_refresh.clone());
        let jwks_last_success = Family::default();
        r.register_with_unit(
            "jwks_last_success_timestamp",
            "When an issuer's keys were last fetched",
            Unit::Seconds,
            jwks_last_success.clone(),
        );
        r.register("build", "Version of the gate", Info::new([("version", env!("CARGO_PKG_VERSION"))]));

        let of =
            |family: &Family<One<1>, Counter>, name, value| family.get_or_create(&[(name, value)]).clone();
        let by_reason = |family: &Family<One<1>, Counter>, exists: fn(Reason) -> bool| {
            let counter = |reason: &Reason| {
                if exists(*reason) { of(family, "reason", reason.label()) } else { Counter::default() }
            };
            Reason::ALL.iter().map(counter).collect::<Vec<_>>()
        };
        Self {
            accepted: of(&connections, "status", "accepted"),
            refused: Outcome::ALL.map(|outcome| of(&connections, "status", outcome.label())).into(),
            failures: by_reason(&failures, Reason::refuses),
            closes: by_reason(&closes, Reason::ends),
            would_refuse: by_reason(&would, |_| true),
            messages_received: MESSAGE_TYPES.map(|kind| received("message_type", kind)),
            messages_sent: MESSAGE_TYPES.map(|kind| sent("message_type", kind)),
            bytes_received: bytes("direction", "received"),
            bytes_sent: bytes("direction", "sent"),
            errors: ERROR_TYPES.map(|(_, label)| of(&errors, "error_type", label)).into(),
            registry,
            blacklist_entries,
            blacklist_rejected,
            blacklist_contact,
            revocation_to_close,
            ping_rtt,
            missed_pongs,
            extensions: {
                for result in EXTENSIONS {
                    let _ = of(&extensions, "result", result);
                }
                extensions
            },
            tracked_addresses,
            forwarded_ignored,
            limits_alone,
            paused_for_files: of(&pauses, "cause", "files"),
            paused_for_connections: of(&pauses, "cause", "connections"),
            reloads: {
                for result in RELOADS {
                    let _ = of(&reloads, "result", result);
                }
                reloads
            },
            reload_successful,
            active,
            users,
            duration,
            auth_latency,
            handshake,
            http_requests,
            http_duration,
            jwks_refresh,
            jwks_last_success,
        }
    }

    /// OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// An issuer's series exist before its first fetch.
    pub fn know_issuer(&self, issuer: &str) {
        let _ = self.jwks_last_success.get_or_create(&[("issuer", issuer.into())]);
        for result in ["ok", "error"] {
            let _ = self.jwks_refresh.get_or_create(&[("issuer", issuer.into()), ("result", result.into())]);
        }
    }

    pub fn jwks_refreshed(&self, issuer: &str, ok: bool, now: f64) {
        let result = if ok { "ok" } else { "error" };
        self.jwks_refresh.get_or_create(&[("issuer", issuer.into()), ("result", result.into())]).inc();
        if ok {
            self.jwks_last_success.get_or_create(&[("issuer", issuer.into())]).set(now);
        }
    }

    pub fn revoked_after(&self, latency: Duration) {
        self.revocation_to_close.observe(latency.as_secs_f64());
    }

    pub fn pong_after(&self, latency: Duration) {
        self.ping_rtt.observe(latency.as_secs_f64());
    }

    pub fn extension(&self, extended: bool) {
        let [success, failure] = EXTENSIONS;
        self.extensions.get_or_create(&[("result", if extended { success } else { failure })]).inc();
    }

    pub fn reloaded(&self, ok: bool) {
        let [success, failure] = RELOADS;
        self.reloads.get_or_create(&[("result", if ok { success } else { failure })]).inc();
        self.reload_successful.set(i64::from(ok));
    }

    /// A feed's series exists before its first contact.
    pub fn know_feed(&self, feed: &'static str) {
        let _ = self.blacklist_contact.get_or_create(&[("feed", feed)]);
    }

    pub fn feed_in_touch(&self, feed: &'static str, now: f64) {
        self.blacklist_contact.get_or_create(&[("feed", feed)]).set(now);
    }

    pub fn verdict_after(&self, latency: Duration) {
        self.auth_latency.observe(latency.as_secs_f64());
    }

    pub fn accepted_after(&self, latency: Duration) {
        self.accepted.inc();
        self.handshake.observe(latency.as_secs_f64());
    }

    /// A refusal; of an upgrade it is a connection's outcome as well.
    pub fn refused(&self, reason: Reason, upgrade: bool) {
        bump(self.failures.get(reason as usize));
        if upgrade {
            bump(self.refused.get(reason.row().outcome as usize));
        }
    }

    pub fn would_refuse(&self, reason: Reason) {
        bump(self.would_refuse.get(reason as usize));
    }

    pub fn closed(&self, reason: Reason, lived: Duration) {
        bump(self.closes.get(reason as usize));
        self.duration.observe(lived.as_secs_f64());
        if let Some(kind) = error_type(reason) {
            bump(self.errors.get(kind as usize));
        }
    }

    pub fn http_request(&self, method: &str, code: u16, latency: Duration) {
        // Methods are the client's choice: all unknown ones share a series.
        let method = METHODS.into_iter().find(|known| *known == method).unwrap_or("other");
        self.http_requests.get_or_create(&[("code", code.to_string()), ("method", method.into())]).inc();
        self.http_duration.observe(latency.as_secs_f64());
    }
}

fn bump(counter: Option<&Counter>) {
    if let Some(counter) = counter {
        counter.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(namespace: &str) -> Metrics {
        Metrics::new(&MetricsSettings { namespace: namespace.into() })
    }

    #[test]
    fn every_series_with_a_closed_set_of_labels_exists_at_zero() {
        let text = metrics("sidegate").encode();
        for reason in Reason::ALL {
            let failure = format!("sidegate_websocket_auth_failures_total{{reason=\"{reason}\"}} 0\n");
            assert_eq!(text.contains(&failure), reason.refuses(), "{failure}");
            let close = format!("sidegate_websocket_closes_total{{reason=\"{reason}\"}} 0\n");
            assert_eq!(text.contains(&close), reason.ends(), "{close}");
        }
        for line in [
            "sidegate_websocket_connections_total{status=\"accepted\"} 0",
            "sidegate_websocket_connections_total{status=\"limited\"} 0",
            "sidegate_websocket_messages_received_total{message_type=\"pong\"} 0",
            "sidegate_websocket_bytes_total{direction=\"sent\"} 0",
            "sidegate_websocket_errors_total{error_type=\"upstream_io\"} 0",
            "sidegate_websocket_active_connections 0",
            "sidegate_websocket_connection_duration_seconds_count 0",
            "sidegate_http_request_duration_seconds_count 0",
            "sidegate_build_info{version=\"",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn the_namespace_may_be_empty() {
        assert!(metrics("").encode().contains("\nwebsocket_active_connections 0\n"));
    }

    #[test]
    fn methods_of_clients_cannot_make_series() {
        let metrics = metrics("sidegate");
        for i in 0..100 {
            metrics.http_request(&format!("M{i}"), 200, Duration::ZERO);
        }
        assert_eq!(metrics.encode().matches("sidegate_http_requests_total{").count(), 1);
    }
}
