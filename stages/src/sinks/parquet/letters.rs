//! The dead letters in the objects of the sink, read back. Objects are never changed or deleted.

use async_trait::async_trait;
use bytes::Bytes;
use chrono::NaiveDate;
use futures::{StreamExt, TryStreamExt, stream};
use pipeline_engine::dead_letter;
use pipeline_engine::dlq::{Letter, LetterFilter, LetterStore, LetterStream, ReplayLog};
use pipeline_engine::stage::StageError;

use super::format::{Unreadable, Written};
use super::store::Reader;
use crate::dead_letters::letters_in;

const DAY_US: i64 = 86_400_000_000;

/// The letters in the objects of one sink.
pub(super) struct LakeLetters {
    reader: Box<dyn Reader>,
    /// What the names of the sink's objects begin with.
    owner: String,
}

impl LakeLetters {
    pub(super) fn new(reader: Box<dyn Reader>, owner: &str) -> Self {
        Self { reader, owner: owner.to_owned() }
    }

    /// The objects that may hold letters of that time, by day.
    async fn keys(&mut self, filter: &LetterFilter) -> Result<Vec<String>, StageError> {
        let mut keys = self.reader.keys().await?;
        keys.retain(|key| is_object_of(&self.owner, key) && may_hold(key, filter));
        keys.sort_unstable();
        Ok(keys)
    }

    fn kept(&self) -> StageError {
        StageError::permanent(format!(
            "the dead letters in {} are objects, which are never deleted",
            self.reader.place()
        ))
        .hint("Let them expire: by a lifecycle rule of the bucket, or by removing folders of old days.")
    }
}

/// Whether a sink has written the object, by its name: that of other sinks may begin like ours.
pub(super) fn is_object_of(owner: &str, key: &str) -> bool {
    let name = key.rsplit_once('/').map_or(key, |(_, name)| name);
    let is_hash = |rest: &str| rest.split_once(['.', '-']).is_some_and(|(hash, _)| hash.len() == 32);
    Written::of(name).is_some() && name.strip_prefix(owner).is_some_and(is_hash)
}

/// Whether the folder of the object is of a day that the filter asks for. The day is that of receipt, of
/// each letter or of the first of its batch; so the letters may also be of the day after.
fn may_hold(key: &str, filter: &LetterFilter) -> bool {
    let part = |number: usize, name: &str| key.split('/').nth(number)?.strip_prefix(name)?.parse::<u32>().ok();
    let day = || {
        let year = i32::try_from(part(0, "year=")?).ok()?;
        NaiveDate::from_ymd_opt(year, part(1, "month=")?, part(2, "day=")?)
    };
    let Some(day) = day() else { return true };
    let start_us = day.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_micros();
    filter.since_us.is_none_or(|since_us| start_us + 2 * DAY_US > since_us)
        && filter.until_us.is_none_or(|until_us| start_us < until_us)
}

#[async_trait]
impl LetterStore for LakeLetters {
    fn place(&self) -> String {
        self.reader.place()
    }

    async fn read<'s>(&'s mut self, filter: &'s LetterFilter) -> Result<LetterStream<'s>, StageError> {
        let keys = self.keys(filter).await?;
        let objects = stream::try_unfold((keys.into_iter(), &mut self.reader), |(mut keys, reader)| async move {
            let Some(key) = keys.next() else { return Ok::<_, StageError>(None) };
            let letters = match reader.get(&key).await? {
                Some(content) => letters_of(key, content).await?,
                // It has expired since it was listed.
                None => Vec::new(),
            };
            Ok(Some((stream::iter(letters.into_iter().map(Ok)), (keys, reader))))
        });
        Ok(objects.try_flatten().try_filter(|letter| std::future::ready(filter.admits(letter))).boxed())
    }

    fn deletes(&self) -> Result<(), StageError> {
        Err(self.kept())
    }

    async fn delete(&mut self, _: &LetterFilter) -> Result<u64, StageError> {
        Err(self.kept())
    }

    async fn delete_these(&mut self, _: &[Letter]) -> Result<u64, StageError> {
        Err(self.kept())
    }

    fn replay_log(&self) -> Option<Box<dyn ReplayLog>> {
        None
    }
}

