//! What `pipeline doctor` asks an object store, by an object that nobody else knows and that is deleted in the end.

use futures::StreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use pipeline_engine::now_us;
use pipeline_engine::stage::{Examination, StageError};

use super::records::{IF_MATCH, IF_NONE_MATCH};
use super::{Bucket, refuses_condition};
use crate::s3::fault::{code_in, whole_text};

/// Stores tell when an object was made to the second.
const SECOND_US: i64 = 1_000_000;
/// Hints for codes of S3 that say more than what the sink itself would.
const HINTS: [(&str, &str); 6] = [
    ("InvalidAccessKeyId", "Check AWS_ACCESS_KEY_ID: the store does not know it."),
    ("SignatureDoesNotMatch", "Check AWS_SECRET_ACCESS_KEY: it does not belong to the access key."),
    ("RequestTimeTooSkewed", "Set the clock of this machine: the store refuses requests that are 15 minutes off."),
    ("InvalidToken", "Check AWS_SESSION_TOKEN: it does not belong to the access key."),
    ("ExpiredToken", "Get a new AWS_SESSION_TOKEN."),
    ("NoSuchBucket", "Create the bucket, or correct \"url\", \"endpoint\" or \"region\"."),
];
/// Codes that say that it is the credentials which are wrong, whatever was asked.
const OF_CREDENTIALS: [&str; 4] = ["InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken"];

impl Bucket {
    /// Everything in the order in which one needs the other.
    pub(super) async fn examine_all(&mut self, report: &Examination) {
        report.begin("credentials");
        match self.settings.connect().await {
            Ok(client) => self.client = Some(client),
            Err(error) => return report.fail("credentials", &error),
        }
        let probe = self.aside(&format!("{}-doctor-{:016x}.probe", self.probe, rand::random::<u64>()));
        if let Err((check, error)) = self.look(&probe, report).await {
            report.fail(check, &error);
        }
    }

    async fn look(&self, probe: &Path, report: &Examination) -> Result<(), (&'static str, StageError)> {
        let client = self.client().map_err(|error| ("credentials", error))?;
        report.begin("list");
        match client.list(Some(&self.prefix)).next().await {
            None | Some(Ok(_)) => report.pass("list", format!("bucket \"{}\" can be listed", self.settings.bucket)),
            Some(Err(error)) if is_only_a_right(&error) && !report.run_is_shared() => report.warn(
                "list",
                self.told("listed", error).explanation(),
                "The sink does without; `pipeline reconcile`, `dlq` and `schema diff` need s3:ListBucket.",
            ),
            Some(Err(error)) => return Err((check_of(&error), self.told("listed", error))),
        }
        report.begin("create");
        let before = now_us();
        let put = |mode: PutMode| client.put_opts(probe, PutPayload::from_static(b"probe"), mode.into());
        let first = match put(PutMode::Create).await {
            Err(error) if refuses_condition(&error) => put(PutMode::Overwrite).await.map(|_| false),
            outcome => outcome.map(|_| true),
        };
        let takes_condition = first.map_err(|error| (check_of(&error), self.told("written to", error)))?;
        let keeps_condition = takes_condition && matches!(put(PutMode::Create).await, Err(Error::AlreadyExists { .. }));
        if keeps_condition {
            report.pass("create", "an object is created only where none is");
        } else if report.run_is_shared() {
            report.fail("create", &self.refused(IF_NONE_MATCH));
        } else {
            report.warn(
                "create",
                "the store does not keep the condition \"only if no object is there\" (If-None-Match): the sink will \
                 look before it writes",
                "Let only one run of this pipeline write there, or use a store that keeps it.",
            );
        }
        let read = self.read_back(probe, before, report).await;
        if report.run_is_shared() {
            self.swap_twice(probe, report).await;
        }
        self.multipart(probe, report).await;
        self.delete(probe, report).await;
        read
    }

