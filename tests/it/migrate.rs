//! `pipeline migrate`, on what AWS's command line prints in its documented shapes (`docs/guide/migration`), on hostile input,
//! and with an `aws` of the test's own on the PATH: nothing here has asked AWS.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Process, root, wait_until};
use crate::services;
use crate::shipped::count;

const KINDS: [&str; 3] = ["rule", "firehose", "lambda"];

/// The three documents of the platform that the page is about.
fn documents() -> [Value; 3] {
    KINDS.map(|kind| {
        let text = fs::read_to_string(root().join(format!("docs/guide/migration/{kind}.json"))).expect("a page's file");
        serde_json::from_str(&text).expect("JSON")
    })
}

/// A migration of documents, in a folder of its own.
struct Migrated {
    folder: TempDir,
    output: Output,
}

impl Migrated {
    fn of(documents: &[Value; 3]) -> Self {
        let folder = TempDir::new().expect("a folder");
        let mut command = command(folder.path());
        for (kind, document) in KINDS.iter().zip(documents) {
            fs::write(folder.path().join(format!("{kind}.json")), document.to_string()).expect("a folder of ours");
            command.args([format!("--{kind}"), format!("{kind}.json")]);
        }
        let output = command.args(["--out", "new.toml"]).output().expect("the binary runs");
        Self { folder, output }
    }

    /// The file, which passes the check with no variable set.
    fn text(&self) -> String {
        assert!(self.output.status.success(), "{}", self.said());
        let file = self.folder.path().join("new.toml");
        let text = fs::read_to_string(&file).expect("it was written");
        let mut check = Command::new(env!("CARGO_BIN_EXE_pipeline"));
        for name in ["MQTT_URL", "MQTT_CLIENT_ID", "DATABASE_URL", "S3_URL", "DB_PASSWORD", "PIPELINE_DATA_DIR"] {
            check.env_remove(name);
        }
        let check = check.arg("check").arg(&file).output().expect("the binary runs");
        let said = String::from_utf8_lossy(&check.stderr).into_owned();
        assert!(check.status.success() && !said.contains("warning"), "{said}\n{text}");
        text
    }

    fn said(&self) -> String {
        let Output { stdout, stderr, .. } = &self.output;
        format!("{}{}", String::from_utf8_lossy(stdout), String::from_utf8_lossy(stderr))
    }
}

fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    command.arg("migrate").current_dir(folder);
    command
}

fn value_at<'t>(table: &'t toml::Table, path: &str) -> Option<&'t toml::Value> {
    let (first, rest) = path.split_once('.').unwrap_or((path, ""));
    let value = table.get(first)?;
    if rest.is_empty() { Some(value) } else { value_at(value.as_table()?, rest) }
}

