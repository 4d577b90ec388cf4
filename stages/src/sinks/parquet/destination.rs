//! What `url` means: a prefix of a bucket, or a folder of this machine.

use std::path::PathBuf;

use object_store::path::Path;
use pipeline_engine::stage::BuildError;

const FORMS: &str = "Write \"s3://bucket/prefix\", or a folder such as \"./data/lake\" or \"file:///var/lake\".";

/// Where objects go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Destination {
    Bucket { name: String, prefix: Path },
    Folder(PathBuf),
}

impl Destination {
    pub(crate) fn parse(url: &str) -> Result<Self, BuildError> {
        let refuse = |text: String| BuildError::invalid("url", text).hint(FORMS);
        match url.split_once("://") {
            Some(("s3", rest)) => {
                let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let allowed =
                    |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.' || c == '_';
                if name.is_empty() || !name.chars().all(allowed) {
                    return Err(refuse(format!("\"{name}\" is no name of a bucket")));
                }
                let prefix =
                    Path::parse(prefix).map_err(|error| refuse(format!("\"{prefix}\" is no prefix: {error}")))?;
                Ok(Self::Bucket { name: name.to_owned(), prefix })
            }
            Some(("file", path)) if path.starts_with('/') => Ok(Self::Folder(path.into())),
            Some(("file", _)) => Err(refuse("a file URL begins with three slashes".to_owned())),
            Some((scheme, _)) => Err(refuse(format!("\"{scheme}\" is no place for objects"))),
            None if url.trim().is_empty() => Err(refuse("there is no folder without a name".to_owned())),
            None if url.starts_with('~') => {
                Err(refuse("\"~\" is the shell's, and stands for no folder here".to_owned()))
            }
            None => Ok(Self::Folder(url.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_and_folders_are_told_apart() {
        let bucket =
            |name: &str, prefix: &str| Destination::Bucket { name: name.to_owned(), prefix: Path::from(prefix) };
        assert_eq!(Destination::parse("s3://lake"), Ok(bucket("lake", "")));
        assert_eq!(Destination::parse("s3://my-lake/raw/iot/"), Ok(bucket("my-lake", "raw/iot")));
        assert_eq!(Destination::parse("file:///var/lake"), Ok(Destination::Folder("/var/lake".into())));
        assert_eq!(Destination::parse("./data/lake"), Ok(Destination::Folder("./data/lake".into())));
        assert_eq!(Destination::parse("/var/lake"), Ok(Destination::Folder("/var/lake".into())));
    }

    #[test]
    fn what_names_no_place_is_refused_with_the_forms_that_do() {
        for url in
            ["s3://", "s3://My Lake", "s3://lake/a//b", "s3://lake/../x", "gs://lake", "file://host/x", "", "~/lake"]
        {
            let error = Destination::parse(url).expect_err(url);
            assert_eq!((error.key.as_str(), error.hint.as_deref()), ("url", Some(FORMS)), "{url}");
        }
    }
}
