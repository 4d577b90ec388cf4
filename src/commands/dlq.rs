//! `pipeline dlq`: what was refused, looked at, replayed and deleted.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use pipeline_engine::dlq::{
    FileLog, Letter, LetterFilter, LetterGroup, LetterId, LetterStore, LetterText, ReplayLog, ReplayOptions,
    ReplayReport, purge, replay,
};
use pipeline_engine::stage::StageError;
use pipeline_engine::terminal::printable;
use pipeline_engine::time::{format_us, parse_us};
use pipeline_engine::{Plan, now_us};
use serde_json::json;

use super::{Failure, confirmed, load, runtime};

/// Look at the dead letters of a pipeline: what was refused, by which stage and why.
///
/// They are found from the pipeline file: in the tables and buckets of the sinks whose inputs are
/// "rejected" ports. A letter is known by its id, a hash over its content and position, which is the same
/// wherever it is kept.
#[derive(Debug, Args)]
pub struct DlqArguments {
    #[command(subcommand)]
    command: DlqCommand,
}

#[derive(Debug, Subcommand)]
enum DlqCommand {
    /// Count dead letters by stage and reason, and list the newest.
    List(ListArguments),
    /// Show dead letters whole, the newest first. Control characters are written out.
    Show(ShowArguments),
    Replay(ReplayArguments),
    Purge(PurgeArguments),
}

/// Send dead letters back to where they came from, so that they run through the mended pipeline.
///
/// What a source refused is published to its topic as it was received, with QoS 1; a row that a later
/// stage refused is made a message again. The pipeline must run, or its session must be kept by the
/// broker: a letter for which nobody is subscribed is not sent (MQTT 5; a broker of 3.1.1 does not
/// say). What was sent is noted, and left out by the next replay. Should the replay be killed midway, up
/// to 256 letters may be sent twice; the sinks' keys make them one row each. A letter that is refused
/// again is a new letter.
#[derive(Debug, Args)]
struct ReplayArguments {
    #[command(flatten)]
    letters: Letters,
    /// Also what was replayed before.
    #[arg(long)]
    again: bool,
    /// Publish letters that do not know their topic to this one.
    #[arg(long, value_name = "TOPIC")]
    to: Option<String>,
    /// Replay no more than this many, the oldest first.
    #[arg(long)]
    limit: Option<u64>,
    /// Send nothing: only say what would be sent and what could not.
    #[arg(long)]
    dry_run: bool,
}