#[test]
fn the_existing_platform_becomes_a_file_that_holds_and_a_list_of_the_rest() {
    let migrated = Migrated::of(&documents());
    let text = migrated.text();
    let table: toml::Table = text.parse().expect("TOML");
    for (path, expected) in [
        ("sources.telemetry.topics", json!(["iot/telemetry"])),
        ("sources.telemetry.url", json!("${MQTT_URL:-mqtts://iot.us-east-1.amazonaws.com:8883}")),
        ("transforms.ruled.sql", json!("SELECT * FROM \"iot/telemetry\" WHERE temperature > -60")),
        ("sinks.table.url", json!("${DATABASE_URL:-postgres://postgres@database-host:5432/iot_analytics}")),
        ("sinks.table.password", json!("${DB_PASSWORD:-}")),
        ("sinks.table.table", json!("telemetry_pipeline")),
        ("sinks.table.key", json!(["device_id", "timestamp"])),
        ("sinks.table.batch_rows", json!(500)),
        ("sinks.table.write_timeout", json!("60s")),
        ("sinks.lake.url", json!("${S3_URL:-s3://iot-telemetry-bucket}/pipeline")),
        ("sinks.lake.format", json!("json")),
        ("sinks.lake.compression", json!("gzip")),
        ("sinks.lake.prefix", json!("telemetry/year=!{timestamp:yyyy}/month=!{timestamp:MM}/day=!{timestamp:dd}/")),
        ("sinks.lake.buffering_hints", json!({ "size_in_mbs": 5, "interval_in_seconds": 300 })),
        ("sinks.refused.url", json!("${S3_URL:-s3://iot-telemetry-bucket}/pipeline")),
        ("sinks.refused.error_output_prefix", json!("errors/!{firehose:error-output-type}/")),
        ("sinks.refused.inputs", json!(["telemetry.rejected", "ruled.rejected", "table.rejected"])),
    ] {
        let found = value_at(&table, path).unwrap_or_else(|| panic!("no {path} in\n{text}"));
        assert_eq!(serde_json::to_value(found).expect("plain"), expected, "{path}");
    }
    let (head, said) = (text.split("\n[").next().unwrap_or_default(), migrated.said());
    for what in [
        "action sns",
        "errorAction cloudwatchLogs",
        "CloudWatchLoggingOptions",
        "the columns of messages",
        "the function's code",
        "VpcConfig",
        "MemorySize",
        "variable LOG_LEVEL",
        "variable ALERT_WEBHOOK_TOKEN",
    ] {
        assert!(said.contains(what), "{what} in\n{said}");
        assert!(head.replace("\n#  ", "").contains(what), "{what} in\n{head}");
    }
    // What is off is not told, and what maps is not either.
    for what in [
        "ProcessingConfiguration",
        "SchemaConfiguration",
        "CompressionFormat",
        "Prefix",
        "action firehose",
        "variable DB_",
    ] {
        assert!(!said.contains(what), "{what} in\n{said}");
    }
    for secret in ["an-example-of-a-password", "an-example-of-a-token"] {
        assert!(!said.contains(secret) && !text.contains(secret), "{secret}");
    }
}

#[test]
fn a_firehose_keeps_its_folders_as_far_as_a_sink_can_have_them() {
    let migrated = |changes: Value| {
        let [rule, mut firehose, lambda] = documents();
        let settings =
            &mut firehose["DeliveryStreamDescription"]["Destinations"][0]["ExtendedS3DestinationDescription"];
        for (name, value) in changes.as_object().expect("changes") {
            settings[name] = value.clone();
        }
        let migrated = Migrated::of(&[rule, firehose, lambda]);
        let table: toml::Table = migrated.text().parse().expect("TOML");
        let lake = value_at(&table, "sinks.lake").expect("a lake");
        (serde_json::to_value(lake).expect("plain"), migrated.said())
    };
    let (lake, said) = migrated(json!({
        "Prefix": "raw/!{timestamp:yyyy/MM/dd/HH}/!{firehose:random-string}/",
        "CustomTimeZone": "Asia/Tokyo",
        "CompressionFormat": "UNCOMPRESSED",
    }));
    assert_eq!(lake["prefix"], "raw/!{timestamp:yyyy/MM/dd/HH}/!{firehose:random-string}/");
    assert_eq!((&lake["custom_time_zone"], &lake["compression"]), (&json!("Asia/Tokyo"), &json!("none")));
    assert!(!said.contains("CustomTimeZone") && !said.contains("Prefix"), "{said}");

    let (lake, said) = migrated(json!({
        "Prefix": "raw/!{partitionKeyFromQuery:customer}/",
        "DynamicPartitioningConfiguration": { "Enabled": true },
        "CompressionFormat": "Snappy",
    }));
    assert_eq!((&lake["prefix"], &lake["compression"]), (&json!("!{timestamp:yyyy/MM/dd/HH/}"), &json!("gzip")));
    for what in ["firehose: Prefix", "DynamicPartitioningConfiguration", "CompressionFormat \"Snappy\""] {
        assert!(said.contains(what), "{what} in\n{said}");
    }

    let (lake, _) = migrated(json!({ "Prefix": "", "DataFormatConversionConfiguration": { "Enabled": true } }));
    assert_eq!((lake.get("format"), &lake["prefix"]), (None, &json!("!{timestamp:yyyy/MM/dd/HH/}")));
    let (lake, said) = migrated(json!({ "Prefix": "raw/x-" }));
    assert_eq!(lake["prefix"], "raw/x-/");
    assert!(said.contains("firehose: Prefix"), "{said}");
}

