//! What kind of error ended a live session, by the reason of its end.

use crate::base::reject::Reason;

/// Value of `error_type` of `websocket_errors_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorType {
    Protocol,
    TooBig,
    Rate,
    Timeout,
    ClientIo,
    UpstreamIo,
    Internal,
}

/// Each with its label, in order.
pub const ERROR_TYPES: [(ErrorType, &str); 7] = [
    (ErrorType::Protocol, "protocol"),
    (ErrorType::TooBig, "too_big"),
    (ErrorType::Rate, "rate"),
    (ErrorType::Timeout, "timeout"),
    (ErrorType::ClientIo, "client_io"),
    (ErrorType::UpstreamIo, "upstream_io"),
    (ErrorType::Internal, "internal"),
];

/// `None` = it was no error.
pub fn error_type(reason: Reason) -> Option<ErrorType> {
    match reason {
        Reason::FrameMalformed | Reason::UpstreamMalformed => Some(ErrorType::Protocol),
        Reason::MessageTooBig => Some(ErrorType::TooBig),
        Reason::MessageRateExceeded => Some(ErrorType::Rate),
        Reason::WriteTimeout | Reason::PongTimeout => Some(ErrorType::Timeout),
        Reason::ClientLost => Some(ErrorType::ClientIo),
        Reason::UpstreamLost => Some(ErrorType::UpstreamIo),
        Reason::Internal => Some(ErrorType::Internal),
        Reason::TokenMissing
        | Reason::TokenMalformed
        | Reason::TokenAlgorithm
        | Reason::TokenKeyUnknown
        | Reason::TokenSignature
        | Reason::TokenExpired
        | Reason::TokenNotYetValid
        | Reason::TokenIssuer
        | Reason::TokenAudience
        | Reason::TokenType
        | Reason::TokenClient
        | Reason::TokenClaimMissing
        | Reason::TokenRevoked
        | Reason::TokenAmbiguous
        | Reason::OriginDenied
        | Reason::AddressDenied
        | Reason::UserRevoked
        | Reason::AttemptsExceeded
        | Reason::UserSessionsExceeded
        | Reason::AddressSessionsExceeded
        | Reason::OperatorClosed
        | Reason::BlacklistUnavailable
        | Reason::RuleDenied
        | Reason::RouteUnknown
        | Reason::UpstreamRefused
        | Reason::RequestMalformed
        | Reason::HostDenied
        | Reason::UpgradeMalformed
        | Reason::UpgradeVersion
        | Reason::RequestTooLarge
        | Reason::HeaderTimeout
        | Reason::IdleTimeout
        | Reason::SessionTooLong
        | Reason::Draining
        | Reason::SessionsFull
        | Reason::KeysUnavailable
        | Reason::UpstreamUnreachable
        | Reason::UpstreamTimeout
        | Reason::UpstreamError
        | Reason::ClientClosed
        | Reason::UpstreamClosed => None,
    }
}
