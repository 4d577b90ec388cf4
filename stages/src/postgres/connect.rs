//! Where the database is and how it is reached: the url, TLS, and the connection itself.
//!
//! A server that is spoken to over TLS is always verified, chain and name. A password is held as a
//! secret and appears in no error, log or `Debug`.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use pipeline_engine::CertificateStats;
use pipeline_engine::stage::{BuildError, StageError};
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::config::{Host, SslMode, SslNegotiation};
use tokio_postgres::{Client, Connection, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::task::AbortOnDropHandle;

use super::fault;
use super::tls::TlsFiles;

const EXAMPLE: &str = "Such as \"postgres://user@host:5432/database?sslmode=verify-full\".";
/// A lost server is noticed within a minute, whether the connection is idle or full of our rows.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A database as the configuration names it. `Debug` shows no password.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    config: tokio_postgres::Config,
    tls: TlsFiles,
    certificates: CertificateStats,
}

/// An open connection. Dropping it closes the socket at once, whatever is under way: the server
/// then rolls back.
pub(crate) struct Link {
    pub client: Client,
    driver: AbortOnDropHandle<Result<(), tokio_postgres::Error>>,
}

/// One of the servers that a url names, and that speaks TCP.
pub(crate) struct Place {
    /// Host and port to connect to.
    pub socket: String,
    /// The name that its certificate must be for.
    pub name: String,
    pub is_this_machine: bool,
}

impl Database {
    /// All servers in the url that speak TCP.
    pub(crate) fn places(&self) -> Vec<Place> {
        let config = &self.config;
        let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
        let place = |index: usize| {
            let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
            let address = addresses.get(index).map(ToString::to_string);
            let name = match hosts.get(index) {
                Some(Host::Tcp(name)) => name.clone(),
                Some(Host::Unix(_)) => return None,
                None => address.clone()?,
            };
            let host = address.unwrap_or_else(|| name.clone());
            let is_this_machine = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
            let socket = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
            Some(Place { socket, name, is_this_machine })
        };
        (0..hosts.len().max(addresses.len())).filter_map(place).collect()
    }

    /// Whether connections are encrypted, and by which certificates.
    pub(crate) fn encryption(&self) -> (SslMode, &TlsFiles) {
        (self.config.get_ssl_mode(), &self.tls)
    }

