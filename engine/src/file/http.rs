//! `[http]`: where a running pipeline can be looked at.

use std::net::{Ipv4Addr, SocketAddr};

use schemars::JsonSchema;
use secrecy::SecretString;
use serde::Deserialize;

/// As it stands in the file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HttpText {
    /// Address and port to answer at, or `"off"`. Default: `127.0.0.1:9600`, or nowhere if another
    /// program has that port.
    listen: Option<String>,
    /// What a request must bring along as `Authorization: Bearer TOKEN`. Needed where others than this
    /// machine can ask, unless `insecure` is set.
    #[schemars(with = "Option<String>")]
    token: Option<SecretString>,
    /// Let everybody ask who can reach the address.
    #[serde(default)]
    insecure: bool,
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
}

impl Default for HttpSettings {
    fn default() -> Self {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 9600));
        Self { listen: Some(listen), is_chosen: false, token: None }
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
        Ok(HttpSettings { listen, is_chosen: self.listen.is_some(), token: self.token })
    }
}
