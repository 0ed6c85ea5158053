//! The one table of reasons: each label with its HTTP status, close code, blame, metric status and
//! advice. A label is at once metric label, log field `reason`, text of the close frame and `reason`
//! of the JSON body.

use std::fmt;

/// Whose doing a refusal is. Only `Client` counts against an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    Client,
    Upstream,
    Gate,
    Nobody,
}

/// Close codes: a class that `[refuse] codes` may remap, or one that RFC 6455 fixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    Unauthorized,
    Forbidden,
    TooManyRequests,
    Timeout,
    Code(u16),
    /// Told over HTTP only, or nothing is told at all.
    Never,
}

/// Value of the label `status` of `websocket_connections_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    AuthFailed,
    Forbidden,
    Limited,
    Malformed,
    UpstreamFailed,
    Unavailable,
}

impl Outcome {
    pub const ALL: [Self; 6] = [
        Self::AuthFailed,
        Self::Forbidden,
        Self::Limited,
        Self::Malformed,
        Self::UpstreamFailed,
        Self::Unavailable,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::AuthFailed => "auth_failed",
            Self::Forbidden => "forbidden",
            Self::Limited => "limited",
            Self::Malformed => "malformed",
            Self::UpstreamFailed => "upstream_failed",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Where a reason can occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Refuses a handshake or a plain request.
    Refusal,
    /// Ends a live session.
    Ending,
    /// Either.
    Both,
}

/// One line of the table.
#[derive(Debug)]
pub struct Row {
    pub label: &'static str,
    /// Status of the HTTP answer; 0 = none is given.
    pub status: u16,
    pub close: Close,
    pub blame: Blame,
    pub outcome: Outcome,
    pub stage: Stage,
    /// `error` of `WWW-Authenticate: Bearer` (RFC 6750 §3.1), empty = none.
    pub bearer_error: &'static str,
    /// The configuration keys that decide it, as dotted paths with a blank between them; empty = none does.
    pub keys: &'static str,
    /// What the reader of the answer can do about it.
    pub advice: &'static str,
}

macro_rules! reasons {
    ($($name:ident $label:literal $status:literal $close:expr, $blame:ident $outcome:ident $stage:ident $bearer:literal $keys:literal $advice:literal;)*) => {
        /// Why a request was refused, or why a live session ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason { $($name),* }

        impl Reason {
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            pub const fn row(self) -> &'static Row {
                match self {
                    $(Self::$name => &Row {
                        label: $label, status: $status, close: $close, blame: Blame::$blame,
                        outcome: Outcome::$outcome, stage: Stage::$stage, bearer_error: $bearer,
                        keys: $keys, advice: $advice,
                    },)*
                }
            }
        }
    };
}

