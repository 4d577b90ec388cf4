//! Whose an error of an AWS service is, by its code.
//!
//! An unknown code counts as passing: a service that is away answers in many ways.

use std::error::Error;
use std::fmt;

#[cfg(feature = "kinesis")]
pub(crate) use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
#[cfg(all(feature = "sqs", not(feature = "kinesis")))]
pub(crate) use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use pipeline_engine::stage::StageError;

const WHO: &str = "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile or the role.";
const RIGHTS: &str = "Give the role or user the right that the message names.";
const KMS: &str = "Look at the KMS key of the stream or table, and at the rights on it.";

/// Codes for requests that will fail again until a person has changed something, and what that may be. A code of
/// any other name counts as passing.
const PERMANENT_CODES: [(&str, &str); 19] = [
    ("AccessDenied", RIGHTS),
    ("AccessDeniedException", RIGHTS),
    ("ExpiredToken", "Get a new AWS_SESSION_TOKEN."),
    ("ExpiredTokenException", "Get a new AWS_SESSION_TOKEN."),
    ("IncompleteSignature", WHO),
    ("IncompleteSignatureException", WHO),
    ("InvalidClientTokenId", WHO),
    ("InvalidSignatureException", "Check AWS_SECRET_ACCESS_KEY, and the clock of this machine."),
    ("SignatureDoesNotMatch", "Check AWS_SECRET_ACCESS_KEY, and the clock of this machine."),
    ("MissingAuthenticationToken", WHO),
    ("MissingAuthenticationTokenException", WHO),
    ("UnrecognizedClientException", WHO),
    ("OptInRequired", "The account has not signed up for this service or region."),
    ("KMSAccessDeniedException", KMS),
    ("KMSDisabledException", KMS),
    ("KMSInvalidStateException", KMS),
    ("KMSNotFoundException", KMS),
    ("KMSOptInRequired", KMS),
    ("ValidationException", "Check the settings of the stage against the service's own."),
];

/// Codes that ask for patience: nothing is wrong with anybody.
const THROTTLED_CODES: [&str; 10] = [
    "KMSThrottlingException",
    "LimitExceededException",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
];

/// Whose an error is. `what` says what was not done, in the past tense: "stream \"x\" was not read".
pub(crate) fn of<E, R>(error: SdkError<E, R>, what: &str) -> StageError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    R: fmt::Debug + Send + Sync + 'static,
{
    let Some(code) = code_of(&error).map(str::to_owned) else {
        return StageError::transient(what).because(error);
    };
    let message = error.message().unwrap_or("no message").to_owned();
    let answer = format!("{code}: {message}");
    match permanent_hint(&code) {
        Some(hint) => StageError::permanent(what).because(answer).hint(hint),
        None => StageError::transient(what).because(answer),
    }
    .code(code)
}

/// What a person may do about an error that will not pass by itself; `None` for any other.
pub(crate) fn permanent_hint(code: &str) -> Option<&'static str> {
    PERMANENT_CODES.iter().find(|(permanent, _)| code == *permanent).map(|(_, hint)| *hint)
}

/// The service's own code for an error; `None` where it gave no answer.
pub(crate) fn code_of<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>) -> Option<&str> {
    error.code()
}

/// Whether the service asks for patience.
pub(crate) fn is_throttled(code: &str) -> bool {
    THROTTLED_CODES.contains(&code)
}

#[cfg(test)]
mod tests {
    use pipeline_engine::stage::Fault;

    use super::*;

    /// An error as the SDK makes it of an answer.
    #[derive(Debug)]
    struct Answer(aws_sdk_error::ErrorMetadata);

    #[cfg(feature = "kinesis")]
    use aws_sdk_kinesis::error as aws_sdk_error;
    #[cfg(all(feature = "sqs", not(feature = "kinesis")))]
    use aws_sdk_sqs::error as aws_sdk_error;

    impl fmt::Display for Answer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an answer")
        }
    }

    impl Error for Answer {}

    impl ProvideErrorMetadata for Answer {
        fn meta(&self) -> &aws_sdk_error::ErrorMetadata {
            &self.0
        }
    }

    fn answered(code: &str) -> SdkError<Answer, ()> {
        let answer = aws_sdk_error::ErrorMetadata::builder().code(code).message("so it is").build();
        SdkError::service_error(Answer(answer), ())
    }

    #[test]
    fn a_service_that_refuses_us_needs_a_person_and_one_that_is_busy_does_not() {
        let refused = of(answered("AccessDeniedException"), "stream \"x\" was not read");
        assert_eq!(refused.fault(), Fault::Permanent);
        assert_eq!(refused.explanation(), "stream \"x\" was not read: AccessDeniedException: so it is");
        assert_eq!(refused.outside_code(), Some("AccessDeniedException"));
        for code in ["ProvisionedThroughputExceededException", "InternalFailure", "SomethingNew"] {
            assert_eq!(of(answered(code), "no").fault(), Fault::Transient, "{code}");
        }
    }

    #[test]
    fn a_service_that_gives_no_answer_is_waited_for() {
        let error: SdkError<Answer, ()> = SdkError::timeout_error("five seconds");
        assert_eq!(code_of(&error), None);
        assert_eq!(of(error, "no").fault(), Fault::Transient);
    }

    #[test]
    fn what_asks_for_patience_is_no_fault_of_anybody() {
        assert!(is_throttled("LimitExceededException") && is_throttled("ProvisionedThroughputExceededException"));
        assert!(!is_throttled("AccessDeniedException"));
        let both = PERMANENT_CODES.iter().find(|(code, _)| is_throttled(code));
        assert!(both.is_none(), "{both:?}");
    }
}