    /// Reads the url. `application` is how the server lists the connection, unless the url says.
    pub fn of_url(url: &SecretString, password: Option<&SecretString>, application: &str) -> Result<Self, BuildError> {
        let (plain, ssl) = split_ssl_parameters(url.expose_secret())?;
        let mut config: tokio_postgres::Config = plain.parse().map_err(|error: tokio_postgres::Error| {
            let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            invalid(format!("not a url of a database: {cause}")).hint(EXAMPLE)
        })?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(invalid("the url names no host").hint(EXAMPLE));
        }
        if let Some(password) = password {
            if config.get_password().is_some() {
                return Err(
                    BuildError::invalid("password", "the url holds a password already").hint("Give one of the two.")
                );
            }
            config.password(password.expose_secret());
        }
        let mode = tls_mode(ssl.get("sslmode").map(String::as_str), &config)?;
        config.ssl_mode(mode);
        let tls = TlsFiles {
            // As for libpq, "system" is the trust store of the machine: what is used without it.
            roots: ssl.get("sslrootcert").filter(|path| *path != "system").map(PathBuf::from),
            certificate: ssl.get("sslcert").map(PathBuf::from),
            key: ssl.get("sslkey").map(PathBuf::from),
            direct: config.get_ssl_negotiation() == SslNegotiation::Direct,
        };
        if tls.certificate.is_some() != tls.key.is_some() {
            return Err(invalid("a client certificate needs both sslcert and sslkey"));
        }
        if mode == SslMode::Disable && (tls.roots.is_some() || tls.certificate.is_some()) {
            return Err(invalid("certificates are given, but TLS is off").hint("Add sslmode=verify-full."));
        }
        set_defaults(&mut config, application);
        Ok(Self { config, tls, certificates: CertificateStats::default() })
    }

    /// The same, and it is noted there how long certificates are good.
    pub fn noting(self, certificates: CertificateStats) -> Self {
        Self { certificates, ..self }
    }

    /// Another database of the same server, with the same login.
    pub(crate) fn sibling(&self, name: &str) -> Self {
        let mut sibling = self.clone();
        sibling.config.dbname(name);
        sibling
    }

    /// The database's name.
    pub(crate) fn name(&self) -> String {
        // As libpq and the server have it: a database is named as its user unless somebody says otherwise.
        self.config.get_dbname().or(self.config.get_user()).unwrap_or("postgres").to_owned()
    }

    /// What makes PostgreSQL's own programs connect as we do. Never shown and never an argument: it holds the password.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let config = &self.config;
        let mut variables = vec![("PGDATABASE", self.name())];
        let hosts = config.get_hosts().iter().map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        });
        let mut set = |name, value: String| {
            if !value.is_empty() {
                variables.push((name, value));
            }
        };
        let list = |values: Vec<String>| values.join(",");
        set("PGHOST", list(hosts.collect()));
        set("PGHOSTADDR", list(config.get_hostaddrs().iter().map(ToString::to_string).collect()));
        set("PGPORT", list(config.get_ports().iter().map(ToString::to_string).collect()));
        set("PGUSER", config.get_user().unwrap_or_default().to_owned());
        set("PGPASSWORD", String::from_utf8_lossy(config.get_password().unwrap_or_default()).into_owned());
        let (mode, tls) = self.encryption();
        let (mode, verifies) = match mode {
            SslMode::Disable => ("disable", false),
            SslMode::Prefer => ("prefer", false),
            _ => ("verify-full", true),
        };
        set("PGSSLMODE", mode.to_owned());
        let path = |path: &Option<PathBuf>| path.as_ref().map_or_else(String::new, |path| path.display().to_string());
        let roots = path(&tls.roots);
        // As here, an authority is trusted that the machine trusts, unless another one is named.
        set("PGSSLROOTCERT", if roots.is_empty() && verifies { "system".to_owned() } else { roots });
        set("PGSSLCERT", path(&tls.certificate));
        set("PGSSLKEY", path(&tls.key));
        variables
    }

    /// Connects to the first host that answers, and logs in: each within the connect timeout.
    pub async fn connect(&self) -> Result<Link, StageError> {
        let hosts = self.config.get_hosts().len().max(self.config.get_hostaddrs().len());
        let each = self.config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
        let limit = each.saturating_mul(u32::try_from(hosts).unwrap_or(u32::MAX).saturating_add(1));
        let late = || StageError::transient(format!("{self} did not answer within {limit:?}"));
        tokio::time::timeout(limit, self.connect_unlimited()).await.map_err(|_| late())?
    }

    async fn connect_unlimited(&self) -> Result<Link, StageError> {
        let failed = |error| fault::while_opening(error, &format!("can't connect to {self}"));
        if self.config.get_ssl_mode() == SslMode::Disable {
            let (client, connection) = self.config.connect(NoTls).await.map_err(failed)?;
            return Ok(Link::drive(client, connection));
        }
        // Read at each attempt: a renewed certificate needs no restart.
        let (tls, certificates) = (self.tls.clone(), self.certificates.clone());
        let tls = tokio::task::spawn_blocking(move || tls.client_config(&certificates)).await;
        let tls = tls.map_err(|error| StageError::bug("reading certificates panicked").because(error))??;
        let (client, connection) = self.config.connect(MakeRustlsConnect::new(tls)).await.map_err(failed)?;
        Ok(Link::drive(client, connection))
    }
}

impl Link {
    fn drive<S, T>(client: Client, connection: Connection<S, T>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Self { client, driver: AbortOnDropHandle::new(tokio::spawn(connection)) }
    }

