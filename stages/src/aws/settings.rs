//! Where a service of AWS is and who we are there: the keys of a stage, then AWS's own variables and profiles.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, ConfigLoader, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use pipeline_engine::stage::StageError;

use super::{check_endpoint, identity};

/// A service that does not take a connection within this is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Ten megabytes must fit through a slow line; SQS answers a long poll after 20 s.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);

/// A service of AWS, by the words that AWS uses for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    /// Kinesis Data Streams.
    #[cfg(feature = "kinesis")]
    Kinesis,
    /// DynamoDB.
    #[cfg(feature = "kinesis")]
    DynamoDb,
    /// Simple Queue Service.
    #[cfg(feature = "sqs")]
    Sqs,
}

impl Service {
    /// For a person.
    fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "kinesis")]
            Self::Kinesis => "Amazon Kinesis",
            #[cfg(feature = "kinesis")]
            Self::DynamoDb => "Amazon DynamoDB",
            #[cfg(feature = "sqs")]
            Self::Sqs => "Amazon SQS",
        }
    }

    /// The variable that names an endpoint for it alone.
    fn endpoint_variable(self) -> &'static str {
        match self {
            #[cfg(feature = "kinesis")]
            Self::Kinesis => "AWS_ENDPOINT_URL_KINESIS",
            #[cfg(feature = "kinesis")]
            Self::DynamoDb => "AWS_ENDPOINT_URL_DYNAMODB",
            #[cfg(feature = "sqs")]
            Self::Sqs => "AWS_ENDPOINT_URL_SQS",
        }
    }
}

/// Everything that leads to a client of a service.
#[derive(Debug, Clone)]
pub(crate) struct AwsSettings {
    /// Which one.
    pub(crate) service: Service,
    /// Overrides AWS_REGION and the profile's.
    pub(crate) region: Option<String>,
    /// Overrides AWS_ENDPOINT_URL_SERVICE and AWS_ENDPOINT_URL.
    pub(crate) endpoint: Option<String>,
    /// An endpoint may be plain HTTP, though it is not on this machine.
    pub(crate) allow_http: bool,
    /// In place of the process's own variables, files and roles: region, endpoint and keys are found here or nowhere.
    pub(crate) environment: Option<BTreeMap<String, String>>,
}

impl AwsSettings {
    /// What a client of the service is made of, once there are credentials. Make it once a stage: each has its own
    /// connections. It retries nothing: that is the stage's or the engine's.
    ///
    /// # Errors
    /// Permanent where a region or credentials are missing, or an endpoint may not be used; transient where what
    /// gives credentials did not answer.
    pub(crate) async fn connect(&self) -> Result<SdkConfig, StageError> {
        let endpoint = self.endpoint();
        if let Some(endpoint) = &endpoint {
            self.check(endpoint)?;
        }
        let config = self.loader(endpoint).load().await;
        if let Some(endpoint) = config.endpoint_url() {
            // That of a profile, where no key or variable has named one.
            self.check(endpoint)?;
        }
        if config.region().is_none() {
            let name = self.service.name();
            return Err(StageError::permanent(format!("no region is set for {name}"))
                .hint("Set \"region\" or AWS_REGION, such as \"eu-central-1\"."));
        }
        match config.credentials_provider() {
            Some(provider) => drop(identity::ask(&provider).await?),
            None => {
                return Err(StageError::permanent("there are no credentials for AWS")
                    .hint("Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."));
            }
        }
        Ok(config)
    }

    /// Which service it is, for a person.
    pub(crate) fn place(&self) -> String {
        self.endpoint().unwrap_or_else(|| self.service.name().to_owned())
    }

    fn check(&self, endpoint: &str) -> Result<(), StageError> {
        check_endpoint(endpoint, self.allow_http).map_err(|(text, hint)| StageError::permanent(text).hint(hint))
    }

    /// What a key or a variable names.
    fn endpoint(&self) -> Option<String> {
        let of_variables = || {
            let names = [self.service.endpoint_variable(), "AWS_ENDPOINT_URL"];
            names.iter().find_map(|name| self.variable(name))
        };
        self.endpoint.clone().or_else(of_variables)
    }

