//! Where a table lies: a file of this machine, an object in S3, or the rows of a query.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pipeline_engine::stage::{BuildContext, BuildError, StageError};
use pipeline_engine::units::{DurationText, SizeText};
use secrecy::SecretString;

use super::TableFormat;

/// A file is looked at as often; a look costs next to nothing.
const FILE_REFRESH: Duration = Duration::from_secs(1);
/// A store or a database is asked as often: devices are moved by people.
const REFRESH: Duration = Duration::from_secs(30);
/// What is outside is asked ten times a second at most.
const REFRESH_MIN: Duration = Duration::from_millis(100);
/// One try to read a table, from connecting to the last row: 256 MiB in that time are 4.3 MiB/s.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// A column of text in memory has 31 bits for its length.
const TABLE_SIZE_MAX: u64 = i32::MAX as u64;

/// What a pipeline file says of a table, by the keys that every transform with a table has.
pub(in crate::transforms) struct TableKeys<'a> {
    pub table: Option<&'a str>,
    pub query: Option<&'a str>,
    pub url: Option<&'a SecretString>,
    pub password: Option<&'a SecretString>,
    pub endpoint: Option<&'a String>,
    pub region: Option<&'a String>,
    pub allow_http: bool,
    pub refresh: Option<DurationText>,
    pub read_timeout: Option<DurationText>,
    pub max_table_size: SizeText,
    /// In the place of the process's own variables, for S3.
    pub environment: Option<&'a BTreeMap<String, String>>,
}

/// Where a table lies, and how it is asked for.
#[derive(Debug)]
pub(in crate::transforms) struct Place {
    pub(super) kind: PlaceKind,
    /// How often it is looked whether the table has changed.
    pub(in crate::transforms) refresh: Duration,
    /// How long one try to read it may take.
    pub(super) read_timeout: Duration,
    pub(in crate::transforms) bytes_max: u64,
}

#[derive(Debug)]
pub(super) enum PlaceKind {
    File(PathBuf),
    #[cfg(feature = "parquet")]
    Object {
        settings: crate::s3::S3Settings,
        key: object_store::path::Path,
    },
    #[cfg(feature = "timescaledb")]
    Query {
        database: Box<crate::postgres::Database>,
        sql: String,
    },
}

impl TableKeys<'_> {
    /// The place that the keys name; `None` where they name none.
    pub(in crate::transforms) fn place(&self, cx: &BuildContext) -> Result<Option<Arc<Place>>, BuildError> {
        let (kind, refresh) = match (self.table, self.query) {
            (None, None) => {
                self.refuse(
                    &["url", "password", "endpoint", "region", "allow_http", "refresh", "read_timeout"],
                    |key| BuildError::invalid(key, "means nothing without a `table` or a `query`"),
                )?;
                return Ok(None);
            }
            (Some(_), Some(_)) => {
                return Err(BuildError::invalid("query", "a table is given already").hint("Give one of the two."));
            }
            (None, Some(sql)) => {
                self.refuse(&["endpoint", "region", "allow_http"], |key| {
                    BuildError::invalid(key, "a query has no such setting").hint("It is one of tables in S3.")
                })?;
                (self.query(sql, cx)?, REFRESH)
            }
            (Some(table), None) => {
                self.refuse(&["url", "password"], |key| {
                    BuildError::invalid(key, "only a `query` goes to a database")
                        .hint("Remove the key, or write query = \"SELECT ... FROM ...\" in the place of `table`.")
                })?;
                self.file_or_object(table)?
            }
        };
        let refresh = self.refresh.map_or(refresh, |given| given.0);
        if refresh < REFRESH_MIN {
            return Err(BuildError::invalid("refresh", "a table is looked at ten times a second at most"));
        }
        let read_timeout = self.read_timeout.map_or(READ_TIMEOUT, |given| given.0);
        if read_timeout < Duration::from_millis(1) {
            return Err(BuildError::invalid("read_timeout", "no table can be read in no time"));
        }
        if self.max_table_size.0 > TABLE_SIZE_MAX {
            return Err(BuildError::invalid("max_table_size", "a table in memory has at most 2 GiB"));
        }
        Ok(Some(Arc::new(Place { kind, refresh, read_timeout, bytes_max: self.max_table_size.0 })))
    }

    /// The mistake at the first of these keys that is given.
    fn refuse(&self, keys: &[&'static str], mistake: impl Fn(&'static str) -> BuildError) -> Result<(), BuildError> {
        let given = |key: &str| match key {
            "url" => self.url.is_some(),
            "password" => self.password.is_some(),
            "endpoint" => self.endpoint.is_some(),
            "region" => self.region.is_some(),
            "allow_http" => self.allow_http,
            "refresh" => self.refresh.is_some(),
            _ => self.read_timeout.is_some(),
        };
        keys.iter().find(|key| given(key)).map_or(Ok(()), |key| Err(mistake(key)))
    }

    fn file_or_object(&self, table: &str) -> Result<(PlaceKind, Duration), BuildError> {
        let forms = "Write a file such as \"devices.csv\", or \"s3://bucket/key.parquet\".";
        match table.split_once("://") {
            Some(("s3", rest)) => Ok((self.object(rest)?, REFRESH)),
            Some(("file", path)) if path.starts_with('/') => Ok((self.file(path)?, FILE_REFRESH)),
            Some((scheme, _)) => {
                Err(BuildError::invalid("table", format!("\"{scheme}\" is no place of tables")).hint(forms))
            }
            None if table.trim().is_empty() => {
                Err(BuildError::invalid("table", "there is no file without a name").hint(forms))
            }
            None => Ok((self.file(table)?, FILE_REFRESH)),
        }
    }

    fn file(&self, path: &str) -> Result<PlaceKind, BuildError> {
        self.refuse(&["endpoint", "region", "allow_http"], |key| {
            BuildError::invalid(key, "a file of this machine has no such setting")
                .because_of("table")
                .hint("Remove the key, or write table = \"s3://bucket/key\".")
        })?;
        Ok(PlaceKind::File(path.into()))
    }

    #[cfg(feature = "parquet")]
    fn object(&self, rest: &str) -> Result<PlaceKind, BuildError> {
        let forms = "Such as \"s3://bucket/tables/devices.csv\".";
        let refuse = |text: String| BuildError::invalid("table", text).hint(forms);
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
        if bucket.is_empty() || !bucket.chars().all(allowed) {
            return Err(refuse(format!("\"{bucket}\" is no name of a bucket")));
        }
        let key = object_store::path::Path::parse(key)
            .map_err(|error| refuse(format!("\"{key}\" is no key of an object: {error}")))?;
        if key.as_ref().is_empty() {
            return Err(refuse(format!("no object of the bucket \"{bucket}\" is named")));
        }
        if let Some(endpoint) = self.endpoint {
            crate::s3::check_endpoint(endpoint, self.allow_http)
                .map_err(|(text, hint)| BuildError::invalid("endpoint", text).hint(hint))?;
        }
        let settings = crate::s3::S3Settings {
            bucket: bucket.to_owned(),
            endpoint: self.endpoint.cloned(),
            region: self.region.cloned(),
            allow_http: self.allow_http,
            environment: self.environment.cloned(),
        };
        Ok(PlaceKind::Object { settings, key })
    }

    #[cfg(not(feature = "parquet"))]
    fn object(&self, _: &str) -> Result<PlaceKind, BuildError> {
        Err(BuildError::invalid("table", "this build can't read from S3").hint("Build it with the feature `parquet`."))
    }

    #[cfg(feature = "timescaledb")]
    fn query(&self, sql: &str, cx: &BuildContext) -> Result<PlaceKind, BuildError> {
        if sql.trim().is_empty() {
            return Err(BuildError::invalid("query", "there is no statement"));
        }
        let Some(url) = self.url else {
            return Err(BuildError::invalid("url", "a query needs the key \"url\"")
                .hint("Name the database: url = \"postgres://user@host:5432/database\"."));
        };
        let application = format!("pipeline {} {}", cx.pipeline, cx.stage);
        let database = crate::postgres::Database::of_url(url, self.password, &application)?;
        Ok(PlaceKind::Query { database: Box::new(database), sql: sql.to_owned() })
    }

    #[cfg(not(feature = "timescaledb"))]
    fn query(&self, _: &str, _: &BuildContext) -> Result<PlaceKind, BuildError> {
        Err(BuildError::invalid("query", "this build reaches no database")
            .hint("Build it with the feature `timescaledb`."))
    }
}