#[test]
fn a_reading_that_the_rule_lets_pass_is_stored_by_the_migrated_file() {
    let [mut rule, firehose, lambda] = documents();
    let topic = services::unique("migrated");
    rule["rule"]["sql"] = format!("SELECT * FROM '{topic}/telemetry' WHERE temperature > 30").into();
    let migrated = Migrated::of(&[rule, firehose, lambda]);
    let text = migrated.text();
    let file = migrated.folder.path().join("new.toml");
    fs::write(&file, format!("{text}\n[http]\nlisten = \"off\"\n")).expect("a folder of ours");
    let (database, mqtt) = (services::database("migrated"), services::mqtt_url());
    let place = |name: &str| migrated.folder.path().join(name).display().to_string();
    let (lake, data) = (place("lake"), place("data"));
    let variables = [
        ("MQTT_URL", mqtt.as_str()),
        ("MQTT_CLIENT_ID", &topic),
        ("DATABASE_URL", &database),
        ("DB_PASSWORD", ""),
        ("S3_URL", &lake),
        ("PIPELINE_DATA_DIR", &data),
    ];
    let arguments = ["run".as_ref(), file.as_os_str()];
    let mut pipeline = Process::start(&arguments, &variables, migrated.folder.path(), "pipeline");
    pipeline.wait_for_log("subscribed");
    publish(&mqtt, &format!("{topic}/telemetry"), &[21.0, 31.5, 40.0]);
    let sql = "SELECT count(*) FROM telemetry_pipeline WHERE temperature > 30 AND device_id = 'd1'";
    wait_until("the table", || {
        let there = "SELECT count(*) FROM pg_class WHERE relname = 'telemetry_pipeline'";
        (count(&database, there) > 0 && count(&database, sql) == 2).then_some(())
    });
    let (status, log) = pipeline.stop();
    assert!(status.success(), "{log}");
    assert_eq!(count(&database, "SELECT count(*) FROM telemetry_pipeline"), 2);
    assert!(fs::read_dir(Path::new(&lake).join("pipeline/telemetry")).expect("the lake").count() > 0);
}

fn publish(url: &str, topic: &str, temperatures: &[f64]) {
    use rumqttc_v5::{AsyncClient, MqttOptions, PublishOptions};
    let (host, port) = url.trim_start_matches("mqtt://").split_once(':').expect("host and port");
    let options = MqttOptions::new(services::unique("device"), (host.to_owned(), port.parse::<u16>().expect("a port")));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let (client, mut events) = AsyncClient::builder(options).capacity(10).build();
        let polling = tokio::spawn(async move { while events.poll().await.is_ok() {} });
        for (second, temperature) in temperatures.iter().enumerate() {
            let payload = json!({
                "device_id": "d1", "timestamp": format!("2026-01-01T00:00:0{second}Z"),
                "temperature": temperature, "humidity": 50.0,
            });
            let sent = client.try_publish_tracked(topic, payload.to_string(), PublishOptions::at_least_once());
            sent.expect("room").wait_completion_async().await.expect("the broker has it");
        }
        polling.abort();
    });
}

