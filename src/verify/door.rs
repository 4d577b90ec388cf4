//! The way into a pipeline by its own front door: the source that devices send to, and messages as its schema wants them.

use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use clap::Args;
use pipeline_engine::dlq::{Letter, LetterForm, LetterId, NotSent, Resender, Resent};
use pipeline_engine::far_end::FarEnd;
use pipeline_engine::schema::is_json;
use pipeline_engine::stage::Port;
use pipeline_engine::time::format_us;
use pipeline_engine::{Kind, Plan};
use serde_json::{Map, Value};

/// Which source, and what its columns are called.
#[derive(Debug, Clone, Args)]
pub struct DoorArguments {
    /// The source to send to. Default: the first that can be sent to and names devices.
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// The column that names devices.
    #[arg(long, value_name = "NAME", default_value = "device_id")]
    pub device_column: String,
    /// The column that tells the rows of a device apart, of whole numbers or of times. Default: the first of whole numbers,
    /// or else of times.
    #[arg(long, value_name = "NAME")]
    pub number_column: Option<String>,
}

/// A source that can be sent to.
pub struct Door {
    pub source: String,
    pub device_column: String,
    pub number_column: String,
    schema: SchemaRef,
    resender: Box<dyn Resender>,
}

/// A sink's far end that rows of the door come to.
pub struct Destination {
    pub sink: String,
    pub end: Box<dyn FarEnd>,
}

impl Door {
    /// # Errors
    /// In words: no source can be sent to, or it does not have these columns.
    pub fn of(plan: &Plan, arguments: &DoorArguments) -> Result<Self, String> {
        let is_meant = |name: &str| arguments.source.as_deref().is_none_or(|wanted| wanted == name);
        let sources: Vec<&str> = plan
            .stages()
            .filter(|(name, kind, _)| *kind == Kind::Source && is_meant(name))
            .map(|(name, ..)| name)
            .collect();
        let doors = sources.iter().filter_map(|name| {
            let schema = plan.schema(name, Port::MAIN)?;
            let column = schema.field_with_name(&arguments.device_column).ok()?;
            (*column.data_type() == DataType::Utf8).then_some(())?;
            // Fleets are published: a source that reads no topic is met otherwise.
            let resender = plan.resender(name).filter(|resender| resender.topic_of("device").is_some())?;
            Some(((*name).to_owned(), schema, resender))
        });
        let Some((source, schema, resender)) = doors.into_iter().next() else {
            let what = arguments
                .source
                .as_ref()
                .map_or_else(|| "no source".to_owned(), |name| format!("no source \"{name}\""));
            return Err(format!(
                "{what} of the pipeline can be sent to and has a text column \"{}\"; --source and --device-column name others",
                arguments.device_column
            ));
        };
        let number_column = number_column(&schema, arguments.number_column.as_deref())?;
        Ok(Self { source, device_column: arguments.device_column.clone(), number_column, schema, resender })
    }

    /// Whether rows are told apart by their time.
    pub fn numbers_are_times(&self) -> bool {
        self.schema.field_with_name(&self.number_column).is_ok_and(|field| is_time(field.data_type()))
    }

    /// A topic that the source reads.
    pub fn topic_of(&self, device: &str) -> Option<String> {
        self.resender.topic_of(device)
    }

    /// A row that has a value in every column. `values` come before what is made up.
    pub fn row(&self, device: &str, number: i64, time_us: i64, values: &Map<String, Value>) -> Value {
        let value = |name: &String, kind: &DataType, is_json: bool| match kind {
            _ if *name == self.device_column => device.into(),
            _ if values.contains_key(name) => values[name].clone(),
            DataType::Utf8 if is_json => "{}".into(),
            DataType::Utf8 => "verify".into(),
            DataType::Boolean => true.into(),
            DataType::Int16 | DataType::Int32 | DataType::Int64 => number.into(),
            DataType::Float32 | DataType::Float64 => 20.0.into(),
            kind if is_time(kind) => format_us(time_us).into(),
            _ => Value::Null,
        };
        let fields = self.schema.fields().iter();
        fields.map(|field| (field.name().clone(), value(field.name(), field.data_type(), is_json(field)))).collect()
    }