    fn variable(&self, name: &str) -> Option<String> {
        let value = match &self.environment {
            Some(given) => given.get(name).cloned(),
            None => std::env::var(name).ok(),
        };
        value.filter(|value| !value.is_empty())
    }

    fn loader(&self, endpoint: Option<String>) -> ConfigLoader {
        let timeouts =
            TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).operation_attempt_timeout(ATTEMPT_TIMEOUT);
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .retry_config(RetryConfig::disabled())
            // Shards that push are silent while nothing arrives, and whatever else is silent has its timeout.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .timeout_config(timeouts.build());
        if let Some(endpoint) = endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        if self.environment.is_none() {
            return match &self.region {
                Some(region) => loader.region(Region::new(region.clone())),
                None => loader,
            };
        }
        loader = match self.given_credentials() {
            Some(given) => loader.credentials_provider(SharedCredentialsProvider::new(given)),
            None => loader.no_credentials(),
        };
        let given = || ["AWS_REGION", "AWS_DEFAULT_REGION"].iter().find_map(|name| self.variable(name));
        // None of them is none, and not the process's own.
        loader.region(self.region.clone().or_else(given).map(Region::new))
    }

    /// Keys of the variables that stand in for the process's.
    fn given_credentials(&self) -> Option<Credentials> {
        let (key, secret) = (self.variable("AWS_ACCESS_KEY_ID")?, self.variable("AWS_SECRET_ACCESS_KEY")?);
        Some(Credentials::new(key, secret, self.variable("AWS_SESSION_TOKEN"), None, "environment"))
    }
}

#[cfg(test)]
#[cfg(feature = "kinesis")]
mod tests {
    use pipeline_engine::stage::Fault;

    use super::*;

    const KEYS: [(&str, &str); 3] =
        [("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret"), ("AWS_REGION", "eu-west-1")];

    fn settings(variables: &[(&str, &str)]) -> AwsSettings {
        let given = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        AwsSettings {
            service: Service::Kinesis,
            region: None,
            endpoint: None,
            allow_http: false,
            environment: Some(given),
        }
    }

    #[tokio::test]
    async fn keys_override_the_variables_and_the_variable_of_the_service_that_of_all() {
        let of_all = ("AWS_ENDPOINT_URL", "https://a.example.com");
        let of_service = ("AWS_ENDPOINT_URL_KINESIS", "https://b.example.com");
        let mut settings = settings(&[&KEYS[..], &[of_all]].concat());
        let config = settings.connect().await.unwrap();
        assert_eq!(config.endpoint_url(), Some("https://a.example.com"));
        assert_eq!(config.region().map(AsRef::as_ref), Some("eu-west-1"));
        settings.environment.as_mut().unwrap().insert(of_service.0.to_owned(), of_service.1.to_owned());
        assert_eq!(settings.connect().await.unwrap().endpoint_url(), Some("https://b.example.com"));
        settings.endpoint = Some("https://c.example.com".to_owned());
        settings.region = Some("us-west-2".to_owned());
        let config = settings.connect().await.unwrap();
        assert_eq!(config.endpoint_url(), Some("https://c.example.com"));
        assert_eq!(config.region().map(AsRef::as_ref), Some("us-west-2"));
        assert_eq!(settings.place(), "https://c.example.com");
    }

    #[tokio::test]
    async fn what_is_missing_is_named() {
        let no_region = settings(&KEYS[..2]).connect().await.unwrap_err();
        assert_eq!(no_region.fault(), Fault::Permanent);
        assert_eq!(no_region.to_string(), "no region is set for Amazon Kinesis");
        for variables in [&KEYS[2..], &KEYS[1..]] {
            let nobody = settings(variables).connect().await.unwrap_err();
            assert_eq!(nobody.fault(), Fault::Permanent);
            assert_eq!(nobody.to_string(), "there are no credentials for AWS");
        }
    }

    #[tokio::test]
    async fn a_plain_endpoint_in_a_variable_is_refused_too() {
        let plain = ("AWS_ENDPOINT_URL", "http://kinesis.example.com");
        let mut settings = settings(&[&KEYS[..], &[plain]].concat());
        assert_eq!(settings.connect().await.unwrap_err().fault(), Fault::Permanent);
        settings.allow_http = true;
        assert!(settings.connect().await.is_ok());
    }
}