    /// Says goodbye to the server, and waits until it has been sent.
    pub async fn close(self) -> Result<(), tokio_postgres::Error> {
        let Self { client, driver } = self;
        drop(client);
        driver.await.unwrap_or(Ok(()))
    }
}

/// The place and the user, never the password: `"iot" on db.example:5432 as "pipeline"`.
impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.config;
        let user = config.get_user().unwrap_or("the user of this process");
        write!(f, "\"{}\" on ", config.get_dbname().unwrap_or(user))?;
        let ports = config.get_ports();
        let names = config.get_hosts().iter().map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        });
        let places: Vec<String> = match config.get_hosts() {
            [] => config.get_hostaddrs().iter().map(ToString::to_string).collect(),
            _ => names.collect(),
        };
        for (index, place) in places.iter().enumerate() {
            let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
            write!(f, "{}{place}:{port}", if index == 0 { "" } else { ", " })?;
        }
        write!(f, " as \"{user}\"")
    }
}

/// The url without the parameters of TLS, which tokio-postgres knows in part, and these.
fn split_ssl_parameters(url: &str) -> Result<(String, BTreeMap<String, String>), BuildError> {
    let Some(rest) = ["postgres://", "postgresql://"].iter().find_map(|scheme| url.strip_prefix(scheme)) else {
        return Err(invalid("not a url of a database").hint(EXAMPLE));
    };
    // Behind a raw "@" of a password everything is misread, and could be shown as host or database.
    let (user, behind_user) = rest.split_once('@').unwrap_or(("", rest));
    if behind_user.contains('@') || user.contains('?') {
        return Err(
            invalid("the url has an \"@\" or a \"?\" too many").hint("In a password write them as %40 and %3F.")
        );
    }
    let (place, parameters) = behind_user.split_once('?').unwrap_or((behind_user, ""));
    let mut ssl = BTreeMap::new();
    let mut others = Vec::new();
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter.split_once('=') {
            Some((key @ ("sslmode" | "sslrootcert" | "sslcert" | "sslkey"), value)) => {
                ssl.insert(key.to_owned(), percent_decode(value)?);
            }
            _ => others.push(parameter),
        }
    }
    let head = &url[..url.len() - behind_user.len()];
    Ok((format!("{head}{place}?{}", others.join("&")), ssl))
}

fn percent_decode(text: &str) -> Result<String, BuildError> {
    let broken = || invalid("a \"%\" in the url is not followed by two hexadecimal digits");
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2).ok_or_else(broken)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| broken())?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).map_err(|_| invalid("a parameter of the url is not UTF-8"))
}

/// What was asked for, or what is safe: TLS unless the server is on this machine.
fn tls_mode(asked: Option<&str>, config: &tokio_postgres::Config) -> Result<SslMode, BuildError> {
    let has_socket = config.get_hosts().iter().any(|host| matches!(host, Host::Unix(_)));
    let mode = match asked {
        None if is_this_machine(config) => SslMode::Disable,
        None => SslMode::Require,
        Some("disable") => SslMode::Disable,
        Some("prefer") => SslMode::Prefer,
        Some("require" | "verify-ca" | "verify-full") => SslMode::Require,
        Some(other) => {
            return Err(invalid(format!("sslmode \"{other}\" is not supported"))
                .hint("Use disable, prefer, require or verify-full; TLS is always verified in full."));
        }
    };
    if has_socket && asked.is_some() && mode != SslMode::Disable {
        return Err(invalid("a unix socket has no TLS").hint("Leave sslmode out."));
    }
    if has_socket && mode != SslMode::Disable {
        return Err(invalid("the url mixes a unix socket and other machines").hint("Say sslmode=disable, or one kind."));
    }
    Ok(mode)
}

fn is_this_machine(config: &tokio_postgres::Config) -> bool {
    let addresses = config.get_hostaddrs();
    if !addresses.is_empty() {
        return addresses.iter().all(IpAddr::is_loopback);
    }
    config.get_hosts().iter().all(|host| match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()),
    })
}

