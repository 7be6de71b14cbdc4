//! Makes two runs of a case comparable, and says where they differ.
//!
//! Device numbers, loop device names and remarks are all that may differ freely; everything else
//! must be equal byte for byte unless a rule in a [`Permitted`] list says otherwise, with its reason.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use regex_lite::{Captures, Regex};

/// Begins the line in which thinmap says on standard error what a kernel only logs.
const EXPLANATION: &str = "! thinmap: ";

/// Rewrites a case's output so that it no longer depends on which device numbers were free.
///
/// A device that the case made with the prelude's `disk` becomes `<A>` after its variable, any other
/// device number becomes `<dm>`, and remarks (`# ` lines) and thinmap's
/// explanations go.
pub fn normalise(output: &str) -> Result<String> {
    let disks = disks_of(output)?;
    // Loops (major 7) may be the case's disks; 253 and 254 are mapped devices.
    let rules: Vec<(Regex, &str, &str)> = [
        // The pattern, what stands before and after the token.
        (r"/dev/(?<loop>loop)(?<minor>\d+)\b", "/dev/", ""),
        (r"\((?<major>7|253|254), ?(?<minor>\d+)\)", "(", ")"),
        (
            r"\bMajor, minor: +(?<major>7|253|254), (?<minor>\d+)",
            "Major, minor: ",
            "",
        ),
        (r"\b(?<major>7|253|254):(?<minor>\d+)\b", "", ""),
        (r"\b(?:(?<loop>loop)|dm-)(?<minor>\d+)\b", "", ""),
    ]
    .into_iter()
    .map(|(pattern, before, after)| Ok((Regex::new(pattern)?, before, after)))
    .collect::<Result<_>>()?;
    let token = |found: &Captures<'_>| -> String {
        let text = |group: &str| found.name(group).map(|m| m.as_str());
        let is_loop = text("major") == Some("7") || text("loop").is_some();
        match text("minor")
            .and_then(|minor| disks.get(minor))
            .filter(|_| is_loop)
        {
            Some(variable) => format!("<{variable}>"),
            None => "<dm>".to_owned(),
        }
    };
    // Columns are as wide as the numbers in them, so a row with numbers loses its padding.
    let columns = Regex::new(r"^(\S*) +\d+ +\d+ +([L-][I-][s-][rw])(.*)$")?;
    let header = Regex::new(r"^Name +Maj Min .*$")?;
    let blanks = Regex::new(r" +")?;
    let padding = Regex::new(r"(<\w+>) {2,}$")?;
    let indent = Regex::new(r"^ {9,}([|`])")?;
    let concise = Regex::new(r",\d+,(rw|ro)\b")?;

    let mut lines = Vec::new();
    let remark = |line: &&str| line.starts_with("# ") || line.starts_with(EXPLANATION);
    for line in output.lines().filter(|line| !remark(line)) {
        let mut line = line.to_owned();
        if header.is_match(&line) || columns.is_match(&line) {
            line = columns.replace(&line, "$1 <dm> $2$3").into_owned();
            line = blanks.replace_all(&line, " ").trim_end().to_owned();
        }
        for (pattern, before, after) in &rules {
            line = pattern
                .replace_all(&line, |found: &Captures<'_>| {
                    format!("{before}{}{after}", token(found))
                })
                .into_owned();
        }
        line = padding.replace(&line, "$1 ").into_owned();
        line = indent.replace(&line, "         $1").into_owned();
        line = concise.replace_all(&line, ",<minor>,$1").into_owned();
        lines.push(line);
    }
    Ok(lines.join("\n") + "\n")
}

/// The loop numbers behind the case's disks, from the remarks that `disk` leaves.
fn disks_of(output: &str) -> Result<HashMap<String, String>> {
    let remark = Regex::new(r"(?m)^# disk (\w+)=/dev/loop(\d+)$")?;
    Ok(remark
        .captures_iter(output)
        .map(|found| (found[2].to_owned(), found[1].to_owned()))
        .collect())
}

/// Differences that are meant, read from a file.
#[derive(Debug, Default)]
pub struct Permitted {
    rules: Vec<Rule>,
    arm: String,
}

