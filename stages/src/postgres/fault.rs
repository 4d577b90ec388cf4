//! Whose a database error is, by its SQLSTATE.
//!
//! Decided by codes and types, never by a text. An unknown code needs a person: the run stops rather
//! than retry forever or send good rows away.

use std::error::Error;
use std::io;

use pipeline_engine::stage::{Fault, StageError};

/// An error while rows were written.
pub(crate) fn while_writing(error: tokio_postgres::Error, table: &str) -> StageError {
    let Some(refusal) = Refusal::of(&error) else {
        return StageError::transient(format!("the connection was lost while writing to {table}")).because(error);
    };
    let text = refusal.text();
    let error = match fault(refusal.code()) {
        Fault::Data => StageError::data(format!("{table} refused rows: {text}")),
        Fault::Transient => StageError::transient(format!("the database could not write to {table}: {text}")),
        Fault::Permanent | Fault::Bug => StageError::permanent(format!("the database can't write to {table}: {text}")),
    };
    refusal.explain(error)
}

/// An error before any rows were written: what the rows hold can't be the reason.
pub(crate) fn while_opening(error: tokio_postgres::Error, doing: &str) -> StageError {
    let Some(refusal) = Refusal::of(&error) else { return without_answer(error, doing) };
    let text = format!("{doing}: {}", refusal.text());
    let error = match fault(refusal.code()) {
        Fault::Transient => StageError::transient(text),
        Fault::Data | Fault::Permanent | Fault::Bug => StageError::permanent(text),
    };
    refusal.explain(error)
}

/// No answer of the server: the network, TLS, or an agreement that was not reached.
fn without_answer(error: tokio_postgres::Error, doing: &str) -> StageError {
    let cause = error.source().map(|cause| (cause.downcast_ref::<io::Error>(), cause));
    let (io, text) = match cause {
        Some((io, cause)) => (io, cause.to_string()),
        None => return StageError::transient(doing).because(error),
    };
    let Some(io) = io else {
        // A text of the client's own: no TLS on the server, no password given.
        return StageError::permanent(format!("{doing}: {text}")).because(error);
    };
    match io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(cause)) => {
            let hint = certificate_hint(cause);
            StageError::permanent(format!("{doing}: the server's certificate was refused: {cause}"))
                .because(error)
                .hint(hint)
        }
        Some(rustls::Error::AlertReceived(alert)) => {
            StageError::permanent(format!("{doing}: the server ended the TLS handshake: {alert:?}"))
                .because(error)
                .hint("It may want another client certificate: see sslcert and sslkey in the url.")
        }
        _ => StageError::transient(doing).because(error),
    }
}

fn certificate_hint(cause: &rustls::CertificateError) -> &'static str {
    use rustls::CertificateError::{Expired, ExpiredContext, NotValidForName, NotValidForNameContext, UnknownIssuer};
    match cause {
        UnknownIssuer => {
            "Its issuer is none of those trusted here. For a private authority add \
             sslrootcert=/path/to/ca.pem to the url."
        }
        NotValidForName | NotValidForNameContext { .. } => "Connect by a name that the certificate holds.",
        Expired | ExpiredContext { .. } => "Renew it, or set this machine's clock.",
        _ => "The certificate and its authority (sslrootcert in the url) don't fit together.",
    }
}

/// What the server itself answered.
struct Refusal(tokio_postgres::error::DbError);

impl Refusal {
    fn of(error: &tokio_postgres::Error) -> Option<Self> {
        error.as_db_error().cloned().map(Self)
    }

    fn code(&self) -> &str {
        self.0.code().code()
    }

    /// The server's text and, since it often names the row or the key, its detail.
    fn text(&self) -> String {
        match self.0.detail() {
            Some(detail) => format!("{} ({})", self.0.message(), detail.trim_end_matches('.')),
            None => self.0.message().to_owned(),
        }
    }

    fn explain(&self, error: StageError) -> StageError {
        let error = error.code(self.code());
        match hint(self.code()).map(str::to_owned).or_else(|| self.0.hint().map(str::to_owned)) {
            Some(hint) => error.hint(format!("{hint} SQLSTATE {}.", self.code())),
            None => error.hint(format!("SQLSTATE {}.", self.code())),
        }
    }
}

fn hint(code: &str) -> Option<&'static str> {
    Some(match code {
        "28P01" => "Check the user in the url and the password.",
        "28000" => "Check the user in the url, and pg_hba.conf on the server.",
        "3D000" => "Create the database, or correct its name in the url.",
        "42501" => "GRANT what is missing to the user in the url.",
        "42P01" | "3F000" => "Create it, or correct its name in the pipeline file.",
        "0A000" => "This server or its TimescaleDB edition does not support it.",
        "53300" => "All connections were taken: see max_connections, or who holds them in pg_stat_activity.",
        "53100" => "The server's disk is full.",
        "53400" => {
            "A limit of the server was met. For late rows in compressed chunks it is \
             timescaledb.max_tuples_decompressed_per_dml_transaction."
        }
        "22P03" | "22P04" => "The table's columns have changed since the start: start again to see which.",
        _ => return None,
    })
}

/// Whose an error is; `None` if the server gave no answer.
pub(crate) fn fault_of(error: &tokio_postgres::Error) -> Option<Fault> {
    error.code().map(|code| fault(code.code()))
}

/// Whose an SQLSTATE is.
fn fault(code: &str) -> Fault {
    match code {
        // Broken binary framing says that the table was altered under us, not that a value is bad.
        "22P03" | "22P04" => Fault::Permanent,
        // Read-only (a standby before its promotion), in use, lock not available, timeouts of the
        // statement (57014) and of the transaction.
        "25006" | "25P03" | "25P04" | "55006" | "55P03" => Fault::Transient,
        // Null, check, foreign key, unique (of an index that is not the sink's key), exclusion;
        // a view's own check; an exception that a trigger raises on purpose.
        "23502" | "23514" | "23503" | "23505" | "23P01" | "44000" | "P0001" => Fault::Data,
        _ => match code.get(..2) {
            // Connection, rollback (deadlock, serialization), resources, operator, system, internal.
            Some("08" | "40" | "53" | "57" | "58" | "XX") => Fault::Transient,
            // Bad values, and rows beyond a limit of the server.
            Some("22" | "54") => Fault::Data,
            _ => Fault::Permanent,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_of_sqlstate_has_its_fault() {
        let expected = [
            (Fault::Transient, "08006 57P01 57P03 57014 53300 53100 40001 40P01 25006 55006 58030 XX000"),
            (Fault::Data, "22003 22008 22021 22P02 23502 23503 23505 23514 54000 P0001"),
            (Fault::Permanent, "3D000 28P01 28000 42P01 42501 42703 0A000 22P03 TS001"),
        ];
        for (wanted, codes) in expected {
            for code in codes.split(' ') {
                assert_eq!(fault(code), wanted, "{code}");
            }
        }
    }
}
