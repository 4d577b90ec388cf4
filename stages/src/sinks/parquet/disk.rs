//! Whose an error of this machine's disk is, for the folder of objects and for the journal alike.

use std::io::{self, ErrorKind};
use std::path::Path;

use pipeline_engine::stage::StageError;

/// Disks block: their work is done where nobody else waits.
///
/// Not cancel safe: work that was begun is done to its end, though nobody learns of its outcome.
pub(super) async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StageError> + Send + 'static,
) -> Result<T, StageError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|panic| StageError::bug("writing a file panicked").because(panic))?
}

/// Whose an I/O error is. Not for syncs: see [`not_synced`].
pub(super) fn failed(verb: &str, path: &Path, error: io::Error) -> StageError {
    let text = format!("could not {verb} \"{}\"", path.display());
    let (fault, hint): (fn(String) -> StageError, _) = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            (StageError::transient, "The disk is full. Make room: the sink goes on by itself.")
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            (StageError::permanent, "The user that runs the pipeline must be able to write there.")
        }
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            (StageError::permanent, "A file is where a folder should be.")
        }
        ErrorKind::InvalidFilename | ErrorKind::FileTooLarge => {
            (StageError::permanent, "The file system is too limited for these files.")
        }
        _ => (StageError::transient, "If it stays so, look at the disk and its mount."),
    };
    fault(text).because(error).hint(hint)
}

/// A failed sync may have dropped the data, and a second one can succeed without having written it:
/// only a full disk is worth another try, with a new file.
pub(super) fn not_synced(path: &Path, error: io::Error) -> StageError {
    if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
        return failed("sync", path, error);
    }
    StageError::permanent(format!("\"{}\" can't be made durable", path.display()))
        .because(error)
        .hint("The disk failed to sync. Check it before the pipeline runs again.")
}

#[cfg(test)]
mod tests {
    use pipeline_engine::stage::Fault;

    use super::*;

    #[test]
    fn a_full_disk_is_waited_for_and_a_failed_sync_is_not() {
        let full = || io::Error::from(ErrorKind::StorageFull);
        let path = Path::new("lake");
        assert_eq!(failed("write", path, full()).fault(), Fault::Transient);
        assert_eq!(not_synced(path, full()).fault(), Fault::Transient);
        assert_eq!(not_synced(path, io::Error::other("EIO")).fault(), Fault::Permanent);
        assert_eq!(failed("write", path, io::Error::from(ErrorKind::ReadOnlyFilesystem)).fault(), Fault::Permanent);
    }
}
