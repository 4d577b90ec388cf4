//! `pipeline completions SHELL` and `pipeline man FOLDER`: the command line as it is defined, for shells and for `man`.

use std::io;
use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;

use super::Failure;

/// Print what a shell needs to complete this command line, for its folder of completions.
#[derive(Debug, Args)]
pub struct CompletionsArguments {
    /// Which shell.
    shell: Shell,
}

/// Write the manual as files for `man`, one a subcommand: pipeline.1, pipeline-run.1 and so on.
#[derive(Debug, Args)]
pub struct ManArguments {
    /// Where to; made if it is not there.
    folder: PathBuf,
}

pub fn completions(arguments: &CompletionsArguments, mut command: Command) -> Result<(), Failure> {
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, name, &mut text);
    match io::Write::write_all(&mut io::stdout(), &text) {
        // Whoever read it, such as `head`, has had enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(Failure::failed),
    }
}

pub fn man(arguments: &ManArguments, command: Command) -> Result<(), Failure> {
    let folder = &arguments.folder;
    let failed = |error: io::Error| Failure::failed(format!("can't write to {}: {error}", folder.display()));
    std::fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(command, folder).map_err(failed)
}