impl Place {
    /// A file that is looked at so often, for tests.
    #[cfg(test)]
    pub(super) fn file(path: PathBuf, refresh: Duration) -> Arc<Self> {
        Arc::new(Self { kind: PlaceKind::File(path), refresh, read_timeout: READ_TIMEOUT, bytes_max: 1 << 20 })
    }

    /// A table that a person has to mend.
    pub(in crate::transforms) fn broken(&self, what: impl AsRef<str>) -> StageError {
        let kind = if self.ending().is_some() { "table " } else { "" };
        StageError::permanent(format!("{kind}{self}: {}", what.as_ref()))
    }

    /// The ending of the file's or the object's name, in lower case; `None` for a query.
    pub(in crate::transforms) fn ending(&self) -> Option<String> {
        let ending_of =
            |path: &Path| path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
        match &self.kind {
            PlaceKind::File(path) => Some(ending_of(path)),
            #[cfg(feature = "parquet")]
            PlaceKind::Object { key, .. } => Some(ending_of(Path::new(key.as_ref()))),
            #[cfg(feature = "timescaledb")]
            PlaceKind::Query { .. } => None,
        }
    }

    /// What a file or an object holds, by what was given or the ending of its name; `None` for a query.
    pub(in crate::transforms) fn format(&self, given: Option<TableFormat>) -> Result<Option<TableFormat>, BuildError> {
        let Some(ending) = self.ending() else {
            return match given {
                Some(_) => Err(BuildError::invalid("format", "the rows of a query have no format")),
                None => Ok(None),
            };
        };
        let format = match (given, ending.as_str()) {
            (Some(format), _) => format,
            (None, "csv") => TableFormat::Csv,
            (None, "parquet") => TableFormat::Parquet,
            (None, _) => {
                return Err(BuildError::invalid("table", format!("{self} ends neither in .csv nor in .parquet"))
                    .hint("Say what it is: format = \"csv\"."));
            }
        };
        if format == TableFormat::Parquet && cfg!(not(feature = "parquet")) {
            return Err(BuildError::invalid("table", "this build can't read Parquet")
                .hint("Build it with the feature `parquet`."));
        }
        Ok(Some(format))
    }
}

/// For a person: `"devices.csv"`, `"s3://bucket/devices.csv"`, `the query to "iot" on db:5432 as "reader"`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            PlaceKind::File(path) => write!(f, "\"{}\"", path.display()),
            #[cfg(feature = "parquet")]
            PlaceKind::Object { settings, key } => write!(f, "\"s3://{}/{key}\"", settings.bucket),
            #[cfg(feature = "timescaledb")]
            PlaceKind::Query { database, .. } => write!(f, "the query to {database}"),
        }
    }
}
