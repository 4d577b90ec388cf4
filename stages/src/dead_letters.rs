//! Dead letters one by one, as the sinks that have stored them read them back.

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use pipeline_engine::dlq::{Letter, LetterId};

/// What a stored letter is made of.
pub(crate) struct Parts {
    pub(crate) received_at_us: i64,
    pub(crate) stage: String,
    pub(crate) reason: String,
    pub(crate) detail: Option<String>,
    pub(crate) topic: Option<String>,
    pub(crate) position: Option<String>,
    pub(crate) payload: Bytes,
}

impl Parts {
    /// The letter, with its id: the same wherever it is stored. `detail` is not part of that, since it is
    /// a text for people, which another version may word otherwise.
    pub(crate) fn letter(self) -> Letter {
        let mut hash = Context::new(&SHA256);
        hash.update(b"pipeline dead letter 1");
        hash.update(&self.received_at_us.to_le_bytes());
        for text in [Some(&self.stage), Some(&self.reason), self.topic.as_ref(), self.position.as_ref()] {
            // The length first, so that no two letters run together to the same bytes.
            hash.update(&text.map_or(u64::MAX, |text| text.len() as u64).to_le_bytes());
            hash.update(text.map_or(&[], |text| text.as_bytes()));
        }
        hash.update(&self.payload);
        let mut id = [0; 16];
        id.copy_from_slice(&hash.finish().as_ref()[..16]);
        let Self { received_at_us, stage, reason, detail, topic, position, payload } = self;
        Letter { id: LetterId(id), received_at_us, stage, reason, detail, topic, position, payload }
    }
}

/// The letters in rows that were written with [`pipeline_engine::dead_letter::schema`].
///
/// # Errors
/// A column is missing or has another type.
#[cfg(feature = "parquet")]
pub(crate) fn letters_in(
    rows: &arrow::record_batch::RecordBatch,
) -> Result<Vec<Letter>, pipeline_engine::stage::StageError> {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::TimestampMicrosecondType;
    use pipeline_engine::stage::StageError;

    let column = |name: &str| {
        rows.column_by_name(name).ok_or_else(|| StageError::permanent(format!("dead letters without \"{name}\"")))
    };
    let odd = |name: &str| StageError::permanent(format!("\"{name}\" of the dead letters has an unknown type"));
    let text = |name: &'static str| {
        let texts = column(name)?.as_string_opt::<i32>().ok_or_else(|| odd(name))?;
        Ok::<_, StageError>(move |row| texts.is_valid(row).then(|| texts.value(row).to_owned()))
    };
    let (stage, reason) = (text("stage")?, text("reason")?);
    let (detail, topic, position) = (text("detail")?, text("topic")?, text("position")?);
    let received_at = column("received_at")?.as_primitive_opt::<TimestampMicrosecondType>();
    let received_at = received_at.ok_or_else(|| odd("received_at"))?;
    let payload = column("payload")?.as_binary_opt::<i32>().ok_or_else(|| odd("payload"))?;
    let letter = |row| {
        Parts {
            received_at_us: received_at.value(row),
            stage: stage(row).unwrap_or_default(),
            reason: reason(row).unwrap_or_default(),
            detail: detail(row),
            topic: topic(row),
            position: position(row),
            payload: Bytes::copy_from_slice(payload.value(row)),
        }
        .letter()
    };
    Ok((0..rows.num_rows()).map(letter).collect())
}

#[cfg(all(test, feature = "parquet"))]
mod tests {
    use pipeline_engine::dead_letter::{DeadLetter, DeadLetters};

    use super::*;

    fn letter() -> DeadLetter<'static> {
        DeadLetter {
            received_at_us: 1_769_860_800_000_000,
            stage: "telemetry",
            reason: "invalid_json",
            detail: Some("not JSON"),
            topic: Some("t/1"),
            position: Some("17"),
            payload: b"{",
        }
    }

    fn id_of(letter: DeadLetter<'_>) -> LetterId {
        let mut letters = DeadLetters::default();
        letters.push(letter);
        letters_in(&letters.take()).expect("dead letters")[0].id
    }

    #[test]
    fn an_id_is_of_all_but_the_words() {
        let id = id_of(letter());
        // Ids are noted in logs of replays: another one would have letters replayed twice.
        assert_eq!(id.to_string(), "41d5bf9dc19f5980cd07e3d0872e5f59");
        assert_eq!(id_of(DeadLetter { detail: None, ..letter() }), id);
        let others = [
            DeadLetter { received_at_us: 1, ..letter() },
            DeadLetter { stage: "telemetr", reason: "yinvalid_json", ..letter() },
            DeadLetter { reason: "other", ..letter() },
            DeadLetter { topic: None, ..letter() },
            DeadLetter { topic: Some(""), ..letter() },
            DeadLetter { position: Some("18"), ..letter() },
            DeadLetter { position: None, payload: b"17{", ..letter() },
            DeadLetter { payload: b"", ..letter() },
        ];
        let mut ids: Vec<_> = others.into_iter().map(id_of).chain([id]).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 9);
    }

    #[test]
    fn a_letter_reads_back_as_it_was_written() {
        let mut letters = DeadLetters::default();
        letters.push(DeadLetter { detail: None, topic: None, position: None, payload: b"\xff\x00", ..letter() });
        let [found] = &letters_in(&letters.take()).unwrap()[..] else { panic!("one letter") };
        let Letter { id: _, received_at_us, stage, reason, detail, topic, position, payload } = found;
        assert_eq!(
            (*received_at_us, stage.as_str(), reason.as_str()),
            (1_769_860_800_000_000, "telemetry", "invalid_json")
        );
        assert_eq!((detail, topic, position, &payload[..]), (&None, &None, &None, &b"\xff\x00"[..]));
    }
}
