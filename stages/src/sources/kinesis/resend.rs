//! Puts dead letters into the stream again, by the partition keys by which they came.

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_kinesis::primitives::Blob;
use pipeline_engine::dlq::{Letter, LetterForm, NotSent, Resender, Resent};
use pipeline_engine::schema::DeclaredSchema;
use pipeline_engine::stage::{Fault, StageError};

use crate::decode::{Format, RowMessage, reason};
use crate::kinesis::Stream;

/// The way back into the stream of a source.
pub(super) struct Resend {
    pub(super) stream: Stream,
    pub(super) schema: Option<Arc<DeclaredSchema>>,
    pub(super) format: Format,
}

#[async_trait]
impl Resender for Resend {
    fn message(&self, letter: &Letter, form: LetterForm, topic: Option<&str>) -> Result<Resent, String> {
        let known = letter.topic.as_deref().filter(|key| !key.is_empty());
        let (topic, payload) = match form {
            LetterForm::Message if letter.reason == reason::AGGREGATE_DAMAGED => {
                return Err("is a packed record that can't be taken apart, and won't be when it comes again".to_owned());
            }
            LetterForm::Message => {
                let key = known.or(topic).ok_or("does not know its partition key: name one with --to")?;
                (key.to_owned(), letter.payload.clone())
            }
            LetterForm::Row => {
                let message = RowMessage::of(self.schema.as_deref(), self.format, &letter.payload)?;
                (message.topic(known.or(topic))?, message.payload.into())
            }
        };
        Ok(Resent { topic, payload })
    }

    /// One after the other, so that those of one key stay in order.
    async fn send(&mut self, messages: &[Resent]) -> Result<Vec<Result<(), NotSent>>, StageError> {
        self.stream.connect().await?;
        let mut verdicts = Vec::with_capacity(messages.len());
        for Resent { topic, payload } in messages {
            let request = self.stream.client()?.put_record().stream_name(self.stream.name()).partition_key(topic);
            let put = request.data(Blob::new(payload.to_vec())).send().await;
            verdicts.push(put.map(drop).map_err(|error| {
                let error = self.stream.failed(error, "written to");
                match error.fault() {
                    Fault::Transient => NotSent::Later(error.explanation()),
                    _ => NotSent::Refused(error.explanation()),
                }
            }));
        }
        Ok(verdicts)
    }

    async fn close(&mut self) {}
}