    async fn read_back(
        &self,
        probe: &Path,
        before_us: i64,
        report: &Examination,
    ) -> Result<(), (&'static str, StageError)> {
        report.begin("read");
        let client = self.client().map_err(|error| ("read", error))?;
        let found = client.get(probe).await.map_err(|error| ("read", self.told("read", error)))?;
        let made_us = found.meta.last_modified.timestamp_micros();
        let content = found.bytes().await.map_err(|error| ("read", self.told("read", error)))?;
        if content.as_ref() != b"probe" {
            let error = StageError::permanent("an object came back otherwise than it was written");
            return Err(("read", error.hint("Is there a cache or a gateway between here and the store?")));
        }
        report.pass("read", "what was written comes back");
        report.compare_clock("the object store", (made_us, made_us + SECOND_US), (before_us, now_us()));
        Ok(())
    }

    /// Whether an object is changed only by whoever has seen it last.
    async fn swap_twice(&self, probe: &Path, report: &Examination) {
        report.begin("swap");
        match self.tags_taken(probe).await {
            Ok(Some(_)) => report.pass("swap", "an object is changed only by whoever has seen it last (If-Match)"),
            Ok(None) => report.fail("swap", &self.refused(IF_MATCH)),
            Err(error) => report.fail("swap", &error),
        }
    }

    /// An upload in parts, given up. The sink itself writes each object at once.
    async fn multipart(&self, probe: &Path, report: &Examination) {
        report.begin("multipart");
        let Ok(client) = self.client() else { return };
        let uploaded = async {
            let mut upload = client.put_multipart(probe).await?;
            let part = upload.put_part(PutPayload::from_static(b"part")).await;
            upload.abort().await?;
            part
        };
        match uploaded.await {
            Ok(()) => report.pass("multipart", "an upload in parts was begun and given up"),
            Err(error) => report.warn(
                "multipart",
                self.told("written to in parts", error).explanation(),
                "The sink does without; tools that copy large objects there may not. It needs s3:AbortMultipartUpload.",
            ),
        }
    }

    async fn delete(&self, probe: &Path, report: &Examination) {
        report.begin("delete");
        let Ok(client) = self.client() else { return };
        match client.delete(probe).await {
            Ok(()) => report.pass("delete", "the object of this check is gone again"),
            Err(error) => {
                let text = self.told("cleared of it", error).explanation();
                let fix = if report.run_is_shared() {
                    "Several workers leave files behind without it: allow s3:DeleteObject below \"_pipeline/\"."
                } else {
                    "The sink does without; delete it by hand, or allow s3:DeleteObject below the prefix for `pipeline dlq purge`."
                };
                report.warn("delete", format!("the object of this check stays: \"{probe}\" ({text})"), fix);
            }
        }
    }

    /// An error in the sink's words, with the store's code and without the rest of its answer, which may hold keys.
    fn told(&self, verb: &str, error: Error) -> StageError {
        let text = whole_text(&error);
        let code = code_in(&text).map(str::to_owned);
        let error = self.failed(verb, error);
        let Some(code) = code else { return error };
        let known = HINTS.iter().find(|(known, _)| *known == code).map(|(_, hint)| *hint);
        let told = StageError::permanent(format!("{error}: {code}"));
        match known.or(error.way_out()) {
            Some(hint) => told.hint(hint),
            None => told,
        }
    }
}

/// Whether the store knows us and the bucket, and does not allow this one thing.
fn is_only_a_right(error: &Error) -> bool {
    code_in(&whole_text(error)) == Some("AccessDenied")
}

/// Which check an error belongs to that comes with the first requests.
fn check_of(error: &Error) -> &'static str {
    let text = whole_text(error);
    match code_in(&text) {
        Some(code) if OF_CREDENTIALS.contains(&code) => "credentials",
        Some("RequestTimeTooSkewed") => "clock",
        Some("AccessDenied") => "rights",
        Some(_) => "bucket",
        None if matches!(error, Error::NotFound { .. }) => "bucket",
        None => "network",
    }
}
