//! What became of a backup, a restore, an archive or a drill, for people.

use pipeline_engine::time::format_us;
use pipeline_stages::db::{Archived, Archiving, CaughtUp, DrillReport, Manifest, Restored};

use super::{rows, size};

/// One line for a backup.
pub fn backup(manifest: &Manifest, place: &str) -> String {
    let all = manifest.tables.iter().map(|table| table.rows).sum();
    format!(
        "{} in {place}: {} of {} tables as of {}, {}; read back and equal",
        manifest.name,
        rows(all),
        manifest.tables.len(),
        format_us(manifest.taken_at_us),
        size(manifest.bytes)
    )
}

/// What a restore has brought back.
pub fn restored(done: &Restored, database: &str) -> String {
    let mut text = format!(
        "\"{database}\" is that of {} again: {} of the backup, counts and checksums equal; {:.1} s\n",
        format_us(done.taken_at_us),
        rows(done.rows),
        done.seconds
    );
    for table in &done.caught_up {
        text.push_str(&caught_up(table));
    }
    if !done.roles_made.is_empty() {
        text.push_str(&format!("roles that were missing, now there without a login: {}\n", done.roles_made.join(", ")));
    }
    if let Some(replaced) = &done.replaced {
        text.push_str(&format!(
            "what was there is kept as \"{replaced}\"; once nobody misses it: DROP DATABASE \"{replaced}\";\n"
        ));
    }
    text.push_str("rights on the database itself are not in a dump: run `pipeline db init` once\n");
    text
}

fn caught_up(table: &CaughtUp) -> String {
    match &table.lake {
        Some(lake) => format!(
            "  {}: {} added from the lake \"{lake}\" ({} in {} objects)\n",
            table.table,
            rows(table.rows_added),
            rows(table.rows_read),
            table.objects
        ),
        None => format!(
            "  {}: as of the backup, since no sink of type \"parquet\" has the inputs of \"{}\"\n",
            table.table, table.sink
        ),
    }
}

/// Where no spool could be read again. Only what transforms remember is gone.
pub const NOTHING_REWOUND: &str = "nothing is rewound: no source of the pipeline has a spool with records in its data_dir, so that tables \
     which no lake has stay as of the backup. Is it the data_dir of the machine that ran the pipeline?";

/// From where a spool is read again.
pub fn rewound(source: &str, oldest_us: Option<i64>) -> String {
    let oldest =
        oldest_us.map_or("its oldest record".to_owned(), |us| format!("what was received at {}", format_us(us)));
    format!("the next run reads the spool of \"{source}\" again from {oldest}")
}

/// What is to be archived.
pub fn due(parcel: &Archiving) -> String {
    format!("{} from {} to {}", parcel.table, format_us(parcel.from_us), format_us(parcel.to_us))
}

/// What was archived.
pub fn archived(done: &Archived) -> String {
    format!("{}: {}, {}, in {}", due(&done.parcel), rows(done.rows), size(done.bytes), done.objects.join(", "))
}

/// How a drill went.
pub fn drill(report: &DrillReport) -> String {
    let word = if report.passed() { "OK" } else { "CRITICAL" };
    let mut text = format!(
        "{word}: {} missing; RPO {:.0} s, RTO {:.1} s ({:.1} s of it to restore)\n\n\
         backup {} as of {}: {}, counts and checksums equal\n",
        rows(report.missing),
        report.rpo_seconds,
        report.rto_seconds,
        report.restore_seconds,
        report.backup,
        format_us(report.taken_at_us),
        rows(report.rows_in_backup)
    );
    for table in &report.tables {
        text.push_str(&caught_up(&table.caught_up));
        if table.missing > 0 {
            text.push_str(&format!("    {} of the live table are nowhere else\n", rows(table.missing)));
        }
        if table.in_spool > 0 {
            text.push_str(&format!(
                "    {} of the live table are still in the spool: `pipeline db restore --rewind` has them made again\n",
                rows(table.in_spool)
            ));
        }
    }
    text.push_str(if report.compared_with_live {
        "compared with the live database as it was when the drill began\n"
    } else {
        "there is no live database to compare with: the backup and the lake are all that is known\n"
    });
    text
}
