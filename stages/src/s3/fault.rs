//! Whose an error of an S3 store is, by its kind and code.
//!
//! An unknown code counts as passing: a store that is away answers in many ways.

use std::error::Error as StdError;

use object_store::Error;
use pipeline_engine::stage::StageError;

/// Codes of S3 for requests that will fail again until a person has changed something. Errors of
/// other codes, and those without any, count as passing.
const PERMANENT_CODES: [(&str, &str); 8] = [
    ("AuthorizationHeaderMalformed", WRONG_REGION),
    ("PermanentRedirect", WRONG_REGION),
    ("IllegalLocationConstraintException", WRONG_REGION),
    ("ExpiredToken", "Get a new AWS_SESSION_TOKEN."),
    ("InvalidToken", "Check AWS_SESSION_TOKEN: it does not belong to the access key."),
    ("InvalidBucketName", "Check the name of the bucket."),
    ("EntityTooLarge", "Lower \"roll_size\"."),
    ("NotImplemented", "The store lacks what the sink asks for. Start again: what it can do is found out on opening."),
];

const WRONG_REGION: &str = "Set \"region\" or AWS_REGION to the region of the bucket.";

/// Whose an error is. `verb` says what the bucket was not, `needs` which rights that takes.
pub(crate) fn of(error: Error, bucket: &str, verb: &str, needs: &str) -> StageError {
    if let Error::NotFound { .. } = error {
        return StageError::permanent(format!("there is no bucket \"{bucket}\""))
            .because(error)
            .hint("Create it, or correct \"url\", \"endpoint\" or \"region\".");
    }
    if let Error::PermissionDenied { .. } | Error::Unauthenticated { .. } = error {
        return StageError::permanent(format!("bucket \"{bucket}\" can't be {verb} with these credentials"))
            .because(error)
            .hint(format!("Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or the role; it needs {needs}."));
    }
    let chain = whole_text(&error);
    let code = code_in(&chain);
    let known = PERMANENT_CODES.iter().find(|(permanent, _)| code == Some(permanent));
    let error = match known {
        Some((_, hint)) => {
            StageError::permanent(format!("bucket \"{bucket}\" can't be {verb}")).because(error).hint(*hint)
        }
        None => StageError::transient(format!("bucket \"{bucket}\" was not {verb}")).because(error),
    };
    match code {
        Some(code) => error.code(code),
        None => error,
    }
}

/// The code that S3 writes into its answers.
pub(crate) fn code_in(answer: &str) -> Option<&str> {
    Some(answer.split_once("<Code>")?.1.split_once("</Code>")?.0)
}

/// The error and all beneath it: `object_store` keeps the answer's status and body in private types.
pub(crate) fn whole_text(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push('\n');
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}