#[test]
fn a_rule_that_can_not_run_is_told_first_of_all_and_stands_in_the_file_as_a_comment() {
    let [mut rule, firehose, lambda] = documents();
    rule["rule"]["sql"] = "SELECT *, aws_lambda('arn', *) AS score FROM 'iot/telemetry' WHERE pressure > 3".into();
    let migrated = Migrated::of(&[rule, firehose, lambda]);
    let text = migrated.text();
    assert!(migrated.said().contains("ALL MESSAGES ARE STORED"), "{}", migrated.said());
    assert!(
        text.contains("# SELECT *, aws_lambda('arn', *) AS score FROM 'iot/telemetry' WHERE pressure > 3\n"),
        "{text}"
    );
    assert!(!text.contains("[transforms."), "{text}");
}

#[test]
fn a_stream_of_kinesis_is_read_where_the_firehose_reads_one() {
    let [rule, mut firehose, lambda] = documents();
    firehose["DeliveryStreamDescription"]["DeliveryStreamType"] = "KinesisStreamAsSource".into();
    firehose["DeliveryStreamDescription"]["Source"] = json!({ "KinesisStreamSourceDescription": {
        "KinesisStreamARN": "arn:aws:kinesis:eu-west-1:123456789012:stream/readings",
        "RoleARN": "arn:aws:iam::123456789012:role/r", "DeliveryStartTimestamp": 1_762_765_802.5 } });
    let text = Migrated::of(&[rule, firehose, lambda]).text();
    assert!(text.contains("type = \"kinesis\"\nstream = \"readings\"\nregion = \"eu-west-1\"\n"), "{text}");
}

#[test]
fn a_rule_that_fills_the_stream_of_the_firehose_stays_and_is_not_applied_twice() {
    let [mut rule, mut firehose, lambda] = documents();
    let action =
        |stream: &str| json!({ "kinesis": { "streamName": stream, "partitionKey": "${topic()}", "roleArn": "r" } });
    rule["rule"]["sql"] = "SELECT * FROM 'iot/telemetry' WHERE temperature > 3".into();
    firehose["DeliveryStreamDescription"]["Source"] = json!({ "KinesisStreamSourceDescription": {
        "KinesisStreamARN": "arn:aws:kinesis:eu-west-1:123456789012:stream/readings" } });
    rule["rule"]["actions"] = json!([action("readings"), action("others")]);
    let migrated = Migrated::of(&[rule.clone(), firehose.clone(), lambda.clone()]);
    let (text, said) = (migrated.text(), migrated.said());
    assert!(
        !text.contains("[transforms.") && text.contains("# SELECT * FROM 'iot/telemetry' WHERE temperature > 3"),
        "{text}"
    );
    assert!(said.contains("Let the rule go on") && !said.contains("does not write to"), "{said}");
    assert_eq!(said.matches("action kinesis").count(), 1, "the other stream: {said}");

    rule["rule"]["actions"] = json!([action("others")]);
    let migrated = Migrated::of(&[rule, firehose, lambda]);
    assert!(migrated.text().contains("[transforms.ruled]"), "it has nothing to do with the stream");
    assert!(migrated.said().contains("action kinesis") && migrated.said().contains("does not write to"));
}

#[test]
fn a_firehose_that_delivers_elsewhere_is_refused_unless_a_function_says_where_rows_go() {
    let [rule, mut firehose, lambda] = documents();
    firehose["DeliveryStreamDescription"]["Destinations"] = json!([{
        "DestinationId": "destinationId-000000000001",
        "HttpEndpointDestinationDescription": { "EndpointConfiguration": { "Url": "https://example.com/in" } },
    }]);
    let migrated = Migrated::of(&[rule, firehose, lambda]);
    let file = migrated.folder.path().join("new.toml");
    let text = fs::read_to_string(file).unwrap_or_else(|_| panic!("{}", migrated.said()));
    assert!(text.contains("[sinks.table]") && !text.contains("[sinks.lake]"), "{text}");
    assert!(migrated.said().contains("HttpEndpointDestinationDescription"), "{}", migrated.said());
    let alone =
        command(migrated.folder.path()).args(["--firehose", "firehose.json"]).output().expect("the binary runs");
    let said = String::from_utf8_lossy(&alone.stderr);
    assert_eq!(alone.status.code(), Some(2), "{said}");
    assert!(said.contains("delivers to no bucket of S3") && said.contains("Give --lambda"), "{said}");
}

