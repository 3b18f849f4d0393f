//! Why a call to the gateway failed, in words for people; and whether trying again may help.

use proto::REASON_TRAILER;
use tonic::{Code, Status};

/// Why a call failed. Variants differ where the caller's next move differs.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens, or the connection broke and did not come back.
    #[error("no gateway answers at {endpoint} ({reason}); is it running?")]
    Unreachable {
        /// Where.
        endpoint: String,
        /// What the network said.
        reason: String,
    },
    /// Whoever answers there is not vouched for by the profile's CA.
    #[error(
        "the gateway at {endpoint} has a certificate that this profile's CA does not vouch for ({reason}); \
         check the endpoint, and that the CA file is that cluster's"
    )]
    Certificate {
        /// Where.
        endpoint: String,
        /// What TLS said.
        reason: String,
    },
    /// The endpoint, the CA or the token cannot be used at all.
    #[error("{message}")]
    Setup {
        /// What is wrong with what, and what to do.
        message: String,
    },
    /// The token is unknown or revoked.
    #[error(
        "the gateway at {endpoint} does not take this profile's token; sign in again with `keepstone login`"
    )]
    Token {
        /// Where.
        endpoint: String,
        /// What the gateway said.
        message: String,
    },
    /// The gateway answered with an error.
    #[error("{message}")]
    Refused {
        /// Its kind.
        code: Code,
        /// The stable word for programs; may be empty.
        reason: String,
        /// What it says to people.
        message: String,
    },
    /// The gateway's answer breaks the protocol.
    #[error("the gateway's answer makes no sense ({what}); do client and gateway have the same version?")]
    Protocol {
        /// What is wrong with it.
        what: String,
    },
}

impl CallError {
    /// The gRPC code, when the gateway gave one.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Token { .. } => Some(Code::Unauthenticated),
            _ => None,
        }
    }

    /// The stable word for programs: the gateway's, or this side's own.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Certificate { .. } => "certificate",
            Self::Setup { .. } => "setup",
            Self::Token { .. } => "unauthenticated",
            Self::Protocol { .. } => "protocol",
            Self::Refused { code, reason, .. } if reason.is_empty() => code_word(*code),
            Self::Refused { reason, .. } => reason,
        }
    }

    /// Whether there is nothing at the path that was asked for.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(Code::NotFound)
    }

    /// Whether something is there already.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        self.code() == Some(Code::AlreadyExists)
    }

    /// Whether things are not as they must be for this call.
    #[must_use]
    pub fn is_failed_precondition(&self) -> bool {
        self.code() == Some(Code::FailedPrecondition)
    }

    /// Whether the same call may succeed a moment later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { code, reason, .. } => transient(*code, reason),
            _ => false,
        }
    }

    /// Whether no other call through this connection can be expected to succeed either.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Certificate { .. } | Self::Token { .. } | Self::Setup { .. }
        )
    }

    /// For an answer that breaks the protocol.
    pub(crate) fn protocol(what: impl Into<String>) -> Self {
        Self::Protocol { what: what.into() }
    }

    /// From one item's error within an answer to a batch.
    #[must_use]
    pub fn from_item(item: &proto::v1::ItemError) -> Self {
        Self::Refused {
            code: i32::try_from(item.code).map_or(Code::Unknown, Code::from_i32),
            reason: item.reason.clone(),
            message: item.message.clone(),
        }
    }

    /// From a status: the gateway's, or one that the transport made up when the connection broke.
    #[must_use]
    pub fn from_status(endpoint: &str, with_token: bool, status: &Status) -> Self {
        if let Some(source) = std::error::Error::source(status) {
            return Self::from_transport(endpoint, source);
        }
        let reason = status.metadata().get(REASON_TRAILER).and_then(|word| word.to_str().ok());
        if with_token && status.code() == Code::Unauthenticated {
            return Self::Token { endpoint: endpoint.to_owned(), message: status.message().to_owned() };
        }
        Self::Refused {
            code: status.code(),
            reason: reason.unwrap_or_default().to_owned(),
            message: match status.message() {
                "" => format!("the gateway refused: {}", code_word(status.code())),
                message => message.to_owned(),
            },
        }
    }

    /// From an error of the transport: refused, broken, or not to be trusted.
    #[must_use]
    pub fn from_transport(endpoint: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        let endpoint = endpoint.to_owned();
        let mut reason = error.to_string();
        let mut next = Some(error);
        while let Some(cause) = next {
            reason = cause.to_string();
            if let Some(tls) = tls_error(cause) {
                return Self::Certificate { endpoint, reason: tls.to_string() };
            }
            next = cause.source();
        }
        Self::Unreachable { endpoint, reason }
    }
}

/// A failed verification, however the transport has wrapped it.
fn tls_error<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let direct = cause.downcast_ref::<rustls::Error>();
    let wrapped = || {
        cause
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
    };
    direct.or_else(wrapped).filter(|error| {
        matches!(error, rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented)
    })
}

/// Whether a code, with its reason, is worth another try of the same request.
#[must_use]
pub fn transient(code: Code, reason: &str) -> bool {
    match code {
        Code::Unavailable | Code::DeadlineExceeded => true,
        Code::ResourceExhausted => matches!(reason, "busy" | "too-many-requests" | "overloaded"),
        _ => false,
    }
}

fn code_word(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::InvalidArgument => "invalid-argument",
        Code::DeadlineExceeded => "deadline-exceeded",
        Code::NotFound => "not-found",
        Code::AlreadyExists => "already-exists",
        Code::PermissionDenied => "permission-denied",
        Code::ResourceExhausted => "resource-exhausted",
        Code::FailedPrecondition => "failed-precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out-of-range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data-loss",
        Code::Unauthenticated => "unauthenticated",
        Code::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revoked_token_says_how_to_sign_in_again() {
        let status = Status::unauthenticated("unknown token");
        let error = CallError::from_status("https://h:1", true, &status);
        assert!(error.to_string().contains("keepstone login"), "{error}");
        assert!(!error.is_transient());
        let sign_in = CallError::from_status("https://h:1", false, &status);
        assert_eq!(sign_in.to_string(), "unknown token");
    }

    #[test]
    fn only_a_busy_gateway_is_asked_again_for_exhaustion() {
        assert!(transient(Code::ResourceExhausted, "busy"));
        assert!(!transient(Code::ResourceExhausted, "quota"));
        assert!(transient(Code::Unavailable, ""));
        assert!(!transient(Code::Aborted, "conflict"));
    }

    #[test]
    fn a_refused_connection_asks_whether_the_gateway_runs() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = CallError::from_transport("https://h:1", &refused);
        assert!(error.to_string().starts_with("no gateway answers at https://h:1"), "{error}");
        assert!(error.is_transient());
    }
}
