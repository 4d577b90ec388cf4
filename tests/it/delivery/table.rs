//! What a test has done and found, as a table at its end.

use std::fmt::Display;

/// Names and values, in order.
#[derive(Default)]
pub struct Table(Vec<(String, String)>);

impl Table {
    pub fn row(&mut self, name: &str, value: impl Display) {
        self.0.push((name.to_owned(), value.to_string()));
    }

    pub fn print(&self, title: &str) {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        println!("\n{title}");
        for (name, value) in &self.0 {
            println!("  {name:<width$}  {value}");
        }
    }
}