#[test]
fn columns_come_from_samples_and_messages_without_a_device_have_no_key() {
    let folder = TempDir::new().expect("a folder");
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("a folder of ours");
    write("rule.json", r#"{"rule": {"sql": "SELECT pressure, topic(2) AS site FROM 'plant/+/press'"}}"#);
    write(
        "lambda.json",
        r#"{"FunctionName": "f", "Environment": {"Variables": {"DATABASE_URL": "postgres://u:a@b:c@h:1/d?sslmode=require&x=y"}}}"#,
    );
    write("sample.jsonl", "{\"pressure\": 1.5, \"unit\": \"bar\"}\n{\"pressure\": 2.5, \"unit\": \"bar\"}\n");
    let arguments = ["--rule", "rule.json", "--lambda", "lambda.json", "--sample", "sample.jsonl"];
    let output = command(folder.path()).args(arguments).output().expect("the binary runs");
    let (text, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(
        text.contains("pressure = ") && text.contains("message = \"topic\"") && text.contains("key = []"),
        "{text}"
    );
    assert!(text.contains("postgres://u@h:1/d?sslmode=require}") && text.contains("${DB_PASSWORD:-}"), "{text}");
    assert!(!text.contains("a@b") && !said.contains("a@b:c"), "{text}{said}");
    assert!(said.contains("the key of the table"), "{said}");
}

#[test]
fn no_text_of_a_document_becomes_a_line_of_the_file_or_reads_anything() {
    let evil = "x\"\n[sinks.evil]\ntype = 'discard' # ${file:/etc/hostname} ${HOME} \u{1b}[31m '''";
    let [mut rule, mut firehose, mut lambda] = documents();
    rule["rule"]["ruleName"] = evil.into();
    rule["rule"]["sql"] =
        format!("SELECT * FROM 'iot/telemetry' WHERE device_id <> '{}'", evil.replace('\'', "''")).into();
    rule["rule"]["awsIotSqlVersion"] = evil.into();
    rule["rule"][evil] = evil.into();
    rule["rule"]["actions"] = json!([{ evil: evil }, 7, { "firehose": 3 }]);
    rule["ruleArn"] = format!("arn:aws:iot:{evil}:1:rule/x").into();
    let description = &mut firehose["DeliveryStreamDescription"];
    description["DeliveryStreamName"] = evil.into();
    description["Destinations"][0]["ExtendedS3DestinationDescription"]["Prefix"] = evil.into();
    description["Destinations"][0]["ExtendedS3DestinationDescription"]["CompressionFormat"] = evil.into();
    description["Destinations"][0]["ExtendedS3DestinationDescription"]["BufferingHints"] =
        json!({ "SizeInMBs": u64::MAX, "IntervalInSeconds": -1 });
    lambda["FunctionName"] = evil.into();
    lambda["Timeout"] = json!(-5);
    for name in ["DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "TABLE_NAME", "BATCH_SIZE", "DATABASE_URL", evil] {
        lambda["Environment"]["Variables"][name] = evil.into();
    }
    let migrated = Migrated::of(&[rule, firehose, lambda]);
    let table: toml::Table = migrated.text().parse().expect("TOML");
    let sinks: Vec<&String> = table["sinks"].as_table().expect("sinks").keys().collect();
    assert_eq!(sinks.len(), 3, "{sinks:?}");
    assert!(!sinks.iter().any(|name| *name == "evil"));
    let sql = value_at(&table, "transforms.ruled.sql").and_then(toml::Value::as_str).expect("the rule runs");
    assert!(sql.contains("$${file:/etc/hostname} $${HOME}"), "{sql}");
    assert!(!migrated.said().contains('\u{1b}'));
}

#[test]
fn documents_that_are_none_are_refused_with_what_to_give() {
    let folder = TempDir::new().expect("a folder");
    let refused = |text: &str| {
        fs::write(folder.path().join("in.json"), text).expect("a folder of ours");
        let output = command(folder.path()).args(["--lambda", "in.json"]).output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(2), "{text}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for text in ["", "nonsense", "{\"FunctionName\":", &"[".repeat(100_000)] {
        assert!(refused(text).contains("it is no JSON"), "{text:.20}");
    }
    for text in ["[]", "null", "3", "{\"rule\": {}}", "{\"FunctionName\": 3}"] {
        assert!(refused(text).contains("aws lambda get-function-configuration"), "{text}");
    }
    let nothing = command(folder.path()).output().expect("the binary runs");
    assert_eq!(nothing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("nothing says where rows go"));
}

#[test]
fn a_file_that_is_there_is_not_written_over() {
    let migrated = Migrated::of(&documents());
    let text = migrated.text();
    let again = command(migrated.folder.path())
        .args(["--lambda", "lambda.json", "--out", "new.toml"])
        .output()
        .expect("the binary runs");
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(fs::read_to_string(migrated.folder.path().join("new.toml")).expect("it is there"), text);
}

#[test]
fn aws_is_asked_by_its_own_command_line_and_what_it_refuses_is_told() {
    let folder = TempDir::new().expect("a folder");
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).expect("a folder of ours");
    let aws = bin.join("aws");
    let pages = root().join("docs/guide/migration");
    let script = format!(
        "#!/bin/sh\necho \"$@\" >>'{}'\ncase \"$1 $2 $4\" in\n\
         'iot get-topic-rule TelemetryToFirehose') cat '{pages}/rule.json' ;;\n\
         'firehose describe-delivery-stream iot-telemetry-stream') cat '{pages}/firehose.json' ;;\n\
         'lambda get-function-configuration iot-telemetry-processor') cat '{pages}/lambda.json' ;;\n\
         *) echo 'An error occurred (ResourceNotFoundException): not found' >&2; exit 254 ;;\nesac\n",
        folder.path().join("asked").display(),
        pages = pages.display()
    );
    fs::write(&aws, script).expect("a folder of ours");
    fs::set_permissions(&aws, fs::Permissions::from_mode(0o755)).expect("a file of ours");
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let run = |path: &str, lambda: &str| {
        command(folder.path())
            .args([
                "--from-aws",
                "--rule",
                "TelemetryToFirehose",
                "--firehose",
                "iot-telemetry-stream",
                "--lambda",
                lambda,
            ])
            .env("PATH", path)
            .output()
            .expect("the binary runs")
    };
    let output = run(&path, "iot-telemetry-processor");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The same as of the files.
    let of_files = Migrated::of(&documents()).text();
    assert_eq!(String::from_utf8_lossy(&output.stdout), of_files);
    let asked = fs::read_to_string(folder.path().join("asked")).expect("it was asked");
    assert!(asked.starts_with("iot get-topic-rule --rule-name TelemetryToFirehose --output json\n"), "{asked}");

    let missing = run(&path, "nobody");
    assert_eq!(missing.status.code(), Some(2));
    let said = String::from_utf8_lossy(&missing.stderr);
    assert!(said.contains("`aws lambda get-function-configuration` failed: An error occurred"), "{said}");
    for name in ["--profile=other", "file:///etc/hostname", ""] {
        assert_eq!(run(&path, name).status.code(), Some(2), "{name}");
    }
    let none = run("/nowhere", "iot-telemetry-processor");
    assert!(String::from_utf8_lossy(&none.stderr).contains("there is no `aws` on the PATH"));
}
