//! Why a post is not taken, and how its sender is told.

use std::time::Duration;

use axum::http::StatusCode;

/// Why a post is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// For a person: lower case, no full stop.
    pub(super) message: String,
    /// When it is worth trying again.
    pub(super) retry_after: Option<Duration>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), retry_after: None }
    }

    /// The sender's mistake: the same post will never be taken.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// More than is taken at once.
    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// Nothing of it was taken; later it may be.
    pub(super) fn later(message: impl Into<String>, after: Duration) -> Self {
        Self { retry_after: Some(after), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
    }

    /// It may have been taken, or in part.
    pub(super) fn unknown(message: impl Into<String>) -> Self {
        Self {
            retry_after: Some(Duration::from_secs(10)),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, format!("{}; what was posted may be stored", message.into()))
        }
    }

    /// The source stops.
    pub(super) fn closing() -> Self {
        Self {
            retry_after: Some(Duration::from_secs(5)),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "the pipeline is stopping")
        }
    }
}
