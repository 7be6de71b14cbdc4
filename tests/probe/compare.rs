//! Two transcripts of the probe, line by line.

use std::cell::Cell;
use std::path::Path;

use regex_lite::Regex;

/// Lines in which thinmap may differ from the kernel, each kind with its reason.
pub struct Permitted(Vec<Rule>);

struct Rule {
    line: Regex,
    reason: String,
    used: Cell<bool>,
}

impl Permitted {
    /// `regular expression of the kernel's line | reason` in each line; `#` begins a remark.
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).expect("differences.txt");
        let rule = |line: &str| {
            let (pattern, reason) = line.rsplit_once(" | ").expect("pattern | reason");
            Rule {
                line: Regex::new(pattern.trim()).expect("a regular expression"),
                reason: reason.to_owned(),
                used: Cell::new(false),
            }
        };
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(lines.map(rule).collect())
    }

    fn allows(&self, line: &str) -> bool {
        let rule = self.0.iter().find(|rule| rule.line.is_match(line));
        rule.is_some_and(|rule| {
            rule.used.set(true);
            true
        })
    }

    /// The reasons, each of which the compatibility page must repeat.
    pub fn reasons(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|rule| rule.reason.as_str())
    }

    /// Rules that nothing needed.
    pub fn idle(&self) -> Vec<&str> {
        let idle = self.0.iter().filter(|rule| !rule.used.get());
        idle.map(|rule| rule.line.as_str()).collect()
    }
}

/// What differs and may not.
pub fn differences(kernel: &str, ours: &str, permitted: &Permitted) -> Vec<String> {
    let mut found = Vec::new();
    let (mut theirs, mut mine) = (kernel.lines(), ours.lines());
    loop {
        match (theirs.next(), mine.next()) {
            (None, None) => return found,
            (theirs, mine) if theirs == mine => {}
            (theirs, mine) => {
                let [theirs, mine] = [theirs, mine].map(|line| line.unwrap_or("(nothing)"));
                if !permitted.allows(theirs) {
                    found.push(format!("kernel  {theirs}\nthinmap {mine}\n"));
                }
            }
        }
    }
}

/// The sections of a transcript that another one has too.
pub fn shared(whole: &str, part: &str) -> String {
    let sections: Vec<&str> = part
        .lines()
        .filter(|line| line.starts_with("## "))
        .collect();
    let mut wanted = false;
    let mut lines = Vec::new();
    for line in whole.lines() {
        if line.starts_with("## ") {
            wanted = sections.contains(&line);
        }
        if wanted && !line.ends_with(" calls") {
            lines.push(line);
        }
    }
    lines.join("\n") + "\n"
}
