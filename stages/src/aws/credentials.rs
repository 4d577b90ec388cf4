//! Lends AWS's own chain to `object_store`, which knows no profiles: so S3 and the SDK are one identity.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::meta::region::ProvideRegion;
use aws_config::profile::region::ProfileFileRegionProvider;
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use pipeline_engine::stage::StageError;
use tokio::sync::Mutex;

use super::identity;

/// Credentials are asked for anew so long before they end: a request that is signed now may take a while to arrive.
const RENEW_BEFORE: Duration = Duration::from_secs(60);

/// The credentials of the SDK's chain, kept until they are about to end: every request asks for them.
#[derive(Debug)]
pub(crate) struct LentCredentials {
    chain: SharedCredentialsProvider,
    region: Option<String>,
    kept: Mutex<Option<Kept>>,
}

#[derive(Debug)]
struct Kept {
    credential: Arc<AwsCredential>,
    ends: Option<SystemTime>,
}

impl LentCredentials {
    /// By the process's own variables and files. Asks nobody yet. `region`: where roles are asked for, if not in that of
    /// the variables or the profile.
    pub(crate) async fn of_process(region: Option<String>) -> Self {
        let region = match region {
            Some(region) => Some(Region::new(region)),
            // Not the instance's: a machine outside AWS would wait for it, and S3 has a default.
            None => match EnvironmentVariableRegionProvider::new().region().await {
                Some(region) => Some(region),
                None => ProfileFileRegionProvider::new().region().await,
            },
        };
        // The loader builds the chain with the SDK's defaults for clients and clocks.
        let config = aws_config::defaults(BehaviorVersion::latest()).region(region.clone()).load().await;
        let chain = match config.credentials_provider() {
            Some(chain) => chain,
            None => SharedCredentialsProvider::new(DefaultCredentialsChain::builder().build().await),
        };
        Self { region: region.map(|region| region.to_string()), ..Self::of(chain) }
    }

    fn of(chain: SharedCredentialsProvider) -> Self {
        Self { chain, region: None, kept: Mutex::default() }
    }

    /// The region that the process's variables or its profile name.
    pub(crate) fn region(&self) -> Option<&str> {
        self.region.as_deref()
    }

    /// Credentials that are good for a while.
    ///
    /// # Errors
    /// As for [`identity::ask`].
    pub(crate) async fn current(&self) -> Result<Arc<AwsCredential>, StageError> {
        // One request at a time asks; the others wait for its answer.
        let mut kept = self.kept.lock().await;
        if let Some(kept) = kept.as_ref().filter(|kept| kept.is_good(SystemTime::now())) {
            return Ok(kept.credential.clone());
        }
        let given = identity::ask(&self.chain).await?;
        let credential = Arc::new(lend(&given));
        *kept = Some(Kept { credential: credential.clone(), ends: given.expiry() });
        Ok(credential)
    }
}

impl Kept {
    fn is_good(&self, now: SystemTime) -> bool {
        self.ends.is_none_or(|ends| now + RENEW_BEFORE < ends)
    }
}

fn lend(given: &Credentials) -> AwsCredential {
    AwsCredential {
        key_id: given.access_key_id().to_owned(),
        secret_key: given.secret_access_key().to_owned(),
        token: given.session_token().map(str::to_owned),
    }
}

#[async_trait]
impl CredentialProvider for LentCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        self.current().await.map_err(|error| object_store::Error::Generic { store: "S3", source: error.into() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use aws_credential_types::provider::{ProvideCredentials, future};

    use super::*;

    /// Counts who asks, and gives what ends after so long.
    #[derive(Debug)]
    struct Counting {
        asked: Arc<AtomicU32>,
        good_for: Option<Duration>,
    }

    impl ProvideCredentials for Counting {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let asked = self.asked.fetch_add(1, Ordering::Relaxed);
            let ends = self.good_for.map(|good_for| SystemTime::now() + good_for);
            let token = Some("token".to_owned());
            let given = Credentials::new(format!("key {asked}"), "secret", token, ends, "test");
            future::ProvideCredentials::ready(Ok(given))
        }
    }

    async fn asked_by_three_requests(good_for: Option<Duration>) -> u32 {
        let asked = Arc::new(AtomicU32::new(0));
        let lent = LentCredentials::of(SharedCredentialsProvider::new(Counting { asked: asked.clone(), good_for }));
        for _ in 0..3 {
            let credential = lent.get_credential().await.unwrap();
            assert_eq!(credential.token.as_deref(), Some("token"));
        }
        asked.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn credentials_are_kept_until_they_are_about_to_end() {
        assert_eq!(asked_by_three_requests(None).await, 1, "they never end");
        assert_eq!(asked_by_three_requests(Some(Duration::from_secs(3600))).await, 1);
        assert_eq!(asked_by_three_requests(Some(RENEW_BEFORE / 2)).await, 3, "they end while a request is under way");
    }
}
