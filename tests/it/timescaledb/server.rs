//! A TimescaleDB of these tests' own, beside the shared one: with TLS and passwords, and to be killed.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::OnceLock;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::services::OwnSet;

/// A server with its own state and port.
pub struct OwnServer(OwnSet);

/// The password of the role `keeper`, the only one of [`secured`] that needs one.
pub const KEEPER_PASSWORD: &str = "correct horse";

impl OwnServer {
    /// Service ports start at `first_port`. Locked.
    fn named(name: &str, first_port: u16) -> Self {
        Self(OwnSet::named(name, first_port, &[]))
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.0.run(arguments)
    }

    /// `host:port` and database, to put a user in front and parameters behind.
    pub fn place(&self) -> String {
        format!("127.0.0.1:{}/iot", self.0.first_port + 32)
    }

    pub fn superuser_url(&self) -> String {
        format!("postgres://postgres@{}", self.place())
    }

    fn data(&self) -> PathBuf {
        self.0.state.join("timescaledb/data/pg")
    }

    /// A file of the test's own, such as the authority's certificate.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.state.join(name)
    }
}

/// A server to kill. For one test at a time: the next one waits until this one is dropped.
pub fn to_be_killed() -> OwnServer {
    let server = OwnServer::named("timescaledb-killed", 22_240);
    server.run(&["up", "timescaledb"]);
    server
}

/// A server with TLS whose certificate is for `localhost` and 127.0.0.1, signed by `ca.pem`. The
/// role `keeper` logs in with a password, the role `holder` with a client certificate
/// (`holder.pem`, `holder.key`), `postgres` with neither.
pub fn secured() -> &'static OwnServer {
    static SERVER: OnceLock<OwnServer> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = OwnServer::named("timescaledb-secured", 22_200);
        if !server.file("ready").exists() {
            // What an interrupted run has left half done.
            server.run(&["wipe", "timescaledb"]);
            server.run(&["up", "timescaledb"]);
            secure(&server);
            server.run(&["down", "timescaledb"]);
        }
        server.run(&["up", "timescaledb"]);
        std::fs::write(server.file("ready"), "").unwrap();
        server.0.lock.unlock().unwrap();
        server
    })
}

fn secure(server: &OwnServer) {
    server.run(&["psql", "-qc", &format!("CREATE ROLE keeper LOGIN PASSWORD '{KEEPER_PASSWORD}'")]);
    server.run(&["psql", "-qc", "CREATE ROLE holder LOGIN; GRANT CREATE ON SCHEMA public TO keeper, holder"]);
    write_certificates(server);
    let settings = server.data().join("postgresql.conf");
    let tls = "\nssl = on\nssl_cert_file = 'server.pem'\nssl_key_file = 'server.key'\nssl_ca_file = 'ca.pem'\n";
    append(&settings, tls);
    let rules = server.data().join("pg_hba.conf");
    let others = std::fs::read_to_string(&rules).unwrap();
    let ours = "host all keeper 127.0.0.1/32 scram-sha-256\nhostssl all holder 127.0.0.1/32 cert\n";
    std::fs::write(&rules, format!("{ours}{others}")).unwrap();
}

fn append(path: &Path, text: &str) {
    let before = std::fs::read_to_string(path).unwrap();
    std::fs::write(path, before + text).unwrap();
}

fn write_certificates(server: &OwnServer) {
    let authority = authority("the tests' own authority");
    let other = self::authority("an authority that nobody trusts");
    std::fs::write(server.file("ca.pem"), authority.pem()).unwrap();
    std::fs::write(server.file("other-ca.pem"), other.pem()).unwrap();
    let (pem, key) = leaf(&authority, "server", vec!["localhost".to_owned(), "127.0.0.1".to_owned()]);
    let data = server.data();
    for (name, text) in [("server.pem", &pem), ("server.key", &key), ("ca.pem", &authority.pem())] {
        let path = data.join(name);
        std::fs::write(&path, text).unwrap();
        // As the server's own files: it refuses a key that others can read.
        let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&data).unwrap());
        std::os::unix::fs::chown(&path, Some(owner), Some(owner)).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }
    let (pem, key) = leaf(&authority, "holder", Vec::new());
    std::fs::write(server.file("holder.pem"), pem).unwrap();
    std::fs::write(server.file("holder.key"), key).unwrap();
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn leaf(authority: &CertifiedIssuer<'static, KeyPair>, name: &str, hosts: Vec<String>) -> (String, String) {
    let mut params = CertificateParams::new(hosts).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    (certificate.pem(), key.serialize_pem())
}