/// Delete dead letters from their table.
///
/// Objects in a bucket or folder are never deleted: let them expire.
#[derive(Debug, Args)]
struct PurgeArguments {
    #[command(flatten)]
    letters: Letters,
    /// Only what was replayed.
    #[arg(long)]
    replayed: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
struct ListArguments {
    #[command(flatten)]
    letters: Letters,
    /// List no more than this many letters; all are counted.
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ShowArguments {
    #[command(flatten)]
    letters: Letters,
    /// Show no more than this many.
    #[arg(long, default_value_t = 10)]
    limit: usize,
    /// Print JSON, one letter a line: a payload that is no text is `payload_base64`.
    #[arg(long)]
    json: bool,
}

/// Which letters are meant. Each condition narrows them down.
#[derive(Debug, Args)]
struct Letters {
    /// The pipeline file.
    file: PathBuf,
    /// Letters by id; its first digits are enough.
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// The sink that keeps them, if several do. Default: a table before a bucket.
    #[arg(long, value_name = "SINK")]
    from: Option<String>,
    /// Refused by this stage; may be given several times.
    #[arg(long)]
    stage: Vec<String>,
    /// Refused for this reason; may be given several times.
    #[arg(long)]
    reason: Vec<String>,
    /// Received then or later: 2026-01-31, 2026-01-31T12:00:00Z, or how long ago, such as 90m.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Received before then.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Came by this topic, or by one that matches, with MQTT's wildcards + and #.
    #[arg(long)]
    topic: Option<String>,
}

/// The letters of a pipeline where they lie.
struct Place {
    plan: Plan,
    sink: String,
    store: Box<dyn LetterStore>,
    log: Box<dyn ReplayLog>,
    /// Other sinks that keep letters.
    others: Vec<String>,
    filter: LetterFilter,
}

pub fn run(arguments: DlqArguments) -> Result<(), Failure> {
    let runtime = runtime()?;
    match arguments.command {
        DlqCommand::List(arguments) => runtime.block_on(list(arguments)),
        DlqCommand::Show(arguments) => runtime.block_on(show(arguments)),
        DlqCommand::Replay(arguments) => runtime.block_on(replay_letters(arguments)),
        DlqCommand::Purge(arguments) => runtime.block_on(purge_letters(arguments)),
    }
}

fn failed(error: StageError) -> Failure {
    Failure::failed(error.chain())
}

impl Letters {
    fn open(self) -> Result<Place, Failure> {
        let now_us = now_us();
        let time = |text: &Option<String>| {
            let time = text.as_deref().map(|text| parse_us(text, now_us)).transpose();
            time.map_err(|text| Failure::Wrong(format!("error: {text}")))
        };
        if let Some(odd) = self.ids.iter().find(|id| !id.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            return Err(Failure::Wrong(format!("error: \"{}\" is no id of a letter", printable(odd))));
        }
        let filter = LetterFilter {
            since_us: time(&self.since)?,
            until_us: time(&self.until)?,
            stages: self.stage,
            reasons: self.reason,
            topic: self.topic,
            ids: self.ids,
        };
        let plan = load(&self.file)?;
        let mut stores = plan.letter_stores();
        let names: Vec<String> = stores.iter().map(|(name, ..)| format!("\"{name}\"")).collect();
        if stores.is_empty() {
            return Err(Failure::Wrong(format!(
                "error: no sink of {} keeps dead letters that can be read back\n  = hint: Give the \"rejected\" ports \
                 of its stages to a sink of type \"timescaledb\" or \"parquet\".",
                self.file.display()
            )));
        }
        let log = stores.iter().find_map(|(.., store)| store.replay_log());
        let log = log.unwrap_or_else(|| Box::new(FileLog::in_data_dir(plan.data_dir())));
        let chosen = match &self.from {
            Some(from) => stores.iter().position(|(name, ..)| name == from).ok_or_else(|| {
                let known = names.join(", ");
                Failure::Wrong(format!("error: \"{from}\" keeps no dead letters\n  = hint: These sinks do: {known}."))
            })?,
            // A place that has its own log can be searched and changed as well.
            None => stores.iter().position(|(.., store)| store.replay_log().is_some()).unwrap_or(0),
        };
        let (sink, _, store) = stores.swap_remove(chosen);
        let sink = sink.to_owned();
        let others = stores.iter().map(|(name, ..)| (*name).to_owned()).collect();
        drop(stores);
        Ok(Place { plan, sink, store, log, others, filter })
    }
}

impl Place {
    fn name(&self) -> String {
        format!("sink \"{}\", {}", self.sink, self.store.place())
    }

    async fn newest(&mut self, limit: usize) -> Result<Vec<(Letter, Option<i64>)>, Failure> {
        let letters = self.store.newest(&self.filter, limit).await.map_err(failed)?;
        let ids: Vec<LetterId> = letters.iter().map(|letter| letter.id).collect();
        let replayed: BTreeMap<_, _> =
            if ids.is_empty() { BTreeMap::new() } else { self.log.replayed(&ids).await.map_err(failed)? };
        Ok(letters
            .into_iter()
            .map(|letter| {
                let replayed_at_us = replayed.get(&letter.id).copied();
                (letter, replayed_at_us)
            })
            .collect())
    }

