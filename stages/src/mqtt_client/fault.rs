//! Why there is no connection: what a person has to mend, and what will pass.

use std::error::Error;
use std::fmt;
use std::io;

use pipeline_engine::stage::StageError;
use rustls::{AlertDescription, CertificateError};

use super::settings::Settings;

/// A connection that ended or did not come about.
#[derive(Debug)]
pub(crate) struct Lost {
    pub(crate) by: LostBy,
    message: String,
    hint: Option<&'static str>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// Whose doing it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LostBy {
    /// The network or the broker: it will pass.
    Away,
    /// The broker refuses us, by a rule that only a person changes.
    Refused,
    /// One side does not trust the other's certificate. A person must act, unless a certificate is
    /// being replaced just now.
    Untrusted,
    /// Somebody else has connected with our client id.
    TakenOver,
}

impl Lost {
    pub(crate) fn new(by: LostBy, message: impl Into<String>) -> Self {
        Self { by, message: message.into(), hint: None, source: None }
    }

    pub(crate) fn hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }

    pub(crate) fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// As an error that stops the run.
    pub(crate) fn permanent(self) -> StageError {
        let error = StageError::permanent(self.message.clone());
        self.dress(error)
    }

    /// As an error that the engine retries.
    pub(crate) fn transient(self) -> StageError {
        let error = StageError::transient(self.message.clone());
        self.dress(error)
    }

    fn dress(self, mut error: StageError) -> StageError {
        if let Some(source) = self.source {
            error = error.because(source);
        }
        if let Some(hint) = self.hint {
            error = error.hint(hint);
        }
        error
    }
}

/// The message and the cause underneath, on one line.
impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

/// Any other failure of the network, or of TLS if that is what lies underneath.
pub(crate) fn network(error: impl Error + Send + Sync + 'static, settings: &Settings) -> Lost {
    if let Some(tls) = find_tls(&error) {
        return untrusted(tls, settings);
    }
    let place = settings.address.socket();
    Lost::new(LostBy::Away, format!("the connection to the broker at \"{place}\" failed")).because(error)
}

/// The broker hung up before or after its first answer.
pub(crate) fn hung_up(settings: &Settings) -> Lost {
    let place = settings.address.socket();
    let lost = Lost::new(LostBy::Away, format!("the broker at \"{place}\" closed the connection"));
    if settings.address.tls && settings.tls.cert.is_some() {
        return lost
            .hint("If it never answers at all, it may refuse the client certificate or what its policy allows.");
    }
    if !settings.address.tls {
        return lost.hint("If it never answers at all, it may expect an encrypted connection: mqtts://.");
    }
    lost
}

/// No answer in time.
pub(crate) fn timed_out(settings: &Settings) -> Lost {
    let place = settings.address.socket();
    Lost::new(LostBy::Away, format!("the broker at \"{place}\" did not answer in time"))
}

/// The TLS error that lies under another one. An I/O error hides what it was made of from
/// `source()`, so it is asked in its own way.
fn find_tls<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

/// Plain words for a TLS error.
fn untrusted(error: &rustls::Error, settings: &Settings) -> Lost {
    use rustls::Error as Tls;

    let place = settings.address.socket();
    let name = settings.tls.server_name(&settings.address);
    let (message, hint) = match error {
        Tls::InvalidCertificate(cause) => broker_certificate(cause, &place, name),
        Tls::AlertReceived(alert) => refused_by_alert(*alert, &place, settings.tls.cert.is_some()),
        Tls::NoApplicationProtocol => {
            (format!("the broker at \"{place}\" speaks none of the protocols in tls.alpn"), None)
        }
        Tls::InvalidMessage(_) => (
            format!("what answers at \"{place}\" does not speak TLS"),
            Some("Is this the port for encrypted connections? Without encryption write mqtt:// instead of mqtts://."),
        ),
        _ => (format!("no encrypted connection to \"{place}\" came about"), None),
    };
    let lost = Lost::new(LostBy::Untrusted, message).because(error.clone());
    match hint {
        Some(hint) => lost.hint(hint),
        None => lost,
    }
}

/// A message and a hint.
type Words = (String, Option<&'static str>);

fn broker_certificate(cause: &CertificateError, place: &str, name: &str) -> Words {
    match cause {
        CertificateError::UnknownIssuer => (
            format!("the certificate of the broker at \"{place}\" is signed by an authority that is not trusted here"),
            Some("Set `tls.ca` to a file with the certificate of the authority that signed it."),
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            (format!("the certificate of the broker at \"{place}\" has expired"), None)
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
            format!("the certificate of the broker at \"{place}\" is not valid yet"),
            Some("Is the clock of this machine right?"),
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            format!("the certificate of the broker at \"{place}\" is not for the name \"{name}\""),
            Some("Use a host name that it is for in `url`, or set `tls.server_name` to one."),
        ),
        _ => (format!("the certificate of the broker at \"{place}\" is not acceptable"), None),
    }
}

fn refused_by_alert(alert: AlertDescription, place: &str, shown: bool) -> Words {
    use AlertDescription as Alert;

    match alert {
        Alert::CertificateRequired | Alert::HandshakeFailure if !shown => {
            (format!("the broker at \"{place}\" demands a client certificate"), Some("Set `tls.cert` and `tls.key`."))
        }
        Alert::CertificateExpired => {
            (format!("the broker at \"{place}\" says that the client certificate has expired"), None)
        }
        Alert::CertificateRevoked => {
            (format!("the broker at \"{place}\" says that the client certificate is revoked"), None)
        }
        Alert::UnknownCA
        | Alert::BadCertificate
        | Alert::CertificateUnknown
        | Alert::DecryptError
        | Alert::AccessDenied => (
            format!("the broker at \"{place}\" does not trust the client certificate"),
            Some("`tls.cert` must be signed by an authority that the broker knows."),
        ),
        Alert::NoApplicationProtocol => {
            (format!("the broker at \"{place}\" speaks none of the protocols in tls.alpn"), None)
        }
        _ => (format!("the broker at \"{place}\" refused the encrypted connection"), None),
    }
}