    /// The message that the source makes this row of.
    ///
    /// # Errors
    /// Why there is none.
    pub fn message(&self, row: String, topic: &str) -> Result<Resent, String> {
        let letter = Letter {
            id: LetterId([0; 16]),
            received_at_us: 0,
            stage: self.source.clone(),
            reason: String::new(),
            detail: None,
            topic: None,
            position: None,
            payload: row.into(),
        };
        self.resender.message(&letter, LetterForm::Row, Some(topic)).map_err(|why| format!("a row of its own {why}"))
    }

    /// Sends messages; for each whether the broker has taken it, in the same order.
    ///
    /// # Errors
    /// Nothing could be sent.
    pub async fn send(&mut self, messages: &[Resent]) -> Result<Vec<Result<(), NotSent>>, String> {
        self.resender.send(messages).await.map_err(|error| error.chain())
    }

    pub async fn close(&mut self) {
        self.resender.close().await;
    }

    /// The far ends where every row of the source should come to be by itself.
    ///
    /// # Errors
    /// There is none, or the one that is named is none.
    pub fn destinations(&self, plan: &Plan, wanted: &[String]) -> Result<Vec<Destination>, String> {
        let is_fit = |sink: &str, end: &dyn FarEnd, schema: &SchemaRef| {
            let has_both =
                [&self.device_column, &self.number_column].iter().all(|name| schema.field_with_name(name).is_ok());
            end.keeps_every_row() && has_both && plan.leads_to(&self.source, sink)
        };
        let found: Vec<Destination> = plan
            .far_ends()
            .into_iter()
            .filter(|(sink, end, schema)| {
                is_fit(sink, end.as_ref(), schema) && (wanted.is_empty() || wanted.contains(sink))
            })
            .map(|(sink, end, _)| Destination { sink, end })
            .collect();
        if let Some(name) = wanted.iter().find(|name| !found.iter().any(|found| found.sink == **name)) {
            return Err(format!("\"{name}\" is no sink that keeps every row of source \"{}\"", self.source));
        }
        if found.is_empty() {
            let (device, number) = (&self.device_column, &self.number_column);
            let source = &self.source;
            return Err(format!(
                "no table and no lake keeps every row of source \"{source}\" with \"{device}\" and \"{number}\""
            ));
        }
        Ok(found)
    }
}

/// The far ends that can have something of a device, whatever became of its rows on the way.
pub fn all_ends(plan: &Plan, device_column: &str) -> Vec<Destination> {
    let ends = plan.far_ends().into_iter();
    let ends = ends.filter(|(_, _, schema)| schema.field_with_name(device_column).is_ok());
    ends.map(|(sink, end, _)| Destination { sink, end }).collect()
}

fn number_column(schema: &SchemaRef, named: Option<&str>) -> Result<String, String> {
    let is_number = |kind: &DataType| matches!(kind, DataType::Int32 | DataType::Int64);
    let mut fields = schema.fields().iter();
    match named {
        Some(name) => match fields.find(|field| field.name() == name).map(|field| field.data_type()) {
            Some(kind) if is_number(kind) || is_time(kind) => Ok(name.to_owned()),
            Some(_) => Err(format!("\"{name}\" is a column of neither whole numbers nor times")),
            None => Err(format!("the source has no column \"{name}\"")),
        },
        None => {
            let first = |fits: &dyn Fn(&DataType) -> bool| {
                schema.fields().iter().find(|field| fits(field.data_type())).map(|field| field.name().clone())
            };
            let found = first(&is_number).or_else(|| first(&is_time));
            found.ok_or_else(|| "the source has no column of whole numbers or times to tell rows apart by".to_owned())
        }
    }
}

fn is_time(kind: &DataType) -> bool {
    matches!(kind, DataType::Timestamp(TimeUnit::Microsecond, _))
}
