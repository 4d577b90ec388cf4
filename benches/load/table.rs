//! The table of all paths, as Markdown and as a plot.

use std::fmt;
use std::fs;
use std::path::Path;

use crate::machine;
use crate::median;

/// Between these lines of `benches/README.md` the table stands.
const BEGIN: &str = "<!-- load: begin -->";
const END: &str = "<!-- load: end -->";

/// One path, measured.
pub struct Line {
    pub path: String,
    pub unit: &'static str,
    /// A figure a round.
    pub ours: Vec<f64>,
    /// The same of the limit; empty where there is none to compare with.
    pub limit: Vec<f64>,
    /// What is aimed at, and whether a figure or ratio reaches it.
    pub target: Target,
    /// What else was seen, such as CPU a message.
    pub more: String,
}

#[derive(Clone, Copy)]
pub enum Target {
    /// The ratio to the limit is at least this.
    Ratio(f64),
    /// Our own figure is at most this.
    AtMost(f64),
    None,
}

impl Line {
    fn ours(&self) -> f64 {
        median(self.ours.clone())
    }

    fn ratio(&self) -> Option<f64> {
        (!self.limit.is_empty())
            .then(|| median(self.ours.iter().zip(&self.limit).map(|(ours, limit)| ours / limit).collect()))
    }

    fn is_met(&self) -> Option<bool> {
        match self.target {
            Target::Ratio(least) => Some(self.ratio()? >= least),
            Target::AtMost(most) => Some(self.ours() <= most),
            Target::None => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ratio(least) => write!(out, "ratio {least}"),
            Self::AtMost(most) => write!(out, "at most {}", figure(*most)),
            Self::None => write!(out, "-"),
        }
    }
}

pub struct Table {
    lines: Vec<Line>,
    /// The machine as it was before anything was measured.
    machine: String,
}

impl Table {
    pub fn new() -> Self {
        Self { lines: Vec::new(), machine: machine::description("load") }
    }

    pub fn add(&mut self, line: Line) {
        self.lines.push(line);
    }

    /// Puts the table into the README of the benches, and the plot beside it.
    pub fn write(&self, folder: &Path) {
        let readme = folder.join("README.md");
        let text = fs::read_to_string(&readme).expect("benches/README.md");
        let (before, rest) = text.split_once(BEGIN).expect("the place of the table");
        let (_, after) = rest.split_once(END).expect("the end of the table");
        fs::write(&readme, format!("{before}{BEGIN}\n{self}{END}{after}")).expect("the README can be written");
        fs::write(folder.join("load.svg"), self.plot()).expect("the plot can be written");
    }

    /// Ratios to the limits as bars, with a mark where each should be.
    fn plot(&self) -> String {
        const ROW: usize = 34;
        const LEFT: usize = 340;
        const FULL: f64 = 420.0;
        let bars: Vec<&Line> = self.lines.iter().filter(|line| line.ratio().is_some()).collect();
        let height = bars.len() * ROW + 50;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 860 {height}\" font-family=\"sans-serif\" font-size=\"13\" \
             role=\"img\" aria-label=\"Each path as a share of its limit\">\n<rect width=\"860\" height=\"{height}\" fill=\"#fff\"/>\n\
             <text x=\"{LEFT}\" y=\"20\" fill=\"#555\">share of what the machine does at best (1 = the limit); the line is the target</text>\n"
        );
        for (row, line) in bars.iter().enumerate() {
            let y = 34 + row * ROW;
            let ratio = line.ratio().unwrap_or_default();
            let colour = if line.is_met() == Some(false) { "#c2410c" } else { "#2563eb" };
            svg += &format!(
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n<rect x=\"{LEFT}\" y=\"{y}\" width=\"{:.0}\" height=\"20\" \
                 fill=\"{colour}\"/>\n<text x=\"{:.0}\" y=\"{}\">{ratio:.2}</text>\n",
                LEFT - 8,
                y + 15,
                line.path.replace('&', "&amp;").replace('<', "&lt;"),
                ratio.min(1.1) * FULL,
                LEFT as f64 + ratio.min(1.1) * FULL + 6.0,
                y + 15
            );
            if let Target::Ratio(target) = line.target {
                let x = LEFT as f64 + target * FULL;
                svg += &format!(
                    "<line x1=\"{x:.0}\" x2=\"{x:.0}\" y1=\"{}\" y2=\"{}\" stroke=\"#111\"/>\n",
                    y - 3,
                    y + 23
                );
            }
        }
        svg + "</svg>\n"
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}\n", self.machine)?;
        writeln!(out, "| path | unit | ours | limit | ratio | target | | rounds | besides |")?;
        writeln!(out, "|---|---|---|---|---|---|---|---|---|")?;
        for line in &self.lines {
            let limit = if line.limit.is_empty() { "-".to_owned() } else { figure(median(line.limit.clone())) };
            let ratio = line.ratio().map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
            let verdict = line.is_met().map_or("", |met| if met { "met" } else { "**missed**" });
            writeln!(
                out,
                "| {} | {} | {} | {limit} | {ratio} | {} | {verdict} | {} | {} |",
                line.path,
                line.unit,
                figure(line.ours()),
                line.target,
                line.ours.len(),
                line.more
            )?;
        }
        Ok(())
    }
}

/// Three digits, with thousands apart.
fn figure(value: f64) -> String {
    if value.abs() < 100.0 {
        return format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
