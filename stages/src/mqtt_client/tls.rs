//! `[tls]`: whom to trust, and who to be. Files are read at each connect, so that a certificate can be
//! replaced while the pipeline runs.

use std::path::Path;
use std::sync::Arc;

use pipeline_engine::CertificateStats;
use pipeline_engine::stage::{BuildError, StageError};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use schemars::JsonSchema;
use serde::Deserialize;

use super::address::Address;
use crate::certificates::{note_own, verifier};

/// How an encrypted connection is made: the table `[sources.NAME.tls]` or `[sinks.NAME.tls]`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// A PEM file with the authorities that may sign the broker's certificate. Without it those that
    /// the system trusts.
    pub ca: Option<String>,
    /// A PEM file with the certificate to show to the broker, the chain behind it.
    pub cert: Option<String>,
    /// A PEM file with the key of that certificate.
    pub key: Option<String>,
    /// The name that the broker's certificate must be for, if not the host of the URL.
    pub server_name: Option<String>,
    /// Protocols to offer (ALPN). For AWS IoT on port 443 this is `x-amzn-mqtt-ca` by itself.
    pub alpn: Vec<String>,
}

/// AWS IoT tells MQTT from HTTPS by this word on port 443.
const AWS_ALPN: &str = "x-amzn-mqtt-ca";

impl TlsConfig {
    /// Mistakes that show without reading a file.
    pub(crate) fn check(&self, address: &Address) -> Result<(), BuildError> {
        let alone = match (&self.cert, &self.key) {
            (Some(_), None) => Some(("tls.cert", "a certificate without its key", "Set `tls.key` as well.")),
            (None, Some(_)) => Some(("tls.key", "a key without its certificate", "Set `tls.cert` as well.")),
            _ => None,
        };
        if let Some((key, text, hint)) = alone {
            return Err(BuildError::invalid(key, text).hint(hint));
        }
        let given = self.ca.is_some() || self.cert.is_some() || self.server_name.is_some() || !self.alpn.is_empty();
        if given && !address.tls {
            return Err(BuildError::invalid("tls", "the connection is not encrypted")
                .hint("Write mqtts:// in `url`, or remove the table `tls`."));
        }
        if let Some(name) = &self.server_name
            && rustls::pki_types::ServerName::try_from(name.as_str()).is_err()
        {
            return Err(BuildError::invalid("tls.server_name", format!("\"{name}\" is no name of a server")));
        }
        Ok(())
    }

    /// The name that is asked for and checked.
    pub(crate) fn server_name<'a>(&'a self, address: &'a Address) -> &'a str {
        self.server_name.as_deref().unwrap_or(&address.host)
    }

    /// The certificates that we show, if any.
    pub(crate) fn own_certificates(&self) -> Result<Option<Vec<CertificateDer<'static>>>, StageError> {
        self.cert.as_deref().map(certificates_in).transpose()
    }

    fn protocols(&self, address: &Address) -> Vec<Vec<u8>> {
        if self.alpn.is_empty() && address.port == 443 && address.is_aws() {
            return vec![AWS_ALPN.as_bytes().to_vec()];
        }
        self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect()
    }

    /// Reads the files. The errors name them, and are permanent.
    pub(crate) fn read(
        &self,
        address: &Address,
        certificates: &CertificateStats,
    ) -> Result<Arc<ClientConfig>, StageError> {
        let provider =
            CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(aws_lc_rs::default_provider()));
        let mut config = match &self.ca {
            Some(ca) => trusting(authorities(ca)?, provider.clone(), certificates)?,
            None => trusting(authorities_of_the_system()?, provider.clone(), certificates)?,
        };
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            warn_of_a_readable_key(key);
            let chain = certificates_in(cert)?;
            note_own(&chain, certificates);
            let key_der = PrivateKeyDer::from_pem_slice(&contents(key)?).map_err(|error| {
                StageError::permanent(format!("\"{key}\" holds no private key in PEM")).because(error)
            })?;
            let certified = CertifiedKey::from_der(chain, key_der, &provider).map_err(|error| {
                StageError::permanent(format!("\"{key}\" is not the key of the certificate in \"{cert}\""))
                    .because(error)
            })?;
            config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(certified));
        }
        config.alpn_protocols = self.protocols(address);
        Ok(Arc::new(config))
    }
}