    /// What is received from now on is not meant: it was not there to be counted.
    fn until_now(&mut self) {
        self.filter.until_us = Some(self.filter.until_us.unwrap_or(i64::MAX).min(now_us()));
    }
}

async fn list(arguments: ListArguments) -> Result<(), Failure> {
    let mut place = arguments.letters.open()?;
    let groups = place.store.groups(&place.filter).await.map_err(failed)?;
    let newest = if groups.is_empty() { Vec::new() } else { place.newest(arguments.limit).await? };
    let total: u64 = groups.iter().map(|group| group.letters).sum();
    if arguments.json {
        let groups: Vec<_> = groups.iter().map(group_json).collect();
        let letters: Vec<serde_json::Value> = newest
            .iter()
            .filter_map(|(letter, replayed_at_us)| {
                serde_json::from_str(&LetterText { letter, replayed_at_us: *replayed_at_us }.json()).ok()
            })
            .collect();
        let all = json!({ "sink": place.sink, "place": place.store.place(), "total": total, "groups": groups, "letters": letters });
        println!("{}", pipeline_engine::terminal::printable_json(all.to_string()));
        return Ok(());
    }
    println!("{total} dead letters in {}", place.name());
    if !groups.is_empty() {
        print!("\n{}", table(&groups));
        println!("\nthe newest {}:", newest.len());
        for (letter, replayed_at_us) in &newest {
            println!("{}", LetterText { letter, replayed_at_us: *replayed_at_us }.line());
        }
    }
    for other in &place.others {
        println!("\nsink \"{other}\" keeps dead letters too: --from {other}");
    }
    Ok(())
}

fn group_json(group: &LetterGroup) -> serde_json::Value {
    let (first, last) = (format_us(group.first_us), format_us(group.last_us));
    json!({ "stage": group.stage, "reason": group.reason, "letters": group.letters, "first": first, "last": last })
}

fn table(groups: &[LetterGroup]) -> String {
    let cells = |group: &LetterGroup| {
        let text = |text: &str| printable(text).into_owned();
        let times = [group.first_us, group.last_us].map(format_us);
        [group.letters.to_string(), text(&group.stage), text(&group.reason), times[0].clone(), times[1].clone()]
    };
    let header = ["letters", "stage", "reason", "first", "last"].map(str::to_owned);
    let rows: Vec<[String; 5]> = std::iter::once(header).chain(groups.iter().map(cells)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 5] = std::array::from_fn(width);
    let mut text = String::new();
    for [letters, stage, reason, first, last] in &rows {
        let [a, b, c, d, _] = widths;
        text += &format!("{letters:>a$}  {stage:<b$}  {reason:<c$}  {first:<d$}  {last}\n");
    }
    text
}

async fn show(arguments: ShowArguments) -> Result<(), Failure> {
    let mut place = arguments.letters.open()?;
    let letters = place.newest(arguments.limit).await?;
    if letters.is_empty() {
        return Err(Failure::failed(format!("no such letter is in {}", place.name())));
    }
    for (number, (letter, replayed_at_us)) in letters.iter().enumerate() {
        let text = LetterText { letter, replayed_at_us: *replayed_at_us };
        if arguments.json {
            println!("{}", text.json());
        } else {
            print!("{}{text}", if number == 0 { "" } else { "\n" });
        }
    }
    Ok(())
}

async fn replay_letters(arguments: ReplayArguments) -> Result<(), Failure> {
    let mut place = arguments.letters.open()?;
    place.until_now();
    let ReplayArguments { again, to: topic, limit, dry_run, .. } = arguments;
    let options = ReplayOptions { again, topic, limit, dry_run };
    let mut report = ReplayReport::default();
    let (store, log) = (place.store.as_mut(), place.log.as_mut());
    let outcome = replay(&place.plan, store, log, &place.filter, &options, &mut report).await;
    let sent = if dry_run { "letters would be sent again" } else { "letters were sent again" };
    println!("{} {sent}", report.sent);
    if report.replayed_before > 0 {
        println!("{} were left out, since they were replayed before; --again sends them too", report.replayed_before);
    }
    for (reason, unsent) in &report.unsent {
        println!("{} not: a letter like {} {}", unsent.letters, unsent.example, printable(reason));
    }
    outcome.map_err(failed)?;
    match report.letters_unsent() {
        0 => Ok(()),
        letters => Err(Failure::failed(format!("{letters} letters can't be replayed"))),
    }
}

async fn purge_letters(arguments: PurgeArguments) -> Result<(), Failure> {
    let mut place = arguments.letters.open()?;
    place.until_now();
    place.store.deletes().map_err(failed)?;
    let found: u64 = place.store.groups(&place.filter).await.map_err(failed)?.iter().map(|group| group.letters).sum();
    if found == 0 {
        println!("no such letter is in {}", place.name());
        return Ok(());
    }
    let what = if arguments.replayed { "those that were replayed, of " } else { "" };
    if !arguments.yes && !confirmed(&format!("Delete {what}{found} dead letters from {}?", place.name()))? {
        println!("nothing was deleted");
        return Ok(());
    }
    let log: Option<&mut dyn ReplayLog> = if arguments.replayed { Some(place.log.as_mut()) } else { None };
    let deleted = purge(place.store.as_mut(), &place.filter, log).await.map_err(failed)?;
    println!("{deleted} dead letters were deleted from {}", place.name());
    for other in &place.others {
        println!("sink \"{other}\" still has what it kept");
    }
    Ok(())
}
