//! The program: its start, a batch in and one out, its end.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use pipeline_engine::stage::StageError;
use pipeline_engine::terminal::printable;

/// So many of the last lines that the program wrote to standard error are told with a failure.
const LINES_TOLD: usize = 5;
/// A longer line is cut.
const LINE_BYTES_MAX: u64 = 4096;
/// How often a program that should end is looked at, and how long words are waited for that should be there.
const LOOK: Duration = Duration::from_millis(5);

/// What is started, and what it reads and answers.
pub(super) struct Program {
    pub(super) command: Vec<String>,
    pub(super) variables: BTreeMap<String, String>,
    pub(super) stage: String,
    pub(super) input: SchemaRef,
    pub(super) output: SchemaRef,
}

/// A program that runs. Dropped, it is killed.
pub(super) struct Running {
    child: Child,
    /// Taken when there is no more to come.
    to: Option<SyncSender<RecordBatch>>,
    from: Receiver<Result<RecordBatch, String>>,
    said: Arc<Mutex<VecDeque<String>>>,
}

impl Program {
    /// As a person would write it.
    pub(super) fn shown(&self) -> String {
        printable(&self.command.join(" ")).into_owned()
    }

    /// # Errors
    /// There is no such program, or it may not be run.
    pub(super) fn start(&self) -> Result<Running, StageError> {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).envs(&self.variables);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C at a terminal is for the pipeline, which drains; the program ends with its input.
        command.process_group(0);
        let mut child = command.spawn().map_err(|error| {
            StageError::permanent(format!("can't start `{}`", self.shown()))
                .because(error)
                .hint("Is it installed, in PATH, and may this user run it?")
        })?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(StageError::bug("a program was started without pipes"));
        };
        let (to, batches) = sync_channel(0);
        let (answers, from) = sync_channel(1);
        let said = Arc::new(Mutex::new(VecDeque::new()));
        let (input, output) = (self.input.clone(), self.output.clone());
        // Threads, since both pipes block: one that fills up must not keep the other from being emptied.
        thread::spawn(move || {
            // The other end says what has happened: the program has ended, or is told to.
            write_all(stdin, &input, &batches).ok();
        });
        thread::spawn(move || read_all(stdout, &output, &answers));
        let (stage, lines) = (self.stage.clone(), said.clone());
        thread::spawn(move || listen(stderr, &stage, &lines));
        Ok(Running { child, to: Some(to), from, said })
    }
}

impl Running {
    /// Gives a batch and waits for the answer.
    ///
    /// # Errors
    /// What has happened instead, in words. The program is of no use any more.
    pub(super) fn exchange(&mut self, rows: RecordBatch, timeout: Duration) -> Result<RecordBatch, String> {
        let deadline = Instant::now() + timeout;
        if let Ok(answer) = self.from.try_recv() {
            return Err(answer.err().unwrap_or_else(|| "it answered more batches than it was given".to_owned()));
        }
        let sent = self.to.as_ref().is_some_and(|to| send_by(to, rows, deadline));
        let answer = match sent {
            true => self.from.recv_timeout(deadline.saturating_duration_since(Instant::now())),
            // It reads no more. If it has said why, that is in the channel.
            false => self.from.recv_timeout(LOOK),
        };
        match answer {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                Err(format!("it gave no answer within {} s", timeout.as_secs_f64()))
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(self.how_it_ended()),
        }
    }

    fn how_it_ended(&mut self) -> String {
        match self.ended_within(Duration::from_millis(500)) {
            Some(status) => format!("it ended ({status})"),
            None => "it closed its standard input or output".to_owned(),
        }
    }

    fn ended_within(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => thread::sleep(LOOK),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// What it has written to standard error last.
    pub(super) fn last_words(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.iter().map(String::as_str).collect::<Vec<_>>().join("; ")
    }

    /// Ends its input and waits for its end. Gives what was not right about that.
    pub(super) fn finish(mut self, timeout: Duration) -> Option<String> {
        self.to = None;
        let ended = self.ended_within(timeout);
        // Nobody has asked for it, and no batch is left that it could leave with.
        if let Ok(Ok(rows)) = self.from.recv_timeout(LOOK) {
            return Some(format!("it answered {} rows more after its last batch, which are left out", rows.num_rows()));
        }
        match ended {
            Some(status) if status.success() => None,
            Some(status) => Some(format!("it ended ({status})")),
            None => Some(format!("it did not end within {} s after its input, and was killed", timeout.as_secs_f64())),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Hands a batch to the thread that writes; false if that is gone, or still busy at the deadline.
fn send_by(to: &SyncSender<RecordBatch>, rows: RecordBatch, deadline: Instant) -> bool {
    use std::sync::mpsc::TrySendError;

    let mut rows = rows;
    loop {
        match to.try_send(rows) {
            Ok(()) => return true,
            Err(TrySendError::Disconnected(_)) => return false,
            // Just started, it waits for nothing yet.
            Err(TrySendError::Full(back)) if Instant::now() < deadline => {
                rows = back;
                thread::sleep(Duration::from_micros(200));
            }
            Err(TrySendError::Full(_)) => return false,
        }
    }
}

fn write_all(stdin: ChildStdin, schema: &Schema, batches: &Receiver<RecordBatch>) -> Result<(), ArrowError> {
    let mut writer = StreamWriter::try_new(stdin, schema)?;
    while let Ok(batch) = batches.recv() {
        writer.write(&batch)?;
        writer.flush()?;
    }
    writer.finish()
}

fn read_all(stdout: ChildStdout, schema: &SchemaRef, answers: &SyncSender<Result<RecordBatch, String>>) {
    let outcome = (|| -> Result<(), String> {
        let wrong = |error: ArrowError| format!("its answer is no Arrow IPC stream: {error}");
        let mut stdout = BufReader::new(stdout);
        // A program that ends without a word: how it ended says more.
        if stdout.fill_buf().is_ok_and(<[u8]>::is_empty) {
            return Ok(());
        }
        let reader = StreamReader::try_new(stdout, None).map_err(wrong)?;
        same_columns(&reader.schema(), schema)?;
        for batch in reader {
            let columns = batch.map_err(wrong)?.columns().to_vec();
            let rows = RecordBatch::try_new(schema.clone(), columns)
                .map_err(|error| format!("its answer does not fit its schema: {error}"))?;
            if answers.send(Ok(rows)).is_err() {
                break;
            }
        }
        Ok(())
    })();
    if let Err(text) = outcome {
        answers.send(Err(text)).ok();
    }
}

/// Names and types; whether nulls are allowed shows in the rows.
fn same_columns(found: &Schema, wanted: &Schema) -> Result<(), String> {
    let columns = |schema: &Schema| -> Vec<String> {
        schema.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type())).collect()
    };
    let (found, wanted) = (columns(found), columns(wanted));
    if found == wanted {
        return Ok(());
    }
    let differs = wanted.iter().zip(&found).find(|(wanted, found)| wanted != found);
    Err(match differs {
        Some((wanted, found)) => format!("it answers with a column `{found}` where `{wanted}` is declared"),
        None => format!("it answers with {} columns where {} are declared", found.len(), wanted.len()),
    })
}

/// Logs what the program writes to standard error.
fn listen(stderr: impl Read, stage: &str, said: &Mutex<VecDeque<String>>) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        match stderr.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = printable(String::from_utf8_lossy(&line).trim_end()).into_owned();
        tracing::info!(stage, "the program says: {text}");
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() == LINES_TOLD {
            said.pop_front();
        }
        said.push_back(text);
    }
}
