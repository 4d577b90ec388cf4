//! The client side of TLS: which authorities are trusted, and who we say we are.
//!
//! Built on a provider of its own choice and not on the process-wide one: installing that is left to
//! the binary, and another library in it may have asked for another.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pipeline_engine::CertificateStats;
use pipeline_engine::stage::StageError;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::certificates::{note_own, verifier};

/// Files in PEM, read at each connection.
#[derive(Debug, Clone)]
pub(crate) struct TlsFiles {
    /// Authorities to trust instead of the machine's own.
    pub roots: Option<PathBuf>,
    /// Our certificate and what leads to its authority.
    pub certificate: Option<PathBuf>,
    /// The key of `certificate`.
    pub key: Option<PathBuf>,
    /// TLS from the first byte (`sslnegotiation=direct`), which needs ALPN.
    pub direct: bool,
}

impl TlsFiles {
    /// Reads the files. Blocking.
    pub fn client_config(&self, noted: &CertificateStats) -> Result<ClientConfig, StageError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let unusable = |error: rustls::Error| StageError::permanent("TLS can't be set up").because(error);
        let verifier = verifier(self.authorities()?, provider.clone(), noted)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                let chain = certificates(certificate)?;
                note_own(&chain, noted);
                let key = PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| unreadable(key, "a private key").because(error))?;
                builder.with_client_auth_cert(chain, key).map_err(unusable)?
            }
            _ => builder.with_no_client_auth(),
        };
        if self.direct {
            config.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        Ok(config)
    }

    /// The certificates that we show, if any.
    pub fn own_certificates(&self) -> Result<Option<Vec<CertificateDer<'static>>>, StageError> {
        self.certificate.as_deref().map(certificates).transpose()
    }

    fn authorities(&self) -> Result<RootCertStore, StageError> {
        let mut store = RootCertStore::empty();
        let Some(path) = &self.roots else {
            let found = rustls_native_certs::load_native_certs();
            let (added, _) = store.add_parsable_certificates(found.certs);
            if added == 0 {
                return Err(StageError::permanent("this machine trusts no certificate authority")
                    .hint("Install the package ca-certificates, or add sslrootcert=/path/to/ca.pem to the url."));
            }
            return Ok(store);
        };
        for certificate in certificates(path)? {
            store.add(certificate).map_err(|error| unreadable(path, "a certificate authority").because(error))?;
        }
        Ok(store)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, StageError> {
    let failed = |error| unreadable(path, "certificates").because(error);
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    if found.is_empty() {
        return Err(unreadable(path, "certificates"));
    }
    Ok(found)
}

fn unreadable(path: &Path, what: &str) -> StageError {
    StageError::permanent(format!("\"{}\" can't be read as {what} in PEM", path.display()))
}