reasons! {
    TokenMissing "token_missing" 401 Close::Unauthorized, Client AuthFailed Both "" "route.auth" "send an access token, as Authorization: Bearer or as a subprotocol";
    TokenMalformed "token_malformed" 401 Close::Unauthorized, Client AuthFailed Refusal "invalid_token" "token.from" "send the access token exactly as the issuer gave it";
    TokenAlgorithm "token_algorithm" 401 Close::Unauthorized, Client AuthFailed Refusal "invalid_token" "issuer.algorithms" "send an access token signed with an algorithm that the gate allows";
    TokenKeyUnknown "token_key_unknown" 401 Close::Unauthorized, Client AuthFailed Refusal "invalid_token" "issuer.jwks_uri" "get a new token: the issuer does not publish the key of this one";
    TokenSignature "token_signature" 401 Close::Unauthorized, Client AuthFailed Refusal "invalid_token" "issuer.jwks_uri" "send the access token exactly as the issuer gave it";
    TokenExpired "token_expired" 401 Close::Unauthorized, Client AuthFailed Both "invalid_token" "issuer.leeway" "get a new token, then reconnect";
    TokenNotYetValid "token_not_yet_valid" 401 Close::Unauthorized, Client AuthFailed Refusal "invalid_token" "issuer.leeway" "check the clocks of issuer and gate";
    TokenIssuer "token_issuer" 401 Close::Unauthorized, Client AuthFailed Both "invalid_token" "issuer.url" "get a token from an issuer that the gate knows";
    TokenAudience "token_audience" 401 Close::Unauthorized, Client AuthFailed Both "invalid_token" "issuer.audiences" "get a token for this service's audience";
    TokenType "token_type" 401 Close::Unauthorized, Client AuthFailed Both "invalid_token" "issuer.token_types" "send the access token, not a refresh or ID token";
    TokenClient "token_client" 401 Close::Unauthorized, Client AuthFailed Both "invalid_token" "issuer.clients" "get the token through a client that the gate allows";
    TokenClaimMissing "token_claim_missing" 401 Close::Unauthorized, Client AuthFailed Refusal "invalid_token" "" "the token lacks a claim that the gate needs, such as exp";
    TokenRevoked "token_revoked" 401 Close::Unauthorized, Client AuthFailed Both "invalid_token" "" "sign in again, then reconnect";
    TokenAmbiguous "token_ambiguous" 400 Close::Forbidden, Client Malformed Refusal "" "token.from" "send exactly one token, in one carrier";
    OriginDenied "origin_denied" 403 Close::Forbidden, Client Forbidden Both "" "origin.allow" "open the socket from an allowed origin";
    AddressDenied "address_denied" 403 Close::Forbidden, Client Forbidden Both "" "listen.allow_addresses" "connect from an allowed address";
    RuleDenied "rule_denied" 403 Close::Forbidden, Client Forbidden Both "" "route.roles route.claims route.allow" "the token is valid, but does not grant access to this path";
    UserRevoked "user_revoked" 403 Close::Forbidden, Client Forbidden Both "" "" "this user is blocked: ask the operator";
    RouteUnknown "route_unknown" 404 Close::Forbidden, Client Forbidden Both "" "route.path" "no route of the gate serves this path";
    UpstreamRefused "upstream_refused" 403 Close::Forbidden, Upstream Forbidden Refusal "" "" "the backend refused the WebSocket";
    AttemptsExceeded "attempts_exceeded" 429 Close::TooManyRequests, Client Limited Refusal "" "limits.attempts_per_address" "too many refused requests from this address: wait, then mend the request";
    UserSessionsExceeded "user_sessions_exceeded" 429 Close::TooManyRequests, Gate Limited Both "" "limits.sessions_per_user" "close another session of this user first";
    AddressSessionsExceeded "address_sessions_exceeded" 429 Close::TooManyRequests, Gate Limited Refusal "" "limits.sessions_per_address" "close another session from this address first";
    MessageRateExceeded "message_rate_exceeded" 0 Close::TooManyRequests, Client Limited Ending "" "limits.messages_per_session" "send fewer messages per second";
    RequestMalformed "request_malformed" 400 Close::Never, Client Malformed Refusal "" "" "send a request that RFC 9110 and RFC 9112 allow, with a plain path";
    HostDenied "host_denied" 400 Close::Never, Client Malformed Refusal "" "listen.hosts" "use a host name that the gate serves";
    UpgradeMalformed "upgrade_malformed" 400 Close::Never, Client Malformed Refusal "" "" "send the upgrade as RFC 6455 section 4.1 has it";
    UpgradeVersion "upgrade_version" 426 Close::Never, Client Malformed Refusal "" "" "use WebSocket version 13";
    RequestTooLarge "request_too_large" 431 Close::Never, Client Malformed Refusal "" "listen.header_size" "send a shorter request head";
    HeaderTimeout "header_timeout" 0 Close::Never, Client Malformed Refusal "" "listen.header_timeout" "send the request head sooner";
    FrameMalformed "frame_malformed" 0 Close::Code(1002), Client Malformed Ending "" "" "send frames that RFC 6455 section 5 allows";
    MessageTooBig "message_too_big" 0 Close::Code(1009), Client Limited Ending "" "limits.message limits.fragments" "send smaller messages";
    PongTimeout "pong_timeout" 0 Close::Timeout, Client UpstreamFailed Ending "" "heartbeat.missed" "reconnect";
    IdleTimeout "idle_timeout" 0 Close::Timeout, Client UpstreamFailed Ending "" "session.idle_timeout" "reconnect when there is something to say";
    SessionTooLong "session_too_long" 0 Close::Timeout, Gate UpstreamFailed Ending "" "session.max_age" "reconnect";
    WriteTimeout "write_timeout" 0 Close::Timeout, Client UpstreamFailed Ending "" "session.write_timeout" "reconnect";
    Draining "draining" 503 Close::Code(1012), Gate Unavailable Both "" "" "reconnect: another replica will answer";
    OperatorClosed "operator_closed" 503 Close::Code(1012), Gate Unavailable Both "" "" "reconnect: an operator has closed this session";
    SessionsFull "sessions_full" 503 Close::Code(1013), Gate Unavailable Refusal "" "limits.sessions" "try again later";
    KeysUnavailable "keys_unavailable" 503 Close::Code(1013), Gate Unavailable Refusal "" "issuer.jwks_uri issuer.max_stale" "try again: the gate has no current keys of the issuer";
    BlacklistUnavailable "blacklist_unavailable" 503 Close::Code(1013), Gate Unavailable Refusal "" "blacklist.on_stale" "try again: the gate does not know what is revoked";
    UpstreamUnreachable "upstream_unreachable" 502 Close::Code(1013), Upstream UpstreamFailed Refusal "" "upstream.url" "try again: the backend does not accept connections";
    UpstreamMalformed "upstream_malformed" 502 Close::Code(1013), Upstream UpstreamFailed Both "" "" "the backend's answer is not one that HTTP or RFC 6455 allows";
    UpstreamTimeout "upstream_timeout" 504 Close::Code(1013), Upstream UpstreamFailed Refusal "" "upstream.handshake_timeout upstream.response_timeout" "try again: the backend did not answer in time";
    UpstreamError "upstream_error" 500 Close::Code(1013), Upstream UpstreamFailed Refusal "" "" "try again: the backend failed";
    UpstreamLost "upstream_lost" 0 Close::Code(1013), Upstream UpstreamFailed Ending "" "" "reconnect: the backend ended the connection without a Close";
    Internal "internal" 500 Close::Code(1011), Gate Unavailable Both "" "" "tell the operator of the gate";
    ClientClosed "client_closed" 0 Close::Never, Nobody AuthFailed Ending "" "" "";
    UpstreamClosed "upstream_closed" 0 Close::Never, Nobody AuthFailed Ending "" "" "";
    ClientLost "client_lost" 0 Close::Never, Nobody AuthFailed Ending "" "" "";
}

