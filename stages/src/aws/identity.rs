//! Who we are: credentials by AWS's standard chain, and what it means where it gives none.

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use pipeline_engine::stage::StageError;

/// Asks the chain once.
///
/// # Errors
/// Permanent where nothing gives credentials or what should give them is set wrongly; transient where it did not
/// answer.
pub(super) async fn ask(provider: &SharedCredentialsProvider) -> Result<Credentials, StageError> {
    provider.provide_credentials().await.map_err(|error| match error {
        CredentialsError::CredentialsNotLoaded(_) => {
            StageError::permanent("there are no credentials for AWS").because(error).hint(
                "Neither AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY, a profile in ~/.aws (AWS_PROFILE), a web identity \
                 or a container's role is set, and the instance metadata service gave none.",
            )
        }
        CredentialsError::InvalidConfiguration(_) => {
            StageError::permanent("what should give the credentials for AWS is set wrongly")
                .because(error)
                .hint("Look at the AWS_ variables and at ~/.aws/config.")
        }
        error => StageError::transient("credentials for AWS were not given").because(error).hint(
            "Outside AWS set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; on it look at the role of the \
             instance or container.",
        ),
    })
}

#[cfg(test)]
mod tests {
    use aws_credential_types::provider::future;
    use pipeline_engine::stage::Fault;

    use super::*;

    #[derive(Debug)]
    struct Says(fn() -> CredentialsError);

    impl ProvideCredentials for Says {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            future::ProvideCredentials::ready(Err(self.0()))
        }
    }

    #[tokio::test]
    async fn what_gives_none_needs_a_person_and_what_does_not_answer_is_waited_for() {
        let cases: [(fn() -> CredentialsError, Fault); 4] = [
            (CredentialsError::not_loaded_no_source, Fault::Permanent),
            (|| CredentialsError::invalid_configuration("no such profile"), Fault::Permanent),
            (|| CredentialsError::provider_error("503"), Fault::Transient),
            (|| CredentialsError::provider_timed_out(std::time::Duration::from_secs(5)), Fault::Transient),
        ];
        for (error, fault) in cases {
            let refused = ask(&SharedCredentialsProvider::new(Says(error))).await.unwrap_err();
            assert_eq!(refused.fault(), fault, "{}", refused.chain());
        }
    }
}
