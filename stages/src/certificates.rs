//! Until when certificates are good: those that servers show, noted as they are verified, and our own.

use std::sync::Arc;

use pipeline_engine::CertificateStats;
use pipeline_engine::stage::StageError;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_cert::Certificate;
use x509_cert::der::Decode;

/// Verifies servers as rustls does by itself, and notes how long what they show is good.
#[derive(Debug)]
struct Noting {
    inner: Arc<WebPkiServerVerifier>,
    certificates: CertificateStats,
}

/// A verifier by these authorities.
///
/// # Errors
/// There are none.
pub(crate) fn verifier(
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
    certificates: &CertificateStats,
) -> Result<Arc<dyn ServerCertVerifier>, StageError> {
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let inner = inner.map_err(|error| StageError::permanent("TLS can't be set up").because(error))?;
    Ok(Arc::new(Noting { inner, certificates: certificates.clone() }))
}

/// Notes how long the chain is good that we show.
pub(crate) fn note_own(chain: &[CertificateDer<'_>], certificates: &CertificateStats) {
    if let Some((end_s, _)) = end(chain) {
        certificates.own.set(end_s);
    }
}

/// When the first certificate of a chain ends, in seconds since 1970, and whose that is; `None` where none can be read.
pub(crate) fn end(chain: &[CertificateDer<'_>]) -> Option<(u64, String)> {
    let ends = chain.iter().filter_map(|der| {
        let certificate = Certificate::from_der(der.as_ref()).ok()?.tbs_certificate;
        Some((certificate.validity.not_after.to_unix_duration().as_secs(), certificate.subject.to_string()))
    });
    ends.min()
}

impl ServerCertVerifier for Noting {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        let chain: Vec<CertificateDer<'_>> = [std::slice::from_ref(end_entity), intermediates].concat();
        if let Some((end_s, _)) = end(&chain) {
            self.certificates.server.set(end_s);
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
