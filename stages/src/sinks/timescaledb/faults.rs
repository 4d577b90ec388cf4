//! Whose a database error is, by its SQLSTATE.

use std::error::Error;

use pipeline_engine::stage::StageError;
use tokio_postgres::error::SqlState;

/// An error of the database, or of the way to it, with the fault that the engine needs to know.
pub(super) fn fault(what: &str, error: tokio_postgres::Error) -> StageError {
    if let Some(db) = error.as_db_error() {
        let code = db.code().code().to_owned();
        let mut text = format!("{what}: {} (SQLSTATE {code})", db.message());
        if let Some(detail) = db.detail() {
            text.push_str(": ");
            text.push_str(detail);
        }
        return by_code(db.code(), text).code(code);
    }
    if let Some(cause) = tls_cause(&error) {
        let hint = "Check sslrootcert and the host name in the URL; the server's certificate must be valid for both.";
        return StageError::permanent(format!("{what}: the TLS handshake failed: {cause}")).hint(hint);
    }
    if error.to_string().contains("server does not support TLS") {
        let hint = "Turn TLS on in the server, or add sslmode=disable to the URL if the network is yours alone.";
        return StageError::permanent(format!("{what}: the server does not speak TLS")).hint(hint);
    }
    if error.to_string().contains("password missing") {
        let hint = "Give it in the URL or as the key `password`.";
        return StageError::permanent(format!("{what}: the server asks for a password")).hint(hint);
    }
    // Refused, reset, timed out, closed: the way to the database.
    StageError::transient(what.to_owned()).because(error)
}

fn by_code(code: &SqlState, text: String) -> StageError {
    let code = code.code();
    let class = &code[..2];
    match class {
        // Connection, operator intervention (shutdown, starting up), resources (full disk, too many
        // clients), I/O.
        "08" | "57" | "53" | "58" => StageError::transient(text),
        // Serialization, deadlock, lock not available, object in use; a standby before its promotion.
        _ if ["40001", "40P01", "55P03", "55006", "25006"].contains(&code) => StageError::transient(text),
        "22" | "23" | "54" => StageError::data(text),
        "28" => StageError::permanent(text).hint("Check user and password."),
        "3D" => StageError::permanent(text).hint("Create the database, or correct its name in the URL."),
        "42" => StageError::permanent(text).hint("Check the table and the rights of the user."),
        _ => StageError::permanent(text),
    }
}

/// What rustls found wrong, in words for a person.
fn tls_cause(error: &tokio_postgres::Error) -> Option<String> {
    let mut next = error.source();
    while let Some(cause) = next {
        let inner = cause.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        let found = cause.downcast_ref().or_else(|| inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()));
        if let Some(tls) = found {
            return Some(in_words(tls));
        }
        next = cause.source();
    }
    None
}

fn in_words(error: &rustls::Error) -> String {
    use rustls::CertificateError::{Expired, ExpiredContext, NotValidForName, NotValidForNameContext, UnknownIssuer};
    match error {
        rustls::Error::InvalidCertificate(UnknownIssuer) => {
            "the server's certificate is signed by an authority that is not trusted".to_owned()
        }
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => {
            "the server's certificate has expired".to_owned()
        }
        rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            format!("the server's certificate is for another host ({error})")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use pipeline_engine::stage::Fault;

    use super::*;

    #[test]
    fn each_class_has_its_fault() {
        for (code, fault) in [
            ("57P03", Fault::Transient),
            ("53100", Fault::Transient),
            ("40P01", Fault::Transient),
            ("22003", Fault::Data),
            ("23514", Fault::Data),
            ("28P01", Fault::Permanent),
            ("3D000", Fault::Permanent),
            ("42P01", Fault::Permanent),
            ("0A000", Fault::Permanent),
        ] {
            assert_eq!(by_code(&SqlState::from_code(code), String::new()).fault(), fault, "{code}");
        }
    }
}
