//! The address of the live page: free, or answered by this very pipeline.

use std::io::ErrorKind;
use std::net::SocketAddr;

use pipeline_engine::{Finding, HttpSettings, Verdict};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::commands::watched::Watched;

const ELSEWHERE: &str = "Name another address by \"listen\" in [http], or \"off\".";

/// What is found at the address, and whether this very pipeline answers there.
pub async fn examine(settings: HttpSettings, pipeline: String) -> (Vec<Finding>, bool) {
    let finding = |verdict, found: String, fix: Option<&str>| Finding {
        check: "address",
        verdict,
        found,
        fix: fix.map(str::to_owned),
    };
    let Some(listen) = settings.listen else {
        return (vec![finding(Verdict::Pass, "[http] has listen = \"off\"".to_owned(), None)], false);
    };
    let error = match TcpListener::bind(listen).await {
        Ok(_) => return (vec![finding(Verdict::Pass, format!("{listen} is free"), None)], false),
        Err(error) => error,
    };
    if error.kind() != ErrorKind::AddrInUse {
        let fix = "Use an address that this machine has, and a port that the pipeline's user may listen at.";
        return (vec![finding(Verdict::Fail, format!("can't listen at {listen}: {error}"), Some(fix))], false);
    }
    let (found, runs) = match who_answers(&settings, listen).await {
        Ok((name, status)) if name == pipeline => {
            let found = format!("{listen} is answered by this very pipeline, which is {status}");
            return (vec![finding(Verdict::Pass, found, None)], true);
        }
        Ok((name, _)) => (format!("{listen} is taken by another pipeline, \"{name}\""), false),
        Err(why) => (format!("{listen} is taken by another program ({why})"), false),
    };
    // A pipeline whose file names no address runs without a page.
    let (verdict, consequence) = if settings.is_chosen {
        (Verdict::Fail, "the pipeline would not start")
    } else {
        (Verdict::Warn, "there would be no live page and no metrics")
    };
    (vec![finding(verdict, format!("{found}: {consequence}"), Some(ELSEWHERE))], runs)
}

/// The name and the status of the pipeline that answers, or what else does.
async fn who_answers(settings: &HttpSettings, listen: SocketAddr) -> Result<(String, String), String> {
    let watched = Watched::at(listen, settings.token.clone()).map_err(|_| "no HTTP client".to_owned())?;
    let text = watched.ask("/healthz").await?;
    let health: Value = serde_json::from_str(&text).map_err(|_| "it answers otherwise than a pipeline".to_owned())?;
    let word = |key: &str| health.get(key).and_then(Value::as_str).map(str::to_owned);
    word("pipeline").zip(word("status")).ok_or_else(|| "it answers otherwise than a pipeline".to_owned())
}