fn trusting(
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
    certificates: &CertificateStats,
) -> Result<ClientConfig, StageError> {
    let verifier = verifier(roots, provider.clone(), certificates)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| StageError::bug("the TLS library has no protocol version").because(error))?;
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

fn authorities(ca: &str) -> Result<RootCertStore, StageError> {
    let mut roots = RootCertStore::empty();
    let (accepted, _) = roots.add_parsable_certificates(certificates_in(ca)?);
    if accepted == 0 {
        return Err(StageError::permanent(format!("\"{ca}\" holds no certificate of an authority")));
    }
    Ok(roots)
}

fn authorities_of_the_system() -> Result<RootCertStore, StageError> {
    let mut roots = RootCertStore::empty();
    let (accepted, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if accepted == 0 {
        return Err(StageError::permanent("the certificates that this system trusts can't be read")
            .hint("Set `tls.ca` to a file with the authority that signed the broker's certificate."));
    }
    Ok(roots)
}

fn certificates_in(path: &str) -> Result<Vec<CertificateDer<'static>>, StageError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(&contents(path)?)
        .collect::<Result<_, _>>()
        .map_err(|error| StageError::permanent(format!("\"{path}\" is not a valid PEM file")).because(error))?;
    if found.is_empty() {
        return Err(StageError::permanent(format!("\"{path}\" holds no certificate in PEM")));
    }
    Ok(found)
}

fn contents(path: &str) -> Result<Vec<u8>, StageError> {
    std::fs::read(Path::new(path))
        .map_err(|error| StageError::permanent(format!("\"{path}\" can't be read")).because(error))
}

#[cfg(unix)]
fn warn_of_a_readable_key(path: &str) {
    use std::os::unix::fs::PermissionsExt;

    let mode = std::fs::metadata(path).map_or(0, |file| file.permissions().mode());
    if mode & 0o007 != 0 {
        tracing::warn!(path, "everybody on this machine may read the private key; chmod 0600 it");
    }
}

#[cfg(not(unix))]
fn warn_of_a_readable_key(_: &str) {}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(url: &str) -> Address {
        Address::parse("url", url).unwrap()
    }

    #[test]
    fn aws_on_port_443_gets_its_protocol_by_itself() {
        let tls = TlsConfig::default();
        let aws = "mqtts://x-ats.iot.eu-west-1.amazonaws.com";
        assert_eq!(tls.protocols(&address(&format!("{aws}:443"))), [b"x-amzn-mqtt-ca".to_vec()]);
        assert!(tls.protocols(&address(aws)).is_empty(), "8883 needs none");
        assert!(tls.protocols(&address("mqtts://broker:443")).is_empty());
        let own = TlsConfig { alpn: vec!["mqtt".to_owned()], ..TlsConfig::default() };
        assert_eq!(own.protocols(&address(&format!("{aws}:443"))), [b"mqtt".to_vec()]);
    }

    #[test]
    fn settings_without_effect_are_refused() {
        let tls = TlsConfig { ca: Some("ca.pem".to_owned()), ..TlsConfig::default() };
        assert_eq!(tls.check(&address("mqtt://broker")).unwrap_err().key, "tls");
        assert!(tls.check(&address("mqtts://broker")).is_ok());
        let half = TlsConfig { cert: Some("cert.pem".to_owned()), ..TlsConfig::default() };
        assert_eq!(half.check(&address("mqtts://broker")).unwrap_err().key, "tls.cert");
    }

    #[test]
    fn a_missing_file_is_named() {
        let tls = TlsConfig { ca: Some("/nowhere/ca.pem".to_owned()), ..TlsConfig::default() };
        let error = tls.read(&address("mqtts://broker"), &CertificateStats::default()).unwrap_err();
        assert!(error.chain().contains("\"/nowhere/ca.pem\" can't be read"), "{}", error.chain());
    }
}
