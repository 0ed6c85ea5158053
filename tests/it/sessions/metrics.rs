//! What Prometheus reads.

use super::super::harness::{Client, Gate, Issuer};
use super::wire::Upstream;

const REFUSALS: &[&str] = &[
    "token_missing",
    "token_malformed",
    "token_algorithm",
    "token_key_unknown",
    "token_signature",
    "token_expired",
    "token_not_yet_valid",
    "token_issuer",
    "token_audience",
    "token_type",
    "token_client",
    "token_claim_missing",
    "token_ambiguous",
    "origin_denied",
    "rule_denied",
    "route_unknown",
    "upstream_refused",
    "request_malformed",
    "host_denied",
    "upgrade_malformed",
    "upgrade_version",
    "request_too_large",
    "header_timeout",
    "draining",
    "sessions_full",
    "keys_unavailable",
    "upstream_unreachable",
    "upstream_malformed",
    "upstream_timeout",
    "upstream_error",
    "internal",
];

const ENDINGS: &[&str] = &[
    "token_expired",
    "message_rate_exceeded",
    "frame_malformed",
    "message_too_big",
    "write_timeout",
    "draining",
    "upstream_malformed",
    "upstream_lost",
    "internal",
    "client_closed",
    "upstream_closed",
    "client_lost",
];

#[test]
fn every_series_is_there_at_zero_from_the_start() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let mut client = Client::connect(gate.admin, std::sync::Arc::default());
    client.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let answer = client.head();
    assert_eq!(
        answer.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    let text = String::from_utf8(client.body(&answer)).unwrap();
    assert!(text.ends_with("# EOF\n"));
    let zero =
        |series: &str| assert!(text.contains(&format!("\nsidegate_{series} 0\n")), "{series} in\n{text}");
    for reason in REFUSALS {
        zero(&format!("websocket_auth_failures_total{{reason=\"{reason}\"}}"));
    }
    for reason in ENDINGS {
        zero(&format!("websocket_closes_total{{reason=\"{reason}\"}}"));
    }
    for reason in REFUSALS.iter().chain(ENDINGS) {
        zero(&format!("would_refuse_total{{reason=\"{reason}\"}}"));
    }
    for status in
        ["accepted", "auth_failed", "forbidden", "limited", "malformed", "upstream_failed", "unavailable"]
    {
        zero(&format!("websocket_connections_total{{status=\"{status}\"}}"));
    }
    for way in ["received", "sent"] {
        for kind in ["text", "binary", "ping", "pong", "close"] {
            zero(&format!("websocket_messages_{way}_total{{message_type=\"{kind}\"}}"));
        }
        zero(&format!("websocket_bytes_total{{direction=\"{way}\"}}"));
    }
    for kind in ["protocol", "too_big", "rate", "timeout", "client_io", "upstream_io", "internal"] {
        zero(&format!("websocket_errors_total{{error_type=\"{kind}\"}}"));
    }
    for name in ["websocket_active_connections", "websocket_connected_users"] {
        zero(name);
    }
    for name in [
        "websocket_connection_duration_seconds",
        "websocket_auth_latency_seconds",
        "websocket_handshake_duration_seconds",
        "http_request_duration_seconds",
    ] {
        zero(&format!("{name}_count"));
        assert!(text.contains(&format!("# TYPE sidegate_{name} histogram\n")), "{name}");
    }
    zero(&format!("jwks_refresh_total{{issuer=\"{}\",result=\"error\"}}", issuer.url()));
    assert!(text.contains("\nsidegate_build_info{version=\""));
    assert!(text.contains("\nsidegate_jwks_last_success_timestamp_seconds{issuer=\""));
}

#[test]
fn names_can_do_without_a_namespace() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer).set("metrics.namespace", "''"));
    assert!(gate.metrics().contains("\nwebsocket_active_connections 0\n"));
}
