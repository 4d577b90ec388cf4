//! `url`: where the broker is.

use pipeline_engine::stage::BuildError;

/// A broker's address, as a pipeline file names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// The connection is encrypted.
    pub(crate) tls: bool,
    /// Name or IP address; an IPv6 address without its brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    /// Reads `mqtt://`, `tcp://`, `mqtts://` or `ssl://`, host and port.
    pub(crate) fn parse(key: &str, url: &str) -> Result<Self, BuildError> {
        let invalid = |text: String| {
            BuildError::invalid(key, text)
                .hint("Write mqtt://HOST:PORT, or mqtts://HOST:PORT for an encrypted connection. The ports are 1883 and 8883 if none is given.")
        };
        if url.contains('@') {
            // The URL is printed in logs and in what is said of it; a password is not.
            return Err(BuildError::invalid(key, "a broker's URL holds no user name and no password")
                .hint("Give them as `username` and `password`."));
        }
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(invalid(format!("\"{url}\" is not the URL of a broker")));
        };
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "mqtt" | "tcp" => false,
            "mqtts" | "ssl" => true,
            _ => return Err(invalid(format!("a broker is not reached by \"{scheme}://\""))),
        };
        let place = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = split_port(place).ok_or_else(|| invalid(format!("\"{url}\" has no valid host and port")))?;
        let port = match port {
            None => {
                if tls {
                    8883
                } else {
                    1883
                }
            }
            // Not `parse` alone, which would also take a sign.
            Some(digits) => match digits.parse() {
                Ok(port) if port > 0 && !digits.starts_with('+') => port,
                _ => return Err(invalid(format!("\"{digits}\" is not a port"))),
            },
        };
        Ok(Self { tls, host: host.to_owned(), port })
    }

    /// The form that sockets take: an IPv6 address in brackets.
    pub(crate) fn socket(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// AWS IoT Core, by its endpoint.
    pub(crate) fn is_aws(&self) -> bool {
        let host = self.host.to_ascii_lowercase();
        host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn")
    }
}

/// The host and the digits behind it; `None` where there is no host, or something behind it.
fn split_port(place: &str) -> Option<(&str, Option<&str>)> {
    let (host, rest) = match place.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']')?,
        None => place.split_at(place.find(':').unwrap_or(place.len())),
    };
    let port = match rest {
        "" => None,
        _ => Some(rest.strip_prefix(':')?),
    };
    let plain = !host.is_empty() && !host.contains(['/', '?', '#', '[', ']', ' ']);
    plain.then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<(bool, String, u16), BuildError> {
        Address::parse("url", url).map(|address| (address.tls, address.host, address.port))
    }

    #[test]
    fn a_scheme_decides_about_encryption_and_the_port() {
        assert_eq!(parse("mqtt://broker").unwrap(), (false, "broker".to_owned(), 1883));
        assert_eq!(parse("tcp://broker:99/").unwrap(), (false, "broker".to_owned(), 99));
        assert_eq!(parse("mqtts://broker").unwrap(), (true, "broker".to_owned(), 8883));
        assert_eq!(parse("SSL://10.0.0.1:443").unwrap(), (true, "10.0.0.1".to_owned(), 443));
    }

    #[test]
    fn an_ipv6_address_stands_in_brackets() {
        let address = Address::parse("url", "mqtt://[::1]:1884").unwrap();
        assert_eq!((address.host.as_str(), address.port), ("::1", 1884));
        assert_eq!(address.socket(), "[::1]:1884");
    }

    #[test]
    fn what_is_no_broker_is_refused_with_an_example() {
        for url in [
            "broker",
            "http://broker",
            "mqtt://",
            "mqtt://:1883",
            "mqtt://a:b",
            "mqtt://a:70000",
            "mqtt://a/topic",
            "mqtt://a:0",
            "mqtt://a:+1",
        ] {
            let error = parse(url).expect_err(url);
            assert_eq!(error.key, "url");
            assert!(error.hint.unwrap().contains("mqtts://HOST:PORT"), "{url}");
        }
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_not_repeated() {
        let error = parse("mqtt://me:secret@broker").expect_err("a password has its own key");
        assert!(!error.message.contains("secret"));
        assert!(error.hint.unwrap().contains("password"));
    }
}
