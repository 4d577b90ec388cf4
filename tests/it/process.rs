//! The real binary as a child process.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The project's root: relative paths in the shipped pipelines start here.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A running `pipeline`. Killed when dropped, so that a failed test leaves nothing behind.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `pipeline ARGUMENTS` with these variables; stderr and stdout go to a file in `folder`.
    pub fn start<A: AsRef<OsStr>>(arguments: &[A], variables: &[(&str, &str)], folder: &Path, name: &str) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).expect("the folder is the test's own");
        let child = Command::new(env!("CARGO_BIN_EXE_pipeline"))
            .args(arguments)
            .envs(variables.iter().copied())
            .current_dir(root())
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("an open file"))
            .stderr(file)
            .spawn()
            .expect("the binary runs");
        Self { child, log }
    }

    /// All that it has written so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the log holds a text.
    pub fn wait_for_log(&mut self, text: &str) {
        wait_until(&format!("the log to say \"{text}\""), || {
            if let Some(status) = self.status() {
                panic!("it ended with {status} before it said \"{text}\":\n{}", self.log());
            }
            self.log().contains(text).then_some(())
        });
    }

    /// The process's id, for what a test wants to know or do from outside.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`. It has ended on return.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child of ours");
        self.child.wait().expect("a child of ours");
    }

    /// Sends the first signal, as an operator or systemd does, and waits for the end.
    pub fn stop(mut self) -> (ExitStatus, String) {
        self.signal("TERM");
        let status = self.wait();
        (status, self.log())
    }

    /// Sends a signal by its name.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args(["-s", signal, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill is there").success());
    }

    /// How it has ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of ours")
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> ExitStatus {
        wait_until("the process to end", || self.status())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has usually ended already: then there is nothing to kill.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Waits for a condition, far longer than it should ever take.
pub fn wait_until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(started.elapsed() < Duration::from_secs(240), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
