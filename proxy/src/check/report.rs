//! What was found, as a table for people and as JSON for programs.

use std::fmt::Write;

use serde_json::{Value, json};

/// How one thing went, with what a person wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Fine(String),
    /// It works, but perhaps not for long, or not as meant.
    Warn(String),
    /// A proxy that is started so will not serve, or not all whom it should.
    Failed(String),
    /// It could not be tried, because something before it failed.
    Skipped(String),
}

impl Outcome {
    fn word(&self) -> &'static str {
        match self {
            Self::Fine(_) => "ok",
            Self::Warn(_) => "warning",
            Self::Failed(_) => "FAILED",
            Self::Skipped(_) => "skipped",
        }
    }

    fn detail(&self) -> &str {
        let (Self::Fine(detail) | Self::Warn(detail) | Self::Failed(detail) | Self::Skipped(detail)) = self;
        detail
    }
}

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub check: &'static str,
    /// On what: an endpoint, a file, an address.
    pub target: String,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    pub fn add(&mut self, check: &'static str, target: impl Into<String>, outcome: Outcome) {
        self.rows.push(Row { check, target: target.into(), outcome });
    }

    pub fn extend(&mut self, rows: impl IntoIterator<Item = Row>) {
        self.rows.extend(rows);
    }

    pub fn has_failed(&self) -> bool {
        self.rows.iter().any(|row| matches!(row.outcome, Outcome::Failed(_)))
    }

    /// One line for each row, under a head, and a last one that sums up.
    pub fn table(&self) -> String {
        const HEAD: [&str; 4] = ["CHECK", "TARGET", "RESULT", "DETAIL"];
        let cells = |row: &Row| {
            let target = if row.target.is_empty() { "-".to_owned() } else { row.target.clone() };
            // One line each, so that grep and cut work.
            let detail = row.outcome.detail().split_whitespace().collect::<Vec<_>>().join(" ");
            [row.check.to_owned(), target, row.outcome.word().to_owned(), detail]
        };
        let lines: Vec<[String; 4]> =
            std::iter::once(HEAD.map(str::to_owned)).chain(self.rows.iter().map(cells)).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths = [width(0), width(1), width(2)];
        let mut table = String::new();
        for [check, target, result, detail] in &lines {
            let [first, second, third] = widths;
            let line = format!("{check:first$}  {target:second$}  {result:third$}  {detail}");
            let _ = writeln!(table, "{}", line.trim_end());
        }
        let count = |word: &str| self.rows.iter().filter(|row| row.outcome.word() == word).count();
        let _ = match (count("FAILED"), count("warning")) {
            (0, 0) => writeln!(table, "\nready to start"),
            (0, warnings) => writeln!(table, "\nready to start, with {warnings} to look at"),
            (failed, _) => writeln!(table, "\n{failed} of {} failed", self.rows.len()),
        };
        table
    }

    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            json!({
                "check": row.check,
                "target": row.target,
                "result": row.outcome.word().to_ascii_lowercase(),
                "detail": row.outcome.detail(),
            })
        });
        json!({ "ok": !self.has_failed(), "checks": rows.collect::<Vec<_>>() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_line_for_each_row_and_says_how_it_all_went() {
        let mut report = Report::default();
        report.add("flags", "", Outcome::Fine("they fit".into()));
        report.add("listen", "127.0.0.1:1", Outcome::Warn("a\nb".into()));
        let expected = "CHECK   TARGET       RESULT   DETAIL\nflags   -            ok       they fit\n\
                        listen  127.0.0.1:1  warning  a b\n\nready to start, with 1 to look at\n";
        assert_eq!(report.table(), expected);
        report.add("tls", "x", Outcome::Failed("no".into()));
        report.add("version", "x", Outcome::Skipped(String::new()));
        assert!(report.table().ends_with("version  x            skipped\n\n1 of 4 failed\n"), "{}", report.table());
        assert_eq!(report.json()["checks"][2], json!({"check":"tls","target":"x","result":"failed","detail":"no"}));
        assert_eq!(report.json()["ok"], false);
    }
}
