//! What a dead letter of such a source is sent again as.

use pipeline_engine::dlq::{Letter, LetterForm, Resent};
use pipeline_engine::schema::DeclaredSchema;

use super::record::OVERSIZE_REASON;
use crate::decode::{Format, RowMessage};

/// The message of a letter, as it came or made of its row. `to`: where it goes if the letter does not know; what that is
/// called here is `place`: a topic, a path.
///
/// # Errors
/// Why it can't be sent again, as the end of a sentence that begins with the letter.
pub(crate) fn message_of(
    letter: &Letter,
    form: LetterForm,
    to: Option<&str>,
    place: &str,
    schema: Option<&DeclaredSchema>,
    format: Format,
) -> Result<Resent, String> {
    let to = letter.topic.as_deref().or(to);
    match form {
        LetterForm::Message if letter.reason == OVERSIZE_REASON => {
            Err("holds only the beginning of a message that was too large".to_owned())
        }
        LetterForm::Message => {
            let topic = to.ok_or_else(|| format!("does not know its {place}: name one with --to"))?;
            Ok(Resent { topic: topic.to_owned(), payload: letter.payload.clone() })
        }
        LetterForm::Row => {
            let message = RowMessage::of(schema, format, &letter.payload)?;
            Ok(Resent { topic: message.topic(to)?, payload: message.payload.into() })
        }
    }
}
