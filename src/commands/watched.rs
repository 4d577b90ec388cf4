//! A pipeline that runs somewhere, asked over HTTP: what `status` and `top` have in common.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use pipeline_engine::Plan;
use pipeline_engine::terminal::printable;
use reqwest::{RequestBuilder, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};

use super::{Failure, load};
use crate::http::{ORDER_HEADER, PIPELINE_HEADER};

/// Longer than any answer takes, shorter than a person waits.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than a pipeline takes to store what is on its way.
const ORDER_TIMEOUT: Duration = Duration::from_secs(600);
/// Nobody looks on for longer.
const FOLLOWED_MAX: Duration = Duration::from_secs(7 * 86_400);

const NOBODY_HINT: &str = ". Does the pipeline run, and does it answer there ([http] in its file)?";

/// Which pipeline.
#[derive(Debug, Args)]
pub struct WatchedArguments {
    /// The pipeline file, whose `[http]` says where it answers and by which token.
    #[arg(conflicts_with = "url")]
    file: Option<PathBuf>,
    /// Where it answers.
    #[arg(long, default_value = "http://127.0.0.1:9600")]
    url: String,
    /// The token that it wants; better in the environment, where no list of processes shows it.
    #[arg(long, env = "PIPELINE_TOKEN", hide_env_values = true, conflicts_with = "file")]
    token: Option<SecretString>,
}

/// Asks one pipeline.
pub struct Watched {
    pub url: String,
    /// Whom the file is about: another one does not answer in its place.
    pipeline: Option<String>,
    token: Option<SecretString>,
    client: reqwest::Client,
}

impl Watched {
    /// # Errors
    /// The file is wrong, or says that it answers nowhere.
    pub fn find(arguments: &WatchedArguments) -> Result<Self, Failure> {
        let Some(file) = &arguments.file else {
            return Self::by_url(&arguments.url, arguments.token.clone());
        };
        Self::of(&load(file)?)
    }

    /// The one that answers at this address.
    pub fn by_url(url: &str, token: Option<SecretString>) -> Result<Self, Failure> {
        Self::new(url.trim_end_matches('/').to_owned(), token)
    }

    /// The one that runs this plan.
    ///
    /// # Errors
    /// It says that it answers nowhere.
    pub fn of(plan: &Plan) -> Result<Self, Failure> {
        let http = plan.http();
        let Some(listen) = http.listen else {
            return Err(Failure::Wrong("error: this pipeline answers nowhere: [http] has listen = \"off\"".to_owned()));
        };
        let watched = Self::at(listen, http.token.clone())?;
        Ok(Self { pipeline: Some(plan.name().to_owned()), ..watched })
    }

    /// The one that answers at this address of this machine.
    pub fn at(listen: SocketAddr, token: Option<SecretString>) -> Result<Self, Failure> {
        Self::new(format!("http://{}", reachable(listen)), token)
    }

    fn new(url: String, token: Option<SecretString>) -> Result<Self, Failure> {
        // A pipeline is asked directly, whatever proxy leads to the rest of the world.
        let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build().map_err(Failure::failed)?;
        Ok(Self { url, pipeline: None, token, client })
    }

    /// What it answers at a path; an error in words otherwise.
    pub async fn ask(&self, path: &str) -> Result<String, String> {
        self.answer_to(self.client.get(format!("{}{path}", self.url)), &[]).await
    }

    /// What it answers to an order, also where it refuses; an error in words otherwise.
    pub async fn order(&self, path: &str) -> Result<String, String> {
        let request = self.order_to(path, ORDER_TIMEOUT);
        self.answer_to(request, &[StatusCode::CONFLICT]).await
    }

    /// An answer that goes on for as long as somebody reads it.
    pub async fn follow(&self, path: &str, body: String) -> Result<Response, String> {
        let answer = self.send(self.order_to(path, FOLLOWED_MAX).body(body)).await?;
        if answer.status().is_success() { Ok(answer) } else { Err(self.refusal(answer).await) }
    }

    fn order_to(&self, path: &str, timeout: Duration) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.url)).timeout(timeout).header(ORDER_HEADER, "command line")
    }

    async fn answer_to(&self, request: RequestBuilder, refusals: &[StatusCode]) -> Result<String, String> {
        let answer = self.send(request).await?;
        if answer.status().is_success() || refusals.contains(&answer.status()) {
            return answer.text().await.map_err(|error| format!("no whole answer from {}: {error}", self.url));
        }
        Err(self.refusal(answer).await)
    }

    async fn send(&self, mut request: RequestBuilder) -> Result<Response, String> {
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {}", token.expose_secret()));
        }
        if let Some(pipeline) = &self.pipeline {
            request = request.header(PIPELINE_HEADER, pipeline);
        }
        request.send().await.map_err(|error| {
            let hint = if error.is_connect() { NOBODY_HINT } else { "" };
            format!("no answer from {}: {}{hint}", self.url, cause(&error))
        })
    }

    async fn refusal(&self, answer: Response) -> String {
        let status = answer.status();
        let text = answer.text().await.unwrap_or_default();
        let hint = match status.as_u16() {
            401 => ": set PIPELINE_TOKEN, or name the pipeline file".to_owned(),
            404 if text.is_empty() => ": is it a pipeline of this version?".to_owned(),
            _ => format!(": {}", printable(text.trim())),
        };
        format!("{} answered {status}{hint}", self.url)
    }
}

/// An address that stands for all of a machine is reached by its loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// The innermost cause, which says most.
fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Columns of text side by side, as wide as their widest cell; those after the first few are numbers and stand to the
/// right.
pub fn aligned(rows: &[Vec<String>], texts: usize) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column < texts { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// `950`, `12.3k`, `4.56M`.
pub fn compact(number: f64) -> String {
    match number {
        number if number < 9.95 && number.fract() > 0.0 => format!("{number:.1}"),
        number if number < 999.5 => format!("{number:.0}"),
        number if number < 999_500.0 => significant(number / 1e3, "k"),
        number if number < 999_500_000.0 => significant(number / 1e6, "M"),
        number => significant(number / 1e9, "G"),
    }
}

fn significant(number: f64, unit: &str) -> String {
    let digits = if number < 9.995 {
        2
    } else if number < 99.95 {
        1
    } else {
        0
    };
    format!("{number:.digits$}{unit}")
}

/// `4ms`, `1.2s`, `3m 20s`.
pub fn seconds(value: f64) -> String {
    match value {
        value if value < 0.0005 => "0".to_owned(),
        value if value < 0.9995 => format!("{:.0}ms", value * 1e3),
        value if value < 59.95 => format!("{value:.1}s"),
        value => pipeline_engine::time::format_age(Duration::from_secs_f64(value.min(1e10))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        let shown = [0.0, 0.4, 7.0, 998.4, 999.6, 12_345.0, 999_999.0, 4_560_000.0, 7.2e10].map(compact);
        assert_eq!(shown, ["0", "0.4", "7", "998", "1.00k", "12.3k", "1.00M", "4.56M", "72.0G"]);
        assert_eq!([0.0, 0.004, 1.24, 200.0].map(seconds), ["0", "4ms", "1.2s", "3m 20s"]);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["stage", "rows"], ["a", "12345"], ["much longer", "7"]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(aligned(&rows, 1), ["stage         rows", "a            12345", "much longer      7"]);
    }

    #[test]
    fn an_address_for_all_is_reached_by_loopback() {
        for (listen, reached) in [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.0.0.1:2", "10.0.0.1:2")] {
            assert_eq!(reachable(listen.parse().unwrap()), reached.parse().unwrap());
        }
    }
}
