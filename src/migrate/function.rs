//! A Lambda that stores, as `aws lambda get-function-configuration` prints it.
//!
//! Its code is not in there, so its environment is all there is to go by. **A value is taken over only where its name says
//! that it is a place or a number, and it has the form of one**; a password is replaced by a reference to a
//! variable, and of all others the name alone is told.

use serde_json::Value;

use super::{Remarks, is_plain, text_at};

const PLACE: &str = "lambda";
/// What the name of a database's variable begins with.
const PREFIXES: [&str; 9] =
    ["TIMESCALEDB_", "TIMESCALE_", "POSTGRESQL_", "POSTGRES_", "DATABASE_", "RDS_", "DB_", "TS_", "PG"];
/// Names of variables that hold what nobody is to see.
const SECRET_WORDS: [&str; 8] = ["PASS", "PWD", "SECRET", "TOKEN", "KEY", "CREDENTIAL", "AUTH", "PRIVATE"];

/// What a function says of where it stores.
#[derive(Debug, Clone, Default)]
pub struct Function {
    pub name: String,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub database: Option<String>,
    pub user: Option<String>,
    pub sslmode: Option<String>,
    pub table: Option<String>,
    /// The variable that holds the password.
    pub password_variable: Option<String>,
    pub batch_rows: Option<u64>,
    /// How long one write may take, in milliseconds.
    pub write_timeout_ms: Option<u64>,
}

/// Settings of a function, why they don't map, and what to do.
const SETTINGS: [(&str, &str, &str); 8] = [
    (
        "VpcConfig",
        "A pipeline runs where it is started.",
        "Start it in that network, and let its security group reach the database.",
    ),
    ("MemorySize", "Memory is bounded by queues, not by a setting.", "See docs/operations.md for what it takes."),
    ("DeadLetterConfig", "What can't be stored leaves by `rejected`.", "Look at it by `pipeline dlq list`."),
    ("Layers", "No code of the function runs here.", "Make what it computes transforms."),
    ("FileSystemConfigs", "Nothing is mounted.", "Mount it on the machine if the pipeline reads it."),
    (
        "ReservedConcurrentExecutions",
        "One sink has one connection.",
        "Nothing: groups of rows take the place of many writers.",
    ),
    ("KMSKeyArn", "Variables are not decrypted by KMS here.", "Use `${file:/run/secrets/NAME}`."),
    ("ImageConfigResponse", "No code of the function runs here.", "Make what it computes transforms."),
];

impl Function {
    /// Reads a function's configuration.
    ///
    /// # Errors
    /// It is none.
    pub fn read(document: &Value, remarks: &mut Remarks) -> Result<Self, String> {
        let settings = document.get("Configuration").unwrap_or(document);
        let Some(name) = text_at(settings, &["FunctionName"]) else {
            return Err("the function has no \"FunctionName\": print it by `aws lambda get-function-configuration \
                        --function-name NAME`"
                .to_owned());
        };
        let mut function = Self { name: name.to_owned(), ..Self::default() };
        remarks.add(
            PLACE,
            "the function's code",
            "Its settings do not say what it computes between an object and the table.",
            "Compare what both store before you turn anybody to the new table; make what it computes transforms.",
        );
        let variables = settings.get("Environment").and_then(|environment| environment.get("Variables"));
        for (variable, value) in variables.and_then(Value::as_object).into_iter().flatten() {
            let is_taken = value.as_str().is_some_and(|value| function.take(variable, value));
            if !is_taken {
                tell_variable(variable, remarks);
            }
        }
        for (what, why, instead) in SETTINGS {
            let value = settings.get(what).filter(|value| !value.is_null());
            let is_empty = value.is_some_and(|value| match value {
                Value::Array(items) => items.is_empty(),
                Value::Object(keys) => {
                    keys.values().all(|value| value.as_str() == Some("") || value == &Value::Array(vec![]))
                }
                _ => false,
            });
            if value.is_some() && !is_empty {
                remarks.add(PLACE, what, why, instead);
            }
        }
        let timeout = settings.get("Timeout").and_then(Value::as_u64).filter(|seconds| (1..=900).contains(seconds));
        function.write_timeout_ms = function.write_timeout_ms.or(timeout.map(|seconds| seconds * 1000));
        function.tell_place(remarks);
        Ok(function)
    }