impl Reason {
    pub const fn label(self) -> &'static str {
        self.row().label
    }

    pub fn refuses(self) -> bool {
        matches!(self.row().stage, Stage::Refusal | Stage::Both)
    }

    pub fn ends(self) -> bool {
        matches!(self.row().stage, Stage::Ending | Stage::Both)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A refusal on its way to `proxy::entry`, the only place that turns it into an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    pub reason: Reason,
    /// The backend's own status, where it had one to pass on.
    pub upstream_status: Option<u16>,
}

impl From<Reason> for Reject {
    fn from(reason: Reason) -> Self {
        Self { reason, upstream_status: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_unique_and_short_enough_for_a_close_frame() {
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert!(reason.label().len() <= 123, "{reason}");
            assert_eq!(Reason::ALL.iter().filter(|other| other.label() == reason.label()).count(), 1);
        }
    }

    #[test]
    fn every_refusal_has_advice_and_every_401_unauthorized_close() {
        for reason in Reason::ALL {
            let row = reason.row();
            assert_eq!(row.advice.is_empty(), row.blame == Blame::Nobody, "{reason}");
            assert_eq!(row.status == 401, row.close == Close::Unauthorized, "{reason}");
            assert_eq!(
                row.bearer_error.is_empty(),
                row.status != 401 || *reason == Reason::TokenMissing,
                "{reason}"
            );
        }
    }
}