async fn letters_of(key: String, content: Bytes) -> Result<Vec<Letter>, StageError> {
    let broken = |error: Unreadable| {
        StageError::permanent(format!("\"{key}\" can't be read"))
            .because(error)
            .hint("Fetch it from a copy, or move it away: the other objects can be read.")
    };
    let written = Written::of(&key).ok_or_else(|| broken("no sink writes such objects".into()))?;
    let read = tokio::task::spawn_blocking(move || {
        let (batches, _) = written.read(content, &dead_letter::schema())?;
        Ok::<_, Unreadable>(batches.iter().map(letters_in).collect::<Vec<_>>())
    });
    // On a damaged object the library may panic: that is no more our mistake than an error is.
    let letters = read.await.map_err(|panic| broken(panic.into()))?.map_err(broken)?;
    Ok(letters.into_iter().collect::<Result<Vec<_>, _>>()?.concat())
}

#[cfg(test)]
mod tests {
    use parquet::arrow::ArrowWriter;
    use pipeline_engine::dead_letter::{DeadLetter, DeadLetters};
    use pipeline_engine::stage::Fault;

    use super::*;

    #[test]
    fn only_objects_of_the_sink_and_of_the_time_are_read() {
        let hash = "0123456789abcdef0123456789abcdef";
        for (name, own) in [
            (format!("iot-lake-{hash}.parquet"), true),
            (format!("iot-lake-{hash}-2.parquet"), true),
            (format!("iot-lake-{hash}.json.gz"), true),
            (format!("iot-lake-{hash}-2.json.zst"), true),
            (format!("iot-lake-{hash}.json"), true),
            (format!("iot-lake-{hash}.json.bak"), false),
            (format!("iot-lake-b-{hash}.parquet"), false),
            (format!("iot-other-{hash}.parquet"), false),
            ("iot-lake-x.parquet".to_owned(), false),
            (format!("iot-lake-{hash}.probe"), false),
        ] {
            assert_eq!(is_object_of("iot-lake-", &format!("year=2026/month=01/day=31/{name}")), own, "{name}");
        }
        let noon = 1_769_860_800_000_000;
        let filter = |since_us, until_us| LetterFilter { since_us, until_us, ..LetterFilter::default() };
        let may = |day: &str, filter: LetterFilter| may_hold(&format!("year=2026/month=01/day={day}/x"), &filter);
        assert!(may("31", filter(Some(noon), None)) && may("30", filter(Some(noon), None)));
        assert!(!may("29", filter(Some(noon), None)));
        assert!(may("31", filter(None, Some(noon))) && !may("31", filter(None, Some(noon - DAY_US / 2))));
        assert!(may("__HIVE_DEFAULT_PARTITION__", filter(Some(noon), None)), "rows without a day may be of any");
    }

    fn letter(number: u8) -> DeadLetter<'static> {
        let payloads = [b"{\"n\":1}".as_slice(), b"\xff\x00", b""];
        DeadLetter {
            received_at_us: 1_769_860_800_000_000,
            stage: "telemetry",
            reason: "invalid_json",
            detail: None,
            topic: Some("iot/d1"),
            position: Some("17"),
            payload: payloads[usize::from(number % 3)],
        }
    }

    /// What the reader of objects makes of damage is the library's matter; that it makes no panic is ours.
    #[tokio::test]
    async fn a_damaged_object_is_read_or_refused_by_its_name() {
        let mut letters = DeadLetters::default();
        (0..9).for_each(|number| letters.push(letter(number)));
        let rows = letters.take();
        let mut object = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut object, rows.schema(), None).unwrap();
        writer.write(&rows).unwrap();
        writer.close().unwrap();
        let read = async |bytes: Vec<u8>| letters_of("object.parquet".to_owned(), bytes.into()).await;
        assert_eq!(read(object.clone()).await.unwrap().len(), 9);
        let mut refused = 0;
        for at in 0..object.len() {
            let mut flipped = object.clone();
            flipped[at] ^= 1 << (at % 8);
            for damaged in [flipped, object[..at].to_vec()] {
                if let Err(error) = read(damaged).await {
                    assert_eq!(error.fault(), Fault::Permanent, "byte {at}: {}", error.chain());
                    refused += 1;
                }
            }
        }
        assert!(refused > object.len(), "cut off it is never read, and rarely with another byte");
    }
}
