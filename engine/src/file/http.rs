//! `[http]`: where a running pipeline can be looked at.

use std::net::{Ipv4Addr, SocketAddr};

use schemars::JsonSchema;
use secrecy::SecretString;
use serde::Deserialize;

use crate::secret::SecretText;

/// As it stands in the file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HttpText {
    /// Address and port to answer at, or `"off"`. Default: `127.0.0.1:9600`, or nowhere if another
    /// program has that port.
    listen: Option<String>,
    /// What a request must bring along as `Authorization: Bearer TOKEN`. Needed where others than this
    /// machine can ask, unless `insecure` is set.
    #[schemars(with = "Option<SecretText>")]
    token: Option<SecretString>,
    /// Let everybody ask who can reach the address.
    #[serde(default)]
    insecure: bool,
    /// Names by which browsers may ask, besides addresses and `localhost`. Needed without a token only.
    #[serde(default)]
    hosts: Vec<String>,
}

/// Where a running pipeline answers, and whom.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// The file names the address: then it must be free.
    pub is_chosen: bool,
    /// What a request must bring along.
    pub token: Option<SecretString>,
    /// Names by which browsers may ask without a token, besides addresses and `localhost`.
    pub hosts: Vec<String>,
}

impl Default for HttpSettings {
    fn default() -> Self {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 9600));
        Self { listen: Some(listen), is_chosen: false, token: None, hosts: Vec::new() }
    }
}

impl HttpText {
    /// What it means, or the key that is wrong, what is wrong with it and a way out.
    pub(super) fn settings(self) -> Result<HttpSettings, (&'static str, String, &'static str)> {
        let defaults = HttpSettings::default();
        let listen = match self.listen.as_deref() {
            None => defaults.listen,
            Some("off") => None,
            Some(text) => Some(text.parse().map_err(|_| {
                let mistake = format!("\"{text}\" is no address with a port");
                ("listen", mistake, "Such as \"127.0.0.1:9600\" or \"[::1]:9600\"; \"off\" for none.")
            })?),
        };
        let is_open = listen.is_some_and(|listen| !listen.ip().is_loopback());
        if is_open && self.token.is_none() && !self.insecure {
            return Err((
                "listen",
                "others than this machine could look in without a token".to_owned(),
                "Set \"token\", or \"insecure = true\" if the network keeps them out.",
            ));
        }
        if let Some(host) = self.hosts.iter().find(|host| !is_host_name(host)) {
            let mistake = format!("\"{host}\" is no name of a host");
            return Err(("hosts", mistake, "A name without scheme and port, such as \"pipeline.example\"."));
        }
        Ok(HttpSettings { listen, is_chosen: self.listen.is_some(), token: self.token, hosts: self.hosts })
    }
}

fn is_host_name(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}