    /// Takes a variable over, if it is known and has the form that it should.
    fn take(&mut self, variable: &str, value: &str) -> bool {
        let upper = variable.to_ascii_uppercase();
        let of_database = PREFIXES.iter().find_map(|prefix| upper.strip_prefix(prefix));
        match of_database.unwrap_or("") {
            "PASSWORD" | "PASS" | "PWD" | "USER_PASSWORD" => {
                let name = if is_plain(variable, "_") { variable } else { "DB_PASSWORD" };
                self.password_variable = Some(name.to_owned());
                true
            }
            _ if SECRET_WORDS.iter().any(|word| upper.contains(word)) => false,
            "HOST" | "HOSTNAME" | "ENDPOINT" | "ADDRESS" | "SERVER" => keep(&mut self.host, value, "-."),
            "NAME" | "DATABASE" | "DBNAME" | "DB" => keep(&mut self.database, value, "_-"),
            "USER" | "USERNAME" => keep(&mut self.user, value, "_-."),
            "TABLE" | "TABLE_NAME" => keep(&mut self.table, value, "_."),
            "SSLMODE" | "SSL_MODE" => self.take_sslmode(value),
            "PORT" => number(&mut self.port, value),
            "URL" | "URI" | "DSN" | "CONNECTION_STRING" => self.take_url(value),
            rest => match (rest, upper.as_str()) {
                ("BATCH_SIZE" | "BATCH_ROWS", _)
                | (_, "BATCH_SIZE" | "BATCH_ROWS" | "MAX_BATCH_SIZE" | "CHUNK_SIZE") => {
                    self.batch_rows = value.parse().ok().filter(|rows| (1..=1_000_000).contains(rows));
                    self.batch_rows.is_some()
                }
                (_, "TABLE" | "TABLE_NAME" | "TARGET_TABLE") => keep(&mut self.table, value, "_."),
                ("STATEMENT_TIMEOUT_MS" | "TIMEOUT_MS" | "QUERY_TIMEOUT_MS", _) => self.take_timeout(value, 1),
                ("TIMEOUT_SECONDS" | "TIMEOUT_S" | "TIMEOUT_SECS" | "STATEMENT_TIMEOUT_SECONDS", _) => {
                    self.take_timeout(value, 1000)
                }
                _ => false,
            },
        }
    }

    /// `postgres://user:password@host:5432/database`, without its password.
    fn take_url(&mut self, value: &str) -> bool {
        let Some((scheme, rest)) = value.split_once("://") else { return false };
        if !["postgres", "postgresql"].contains(&scheme) {
            return false;
        }
        let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        // A password may hold an "@".
        let (login, place) = rest.rsplit_once('@').unwrap_or(("", rest));
        let (place, database) = place.split_once('/').unwrap_or((place, ""));
        let (host, port) = place.split_once(':').unwrap_or((place, ""));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let is_good = is_plain(host, "-.")
            && (port.is_empty() || port.parse::<u16>().is_ok())
            && (database.is_empty() || is_plain(database, "_-"))
            && (user.is_empty() || is_plain(user, "_-."));
        if !is_good {
            return false;
        }
        let of_parameters = parameters.split('&').find_map(|parameter| parameter.strip_prefix("sslmode="));
        if of_parameters.is_some_and(|mode| !self.take_sslmode(mode)) {
            return false;
        }
        self.host = Some(host.to_owned());
        self.port = port.parse().ok().or(self.port);
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        self.database = given(database).or(self.database.take());
        self.user = given(user).or(self.user.take());
        if !password.is_empty() && self.password_variable.is_none() {
            self.password_variable = Some("DB_PASSWORD".to_owned());
        }
        true
    }

    fn take_sslmode(&mut self, value: &str) -> bool {
        let known = ["disable", "prefer", "require", "verify-full"].contains(&value);
        known && keep(&mut self.sslmode, value, "-")
    }

    fn take_timeout(&mut self, value: &str, unit_ms: u64) -> bool {
        let timeout = value.parse::<u64>().ok().and_then(|count| count.checked_mul(unit_ms));
        self.write_timeout_ms = timeout.filter(|ms| (1..=3_600_000).contains(ms));
        self.write_timeout_ms.is_some()
    }

    fn tell_place(&self, remarks: &mut Remarks) {
        if self.host.is_none() {
            remarks.add(
                PLACE,
                "the database",
                "No variable of the function names its host.",
                "Set DATABASE_URL, or correct `url` of the sink.",
            );
        }
        if self.host.as_ref().is_some_and(|host| host.ends_with(".rds.amazonaws.com")) {
            remarks.add(
                PLACE,
                "certificates of RDS",
                "The server's certificate is verified here, and systems do not know the authority of RDS.",
                "Download its bundle (global-bundle.pem) and add `?sslmode=verify-full&sslrootcert=FILE` to the url.",
            );
        }
    }
}

/// Keeps a value of letters, digits and `more`. False for any other.
fn keep(place: &mut Option<String>, value: &str, more: &str) -> bool {
    let is_good = is_plain(value, more);
    if is_good {
        *place = Some(value.to_owned());
    }
    is_good
}

fn number<N: std::str::FromStr>(place: &mut Option<N>, value: &str) -> bool {
    *place = value.parse().ok();
    place.is_some()
}

/// Of a variable that is not taken over, the name.
fn tell_variable(variable: &str, remarks: &mut Remarks) {
    let upper = variable.to_ascii_uppercase();
    if SECRET_WORDS.iter().any(|word| upper.contains(word)) {
        remarks.add(
            PLACE,
            &format!("variable {variable}"),
            "By its name it is a secret: its value is neither read nor written.",
            "Where the pipeline needs it, refer to it: `${NAME}` or `${file:/run/secrets/NAME}`.",
        );
    } else {
        remarks.add(
            PLACE,
            &format!("variable {variable}"),
            "Nothing here is known to be the same, or its value has not the form of what its name says.",
            "See what the function does with it.",
        );
    }
}
