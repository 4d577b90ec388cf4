//! Where a bucket is and who may write to it: AWS's own variables, and the keys that override them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey as Key, S3ConditionalPut};
use object_store::{ClientConfigKey, ObjectStore, RetryConfig};
use pipeline_engine::stage::StageError;

use crate::aws::{LentCredentials, check_endpoint};

/// An object of some tens of MB must fit through a slow line; a dead one is noticed by the engine.
const REQUEST_TIMEOUT: &str = "300s";
/// S3 closes idle connections after about 20 s: not to be found out by a failing PUT.
const IDLE_TIMEOUT: &str = "15s";

/// Everything that leads to a client.
#[derive(Debug, Clone)]
pub(crate) struct S3Settings {
    pub(crate) bucket: String,
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) allow_http: bool,
    /// In place of the process's own variables and of the profiles in its home.
    pub(crate) environment: Option<BTreeMap<String, String>>,
}

impl S3Settings {
    /// A client that holds credentials.
    ///
    /// # Errors
    /// Permanent where nothing gives credentials; transient where what gives them did not answer.
    pub(crate) async fn connect(&self) -> Result<Arc<dyn ObjectStore>, StageError> {
        // The engine is the one place for retries.
        self.connect_with(RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() }).await
    }

    /// The same for what runs without the engine, and so retries by itself.
    pub(crate) async fn connect_patiently(&self) -> Result<Arc<dyn ObjectStore>, StageError> {
        self.connect_with(RetryConfig::default()).await
    }

    async fn connect_with(&self, retry: RetryConfig) -> Result<Arc<dyn ObjectStore>, StageError> {
        let builder = self.builder()?.with_retry(retry);
        let unsigned = builder.get_config_value(&Key::SkipSignature).is_some_and(|value| value == "true");
        if unsigned {
            return Ok(Arc::new(build(builder)?));
        }
        match &self.environment {
            None => as_the_process(builder).await,
            Some(_) => as_the_variables(builder).await,
        }
    }

    /// Which store it is, for a person.
    pub(crate) fn place(&self) -> String {
        let given = self.builder().ok().and_then(|builder| endpoint_of(&builder));
        given.unwrap_or_else(|| "Amazon S3".to_owned())
    }

    fn builder(&self) -> Result<AmazonS3Builder, StageError> {
        // Below the environment: AWS_TIMEOUT and its like may override them.
        let mut builder = AmazonS3Builder::new()
            .with_config(Key::Client(ClientConfigKey::Timeout), REQUEST_TIMEOUT)
            .with_config(Key::Client(ClientConfigKey::PoolIdleTimeout), IDLE_TIMEOUT);
        for (name, value) in self.variables() {
            // The same names that `AmazonS3Builder::from_env` knows.
            if let Some(key) = name.starts_with("AWS_").then(|| name.to_ascii_lowercase().parse().ok()).flatten() {
                builder = builder.with_config(key, value);
            }
        }
        builder = builder.with_bucket_name(&self.bucket);
        if let Some(region) = &self.region {
            builder = builder.with_region(region);
        }
        if let Some(endpoint) = &self.endpoint {
            // The variable for S3 alone would win over the general one.
            builder = builder.with_config(Key::S3Endpoint, endpoint);
        }
        let endpoint = endpoint_of(&builder);
        if let Some(endpoint) = &endpoint {
            check_endpoint(endpoint, self.allow_http).map_err(|(text, hint)| StageError::permanent(text).hint(hint))?;
        }
        Ok(builder
            .with_allow_http(endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")))
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            // Only the probe is ever deleted, and every store knows how to delete one object.
            .with_disable_bulk_delete(true))
    }

    fn variables(&self) -> Vec<(String, String)> {
        match &self.environment {
            Some(given) => given.clone().into_iter().collect(),
            None => std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
        }
    }
}

/// As who the process is for every other client of AWS: variables, profiles, roles.
async fn as_the_process(builder: AmazonS3Builder) -> Result<Arc<dyn ObjectStore>, StageError> {
    let known = builder.get_config_value(&Key::Region).or_else(|| builder.get_config_value(&Key::DefaultRegion));
    let lent = LentCredentials::of_process(known.clone()).await;
    lent.current().await?;
    let builder = match lent.region() {
        Some(region) if known.is_none() => builder.with_region(region),
        _ => builder,
    };
    Ok(Arc::new(build(builder.with_credentials(Arc::new(lent)))?))
}

