//! What `pipeline doctor` and `pipeline check --connect` ask of a bucket, without writing to it.

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetRange};
use pipeline_engine::stage::{Examination, StageError};

use super::S3Source;
use super::ledger::Object;
use super::place::object_of;

/// Listed to find one object that is ours; more would take a while in a bucket of many.
const LOOKED_AT_MAX: usize = 10_000;

/// Whether the bucket can be listed, and what is the first object.
pub(super) async fn probe(source: &S3Source) -> Result<String, StageError> {
    Ok(match first(source).await? {
        Some(object) => format!("{} can be listed; its first object is \"{}\"", source.place.url(), object.key),
        None => format!("{} can be listed, and holds no object", source.place.url()),
    })
}

pub(super) async fn examine(source: &S3Source, report: &Examination) {
    report.begin("credentials");
    let client = match source.place.connect().await {
        Ok(client) => client,
        Err(error) => return report.fail("credentials", &error),
    };
    report.pass("credentials", format!("there are some for {}", source.place.settings.place()));
    if let Some(queue) = &source.queue {
        report.begin("queue");
        match queue.look().await {
            Ok(found) => report.pass("queue", found),
            Err(error) => report.fail("queue", &error),
        }
    }
    report.begin("list");
    let object = match first(source).await {
        Ok(Some(object)) => object,
        Ok(None) => {
            let found = format!("{} can be listed, and holds no object", source.place.url());
            return match source.poll.is_some() || source.queue.is_some() {
                true => report.pass("list", found),
                false => report.warn("list", found, "Is the prefix right? A folder's ends with a slash."),
            };
        }
        Err(error) => return report.fail("list", &error),
    };
    report.pass("list", format!("{} can be listed; its first object is \"{}\"", source.place.url(), object.key));
    report.begin("read");
    let options = GetOptions { range: Some(GetRange::Bounded(0..1)), ..GetOptions::default() };
    let read = match Path::parse(&object.key) {
        Ok(path) => client.get_opts(&path, options).await.map(drop),
        Err(error) => Err(error.into()),
    };
    match read {
        Ok(()) => report.pass("read", "its first object can be read"),
        Err(error) => report.fail("read", &source.place.failed("read", error)),
    }
}

async fn first(source: &S3Source) -> Result<Option<Object>, StageError> {
    let client = source.place.connect().await?;
    let mut listed = source.place.list(&client);
    for _ in 0..LOOKED_AT_MAX {
        let next = listed.try_next().await.map_err(|error| source.place.failed("listed", error))?;
        let Some(meta) = next.filter(|meta| !source.place.is_beyond(meta.location.as_ref())) else { return Ok(None) };
        if let Some(object) = object_of(&meta).filter(|object| source.place.holds(&object.key)) {
            return Ok(Some(object));
        }
    }
    Ok(None)
}
