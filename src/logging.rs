//! Logs on stderr: text for people or JSON for machines. Results go to stdout, logs never do.

use std::io::{self, IsTerminal, Write};

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::status;

#[derive(Debug, Args)]
pub struct LogArguments {
    /// How logs are written.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, env = "PIPELINE_LOG_FORMAT")]
    log_format: LogFormat,
    /// Which logs: error, warn, info, debug, trace, or a filter such as "info,rumqttc=debug".
    #[arg(long, global = true, default_value = "info,mqtt5=warn,aws_config=error", env = "PIPELINE_LOG")]
    log: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Installs the one subscriber.
pub fn start(arguments: &LogArguments) {
    let filter = EnvFilter::try_new(&arguments.log).unwrap_or_else(|error| {
        eprintln!("error: --log: {error}; using \"info\"");
        EnvFilter::new("info")
    });
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(AboveStatus).with_target(false);
    match arguments.log_format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

/// Writes log lines above the status line, if there is one.
struct AboveStatus;

impl Write for AboveStatus {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        status::above(|| io::stderr().write_all(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl MakeWriter<'_> for AboveStatus {
    type Writer = AboveStatus;

    fn make_writer(&self) -> AboveStatus {
        AboveStatus
    }
}