/// As who a program says with variables of its own, which lead to no files of this process's user.
async fn as_the_variables(builder: AmazonS3Builder) -> Result<Arc<dyn ObjectStore>, StageError> {
    let is_set = |key| builder.get_config_value(&key).is_some();
    // Nothing else is left to ask: on a machine outside AWS, this is what no credentials look like.
    let from_instance = !is_set(Key::AccessKeyId)
        && !is_set(Key::WebIdentityTokenFile)
        && !is_set(Key::ContainerCredentialsRelativeUri)
        && !is_set(Key::ContainerCredentialsFullUri);
    let s3 = build(builder)?;
    if let Err(error) = s3.credentials().get_credential().await {
        return Err(if from_instance {
            StageError::permanent("there are no credentials for S3").because(error).hint(
                "No AWS_ACCESS_KEY_ID, web identity or container role is among the variables given, and the instance \
                 metadata service gave none.",
            )
        } else {
            StageError::transient("credentials for S3 were not given").because(error)
        });
    }
    Ok(Arc::new(s3))
}

fn build(builder: AmazonS3Builder) -> Result<AmazonS3, StageError> {
    builder.build().map_err(|error| {
        StageError::permanent("the settings for S3 are not usable").because(error).hint("Check the AWS_ variables.")
    })
}

fn endpoint_of(builder: &AmazonS3Builder) -> Option<String> {
    [Key::S3Endpoint, Key::Endpoint].iter().find_map(|key| builder.get_config_value(key))
}

#[cfg(test)]
mod tests {
    use pipeline_engine::stage::Fault;

    use super::*;

    fn settings(environment: &[(&str, &str)]) -> S3Settings {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let bucket = "lake".to_owned();
        S3Settings { bucket, endpoint: None, region: None, allow_http: false, environment: Some(environment) }
    }

    const CREDENTIALS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret")];

    #[test]
    fn keys_override_the_variables() {
        let mut settings = settings(&[
            ("AWS_REGION", "eu-west-1"),
            ("AWS_ENDPOINT_URL", "https://a.example.com"),
            ("AWS_ENDPOINT_URL_S3", "https://b.example.com"),
            ("AWS_CONDITIONAL_PUT", "disabled"),
            ("AWS_BUCKET", "other"),
            ("HOME", "/root"),
        ]);
        let value = |settings: &S3Settings, key| settings.builder().unwrap().get_config_value(&key);
        assert_eq!(value(&settings, Key::Region).as_deref(), Some("eu-west-1"));
        settings.region = Some("us-west-2".to_owned());
        settings.endpoint = Some("https://c.example.com".to_owned());
        assert_eq!(value(&settings, Key::Region).as_deref(), Some("us-west-2"));
        assert_eq!(value(&settings, Key::S3Endpoint).as_deref(), Some("https://c.example.com"));
        assert_eq!(value(&settings, Key::Bucket).as_deref(), Some("lake"));
        assert_eq!(value(&settings, Key::ConditionalPut).as_deref(), Some("etag"));
    }

    #[test]
    fn a_plain_endpoint_in_a_variable_is_refused_too() {
        let error = settings(&[("AWS_ENDPOINT_URL", "http://s3.example.com")]).builder().unwrap_err();
        assert_eq!(error.fault(), Fault::Permanent);
    }

    #[tokio::test]
    async fn half_of_the_credentials_are_none() {
        let error = settings(&CREDENTIALS[..1]).connect().await.unwrap_err();
        assert_eq!(error.fault(), Fault::Permanent);
        assert!(error.chain().contains("Missing SecretAccessKey"), "{}", error.chain());
    }

    #[tokio::test]
    async fn a_machine_without_any_credentials_says_so() {
        // Port 1 refuses: nobody is there, as outside AWS.
        let error = settings(&[("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")]).connect().await.unwrap_err();
        assert_eq!(error.fault(), Fault::Permanent);
        assert_eq!(error.to_string(), "there are no credentials for S3");
    }

    #[tokio::test]
    async fn a_role_that_is_away_is_waited_for() {
        let token = tempfile::NamedTempFile::new().unwrap();
        let token = token.path().to_str().unwrap();
        let error = settings(&[
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/role"),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token),
        ]);
        assert_eq!(error.connect().await.unwrap_err().fault(), Fault::Transient);
    }
}
