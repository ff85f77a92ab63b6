//! What came of the suite: one table, case × store, with the cases that one store has for itself below it.

use std::io::Write;

/// What came of one case on one store.
pub(crate) enum Verdict {
    Passed,
    /// The store has not got what the case is about.
    DoesNotApply(&'static str),
    Failed(String),
    /// As bad as failed.
    NotRun(String),
}

/// One case on one store.
pub(crate) struct Line {
    pub(crate) store: &'static str,
    pub(crate) case: &'static str,
    /// Whether only this store has it.
    pub(crate) own: bool,
    pub(crate) verdict: Verdict,
}

impl Line {
    fn cell(&self) -> &'static str {
        match self.verdict {
            Verdict::Passed => "ok",
            Verdict::DoesNotApply(_) => "n/a",
            Verdict::Failed(_) => "FAILED",
            Verdict::NotRun(_) => "NOT RUN",
        }
    }

    fn applies(&self) -> bool {
        !matches!(self.verdict, Verdict::DoesNotApply(_))
    }

    fn is_bad(&self) -> bool {
        matches!(self.verdict, Verdict::Failed(_) | Verdict::NotRun(_))
    }
}

/// Each once, in the order of their first appearance.
fn distinct(names: impl Iterator<Item = &'static str>) -> Vec<&'static str> {
    let mut found = Vec::new();
    for name in names {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

/// Prints the table, then why what failed has failed, then the count. Whether all is well: something has run, nothing has failed,
/// and no cell of the table is empty.
pub(crate) fn print(lines: &[Line]) -> bool {
    let mut out = std::io::stdout().lock();
    let empty = write(&mut out, lines);
    let failed = lines.iter().filter(|line| line.is_bad()).count() + empty;
    // What does not apply has not passed: it does not count.
    let apply = lines.iter().filter(|line| line.applies()).count();
    let _ = writeln!(out, "\n{} more do not apply", lines.len() - apply);
    let _ = writeln!(out, "{} cases, {failed} failed", apply + empty);
    failed == 0 && apply > 0
}

/// The number of empty cells.
fn write(out: &mut impl Write, lines: &[Line]) -> usize {
    let shared = || lines.iter().filter(|line| !line.own);
    let stores = distinct(shared().map(|line| line.store));
    let _ = write!(out, "{:<38}", "case");
    for store in &stores {
        let _ = write!(out, " {store:<13}");
    }
    let _ = writeln!(out);
    let mut empty = 0;
    for case in distinct(shared().map(|line| line.case)) {
        let _ = write!(out, "{case:<38}");
        for store in &stores {
            let line = shared().find(|line| line.case == case && line.store == *store);
            empty += usize::from(line.is_none());
            let _ = write!(out, " {:<13}", line.map_or("EMPTY", Line::cell));
        }
        let _ = writeln!(out);
    }
    for line in lines.iter().filter(|line| line.own) {
        let _ = writeln!(out, "{:<38} {}: {}", line.case, line.store, line.cell());
    }
    for line in lines {
        if let Verdict::DoesNotApply(reason) = &line.verdict {
            let _ = writeln!(out, "n/a     {} {}: {reason}", line.store, line.case);
        }
    }
    // Last, and as Rust's own harness names its tests: who reads only the end of a log sees it.
    for line in lines {
        if let Verdict::Failed(reason) | Verdict::NotRun(reason) = &line.verdict {
            let (store, case) = (line.store, line.case);
            let _ = writeln!(out, "test {store}::{case} ... FAILED");
            let _ = writeln!(out, "    {}: {reason}", line.cell());
        }
    }
    empty
}