#[derive(Debug)]
struct Rule {
    case: String,
    command: Regex,
    reason: String,
}

impl Permitted {
    /// Reads rules, one a line: `case | regular expression of the command | reason`. Lines that start
    /// with `#` are remarks; a case of `*` means every case, and `CASE@ARM` a case on that arm only.
    pub fn parse(text: &str) -> Result<Self> {
        let mut rules = Vec::new();
        for line in text
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty() && !l.starts_with('#'))
        {
            let mut parts = line.splitn(3, " | ");
            let (case, command, reason) = (parts.next(), parts.next(), parts.next());
            let reason =
                reason.with_context(|| format!("not `case | command | reason`: {line}"))?;
            ensure!(
                !reason.trim().is_empty(),
                "a difference needs a reason: {line}"
            );
            rules.push(Rule {
                case: case.unwrap_or_default().to_owned(),
                command: Regex::new(command.unwrap_or_default())?,
                reason: reason.to_owned(),
            });
        }
        Ok(Self {
            rules,
            arm: String::new(),
        })
    }

    /// The same rules, and those that are for this arm only.
    pub fn on(self, arm: &str) -> Self {
        Self {
            arm: arm.to_owned(),
            ..self
        }
    }

    /// The reasons, each of which the compatibility page must repeat.
    pub fn reasons(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(|rule| rule.reason.as_str())
    }

    fn allows(&self, case: &str, step: &str) -> bool {
        let command = step.lines().next().unwrap_or_default();
        let on_arm = format!("{case}@{}", self.arm);
        let is_meant = |rule: &Rule| ["*", case, &on_arm].contains(&rule.case.as_str());
        self.rules
            .iter()
            .any(|rule| is_meant(rule) && rule.command.is_match(command))
    }
}

/// Compares two normalised runs of one case step by step; a step is a command with what it said, or
/// a line by itself. Returns one text for each step that differs and may not.
pub fn differences(case: &str, kernel: &str, ours: &str, permitted: &Permitted) -> Vec<String> {
    let (kernel, ours) = (steps(kernel), steps(ours));
    let mut found = Vec::new();
    let (mut k, mut o) = (kernel.iter().peekable(), ours.iter().peekable());
    while let (Some(theirs), Some(mine)) = (k.peek(), o.peek()) {
        if first_line(theirs) == first_line(mine) || !is_command(theirs) && !is_command(mine) {
            if theirs != mine && !permitted.allows(case, theirs) {
                found.push(describe(case, theirs, mine));
            }
            k.next();
            o.next();
        } else if is_command(mine) {
            found.extend(
                (!permitted.allows(case, theirs)).then(|| describe(case, theirs, "(nothing)\n")),
            );
            k.next();
        } else {
            found.extend(
                (!permitted.allows(case, mine)).then(|| describe(case, "(nothing)\n", mine)),
            );
            o.next();
        }
    }
    found.extend(
        k.filter(|s| !permitted.allows(case, s))
            .map(|s| describe(case, s, "(nothing)\n")),
    );
    found.extend(
        o.filter(|s| !permitted.allows(case, s))
            .map(|s| describe(case, "(nothing)\n", s)),
    );
    found
}

fn steps(text: &str) -> Vec<String> {
    let mut steps: Vec<String> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with("$ ") || !inside {
            steps.push(String::new());
            inside = line.starts_with("$ ");
        }
        if let Some(step) = steps.last_mut() {
            step.push_str(line);
            step.push('\n');
        }
        inside &= !is_exit(line);
    }
    steps
}

fn is_exit(line: &str) -> bool {
    line.strip_prefix("= ")
        .is_some_and(|rest| rest.parse::<u8>().is_ok())
}

fn is_command(step: &str) -> bool {
    step.starts_with("$ ")
}

fn first_line(step: &str) -> &str {
    step.lines().next().unwrap_or_default()
}

fn describe(case: &str, kernel: &str, ours: &str) -> String {
    format!("--- {case}, kernel\n{kernel}+++ {case}, thinmap\n{ours}")
}

#[cfg(test)]
mod tests;