/// What the url leaves open.
fn set_defaults(config: &mut tokio_postgres::Config, application: &str) {
    let untouched = tokio_postgres::Config::new();
    if config.get_keepalives_idle() == untouched.get_keepalives_idle() {
        config.keepalives_idle(KEEPALIVE_IDLE);
    }
    if config.get_keepalives_interval().is_none() {
        config.keepalives_interval(KEEPALIVE_INTERVAL);
    }
    if config.get_keepalives_retries().is_none() {
        config.keepalives_retries(KEEPALIVE_RETRIES);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(TCP_USER_TIMEOUT);
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    if config.get_application_name().is_none() {
        config.application_name(application);
    }
}

fn invalid(message: impl Into<String>) -> BuildError {
    BuildError::invalid("url", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(url: &str) -> Result<Database, BuildError> {
        Database::of_url(&url.into(), None, "pipeline test")
    }

    fn mode(url: &str) -> SslMode {
        database(url).unwrap().config.get_ssl_mode()
    }

    #[test]
    fn tls_is_the_default_unless_the_server_is_on_this_machine() {
        for url in ["postgres://u@db.example/iot", "postgres://u@10.0.0.1/iot", "postgres://u@localhost,db.example/iot"]
        {
            assert_eq!(mode(url), SslMode::Require, "{url}");
        }
        for url in ["postgres://u@localhost/iot", "postgresql://u@[::1]/iot", "postgres://u@%2Frun%2Fpostgresql/iot"] {
            assert_eq!(mode(url), SslMode::Disable, "{url}");
        }
        assert_eq!(mode("postgres://u@localhost/iot?sslmode=verify-full"), SslMode::Require);
        assert_eq!(mode("postgres://u@db.example/iot?sslmode=prefer"), SslMode::Prefer);
    }

    #[test]
    fn parameters_of_tls_are_taken_out_of_the_url_and_the_others_stay() {
        let url = "postgres://u@h/iot?sslrootcert=%2Fetc%2Fca%20x.pem&options=-c%20jit%3Doff&sslmode=require";
        let database = database(url).unwrap();
        assert_eq!(database.tls.roots, Some(PathBuf::from("/etc/ca x.pem")));
        assert_eq!(database.config.get_options(), Some("-c jit=off"));
        assert_eq!(database.config.get_application_name(), Some("pipeline test"));
    }

    #[test]
    fn mistakes_in_the_url_say_what_to_do() {
        let expected = [
            ("host=localhost", "not a url of a database"),
            ("postgres:///iot", "the url names no host"),
            ("postgres://u@h/iot?sslmode=allow", "sslmode \"allow\" is not supported"),
            ("postgres://u@h/iot?sslcert=/c.pem", "a client certificate needs both sslcert and sslkey"),
            ("postgres://u@h/iot?sslmode=disable&sslrootcert=/c.pem", "certificates are given, but TLS is off"),
            ("postgres://u@%2Frun/iot?sslmode=require", "a unix socket has no TLS"),
            ("postgres://u@h/iot?colour=red", "not a url of a database: unknown option `colour`"),
            ("postgres://u@h/iot?sslkey=%zz&sslcert=x", "a \"%\" in the url is not followed by two hexadecimal digits"),
        ];
        for (url, message) in expected {
            assert_eq!(database(url).unwrap_err().message, message, "{url}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let database = database("postgres://u:hunter2@h:1/iot").unwrap();
        assert!(!format!("{database:?} {database}").contains("hunter2"));
        assert_eq!(database.to_string(), "\"iot\" on h:1 as \"u\"");
        for url in ["postgres://u:hun@ter2@h/iot", "postgres://h/iot?password=hun@ter2", "postgres:/u:hunter2@h/iot"] {
            let error = self::database(url).unwrap_err();
            assert!(!format!("{error:?}").contains("ter2"), "{error:?}");
        }
        let twice = Database::of_url(&"postgres://u:hunter2@h/iot".into(), Some(&"hunter2".into()), "x").unwrap_err();
        assert!(!format!("{twice:?}").contains("hunter2") && twice.key == "password");
    }
}
