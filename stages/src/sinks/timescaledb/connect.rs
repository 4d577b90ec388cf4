//! The way to the database: URL, TLS, one connection.

use std::path::Path;
use std::time::Duration;

use pipeline_engine::stage::{BuildError, StageError};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::faults::fault;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that answers nothing for so long is gone, whatever TCP still hopes for.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// How to reach a database: a URL that has been read.
pub(super) struct Endpoint {
    config: tokio_postgres::Config,
    tls: Option<TlsFiles>,
}

#[derive(Debug, Default)]
struct TlsFiles {
    root: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

impl Endpoint {
    /// Reads a URL. Of libpq's `sslmode`s, `disable` means no TLS and all others that are accepted mean
    /// TLS with the chain and the host name verified: an unverified connection protects from nobody who
    /// can reach it. Default: `disable` for this machine, `verify-full` for others.
    pub(super) fn parse(url: &str, password: Option<&SecretString>, application: &str) -> Result<Self, BuildError> {
        let wrong = |message: String| {
            BuildError::invalid("url", message).hint("Write postgres://user:password@host:5432/database.")
        };
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(wrong("the URL of a database starts with postgres://".to_owned()));
        }
        let (base, parameters) = url.split_once('?').unwrap_or((url, ""));
        let mut files = TlsFiles::default();
        let mut mode = None;
        let mut passed_on = Vec::new();
        for pair in parameters.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "sslmode" => mode = Some(value),
                "sslrootcert" => files.root = Some(value.to_owned()),
                "sslcert" => files.cert = Some(value.to_owned()),
                "sslkey" => files.key = Some(value.to_owned()),
                _ => passed_on.push(pair),
            }
        }
        let plain = format!("{base}?{}", passed_on.join("&"));
        let mut config: tokio_postgres::Config =
            plain.parse().map_err(|error: tokio_postgres::Error| wrong(readable(&error)))?;
        if config.get_hosts().is_empty() {
            return Err(wrong("the URL names no host".to_owned()));
        }
        let encrypted = match mode {
            Some("disable") => false,
            Some("require" | "verify-ca" | "verify-full") => true,
            None => !config.get_hosts().iter().all(is_this_machine),
            Some(other) => {
                let hint = "Use disable or verify-full; prefer and allow would fall back to an open connection.";
                return Err(BuildError::invalid("url", format!("sslmode \"{other}\" is not accepted")).hint(hint));
            }
        };
        if files.cert.is_some() != files.key.is_some() {
            return Err(BuildError::invalid("url", "sslcert and sslkey are given together"));
        }
        config.ssl_mode(if encrypted { SslMode::Require } else { SslMode::Disable });
        config.application_name(application).connect_timeout(CONNECT_TIMEOUT).tcp_user_timeout(SILENCE_MAX);
        config
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3);
        if let Some(password) = password {
            config.password(password.expose_secret());
        }
        Ok(Self { config, tls: encrypted.then_some(files) })
    }

    /// Host and database, for messages. Never the password.
    pub(super) fn name(&self) -> String {
        let host = match self.config.get_hosts().first() {
            Some(Host::Tcp(host)) => host.clone(),
            Some(Host::Unix(path)) => path.display().to_string(),
            None => String::new(),
        };
        format!("\"{}\" on {host}", self.config.get_dbname().or(self.config.get_user()).unwrap_or_default())
    }

    /// Opens one connection, driven by a task that ends with the client.
    pub(super) async fn connect(&self) -> Result<Client, StageError> {
        let what = format!("could not connect to the database {}", self.name());
        let client = match &self.tls {
            None => {
                let (client, connection) = self.config.connect(NoTls).await.map_err(|error| fault(&what, error))?;
                tokio::spawn(connection);
                client
            }
            Some(files) => {
                let connected = self.config.connect(files.connector()?).await;
                let (client, connection) = connected.map_err(|error| fault(&what, error))?;
                tokio::spawn(connection);
                client
            }
        };
        Ok(client)
    }
}

/// The error's own text names neither user nor password, but its source says more.
fn readable(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("the URL can't be read: {source}"),
        None => format!("the URL can't be read: {error}"),
    }
}

fn is_this_machine(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()),
    }
}

impl TlsFiles {
    fn connector(&self) -> Result<MakeRustlsConnect, StageError> {
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| StageError::bug("the TLS provider has no protocol version").because(error))?;
        let builder = builder.with_root_certificates(self.roots()?);
        let config = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                let unreadable = |error| StageError::permanent(format!("can't read the key \"{key}\"")).because(error);
                let key_bytes =
                    PrivateKeyDer::from_pem_file(Path::new(key)).map_err(|error| unreadable(error.to_string()))?;
                builder
                    .with_client_auth_cert(certificates(cert)?, key_bytes)
                    .map_err(|error| StageError::permanent("the client certificate can't be used").because(error))?
            }
            _ => builder.with_no_client_auth(),
        };
        Ok(MakeRustlsConnect::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, StageError> {
        let mut roots = RootCertStore::empty();
        let found = match &self.root {
            Some(path) => certificates(path)?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        roots.add_parsable_certificates(found);
        if roots.is_empty() {
            let hint = "Add sslrootcert=FILE to the URL.";
            return Err(
                StageError::permanent("there is no authority to check the server's certificate with").hint(hint)
            );
        }
        Ok(roots)
    }
}

fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, StageError> {
    let unreadable = |error: rustls::pki_types::pem::Error| {
        StageError::permanent(format!("can't read the certificates in \"{path}\"")).because(error.to_string())
    };
    CertificateDer::pem_file_iter(Path::new(path)).map_err(unreadable)?.collect::<Result<_, _>>().map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Endpoint, BuildError> {
        Endpoint::parse(url, None, "test")
    }

    #[test]
    fn another_machine_is_reached_with_tls_unless_the_url_says_otherwise() {
        for (url, encrypted) in [
            ("postgres://u@127.0.0.1/d", false),
            ("postgres://u@localhost:5433/d", false),
            ("postgres://u@db.example.com/d", true),
            ("postgres://u@db.example.com/d?sslmode=disable", false),
            ("postgres://u@127.0.0.1/d?sslmode=verify-full&sslrootcert=/ca.pem&connect_timeout=3", true),
        ] {
            assert_eq!(parse(url).unwrap().tls.is_some(), encrypted, "{url}");
        }
    }

    #[test]
    fn mistakes_in_a_url_name_what_is_wrong_and_no_password() {
        for (url, message) in [
            ("mysql://h/d", "the URL of a database starts with postgres://"),
            ("postgres://u:secret@h/d?sslmode=prefer", "sslmode \"prefer\" is not accepted"),
            ("postgres://u:secret@h/d?sslcert=/c.pem", "sslcert and sslkey are given together"),
            ("postgres://u:secret@h:port/d", "the URL can't be read: invalid value for option `port`"),
        ] {
            let error = parse(url).err().unwrap();
            assert_eq!(error.message, message);
            assert!(!format!("{error:?}").contains("secret"));
        }
    }
}
