//! Tables as people write them: lines of `start length target arguments`, comments, files and standard input.

use std::io::{self, BufRead};
use std::path::Path;

use thinmap_control::TableLine;
use thinmap_units::Sector;

/// The longest target type, in bytes (the kernel's field is 16 with its NUL).
const TARGET_TYPE_MAX: usize = 15;

/// Where a table comes from.
pub enum Source<'a> {
    /// `--table` or a concise specification.
    Text(&'a str),
    File(&'a str),
    StandardInput,
}

/// Reads a whole table; an error is the line to print.
pub fn read(source: &Source<'_>) -> Result<Vec<TableLine>, String> {
    match source {
        Source::Text(text) => parse_lines(text.split('\n').map(|line| Ok(line.to_owned())), ""),
        Source::File(path) => {
            let file = std::fs::File::open(path)
                .map_err(|_| format!("Couldn't open '{path}' for reading."))?;
            parse_lines(io::BufReader::new(file).lines(), path)
        }
        Source::StandardInput => parse_lines(io::stdin().lock().lines(), "on stdin"),
    }
}

fn parse_lines(
    lines: impl Iterator<Item = io::Result<String>>,
    table_name: &str,
) -> Result<Vec<TableLine>, String> {
    let mut table = Vec::new();
    for (index, line) in lines.enumerate() {
        let line = line.map_err(|error| format!("Reading table {table_name}: {error}"))?;
        let number = index + 1;
        let invalid = || format!("Invalid format on line {number} of table {table_name}.");
        table.extend(parse_line(&line, invalid)?);
    }
    Ok(table)
}

fn parse_line(line: &str, invalid: impl Fn() -> String) -> Result<Option<TableLine>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (start, rest) = unsigned(line).ok_or_else(&invalid)?;
    let (len, rest) = unsigned(rest).ok_or_else(&invalid)?;
    let rest = rest.trim_start();
    let target_end = rest.find(char::is_whitespace).unwrap_or(rest.len());
    let (target, params) = rest.split_at(target_end);
    if target.is_empty() {
        return Err(invalid());
    }
    if target.len() > TARGET_TYPE_MAX {
        return Err(format!("Target type name {target} is too long."));
    }
    let params = params.trim_start();
    let params = params.split('#').next().unwrap_or_default();
    Ok(Some(TableLine {
        start: Sector(start),
        len: Sector(len),
        target: target.to_owned(),
        // The kernel takes a backslash as a quote; dmsetup means it literally.
        params: absolute_paths(target, params).replace('\\', "\\\\"),
    }))
}

/// A number as `sscanf("%llu")` takes it: leading space, an optional sign, digits, and whatever follows.
fn unsigned(text: &str) -> Option<(u64, &str)> {
    let text = text.trim_start();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    let (number, rest) = digits.split_at(end);
    if number.is_empty() {
        return None;
    }
    let number = number.parse().unwrap_or(u64::MAX);
    let number = if negative {
        number.wrapping_neg()
    } else {
        number
    };
    Some((number, rest))
}

/// Where a known target's arguments name devices: positions, and a start and step for lists.
fn device_arguments(target: &str) -> (&'static [usize], Option<(usize, usize)>) {
    match target {
        "linear" => (&[0], None),
        "thin" => (&[0, 2], None),
        "thin-pool" => (&[0, 1], None),
        "striped" => (&[], Some((2, 2))),
        _ => (&[], None),
    }
}

/// Turns a relative path to a file into an absolute one where a device is expected: the daemon does not share the
/// command's working directory. A word that is no existing file is left as it is.
fn absolute_paths(target: &str, params: &str) -> String {
    let (positions, list) = device_arguments(target);
    let mut index = 0;
    let mut result = String::with_capacity(params.len());
    for piece in params.split_inclusive(char::is_whitespace) {
        let word = piece.trim_end();
        if word.is_empty() {
            result.push_str(piece);
            continue;
        }
        let in_list =
            list.is_some_and(|(first, step)| index >= first && (index - first) % step == 0);
        let device = positions.contains(&index) || in_list;
        match device.then(|| absolute(word)).flatten() {
            Some(absolute) => {
                result.push_str(&absolute);
                result.push_str(piece.get(word.len()..).unwrap_or_default());
            }
            None => result.push_str(piece),
        }
        index += 1;
    }
    result
}

fn absolute(word: &str) -> Option<String> {
    let path = Path::new(word);
    if path.is_absolute() || !path.exists() {
        return None;
    }
    std::path::absolute(path).ok()?.to_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<TableLine>, String> {
        read(&Source::Text(text))
    }

    #[test]
    fn lines_comments_and_blanks() {
        let table = parse("# head\n\n 0 8 zero\n8 16 linear /dev/sda 0 # tail\n").unwrap();
        assert_eq!(table.len(), 2);
        assert_eq!(
            (table[0].target.as_str(), table[0].params.as_str()),
            ("zero", "")
        );
        assert_eq!(table[1].params, "/dev/sda 0 ");
        assert_eq!((table[1].start, table[1].len), (Sector(8), Sector(16)));
    }

    #[test]
    fn wrong_lines_are_numbered() {
        assert_eq!(
            parse("0 8 zero\n0 x zero"),
            Err("Invalid format on line 2 of table .".into())
        );
        assert_eq!(
            parse("0 8"),
            Err("Invalid format on line 1 of table .".into())
        );
        assert_eq!(
            parse("0 8 a-target-name-too-long"),
            Err("Target type name a-target-name-too-long is too long.".into())
        );
    }

    #[test]
    fn backslashes_reach_the_target() {
        assert_eq!(parse(r"0 8 flakey a\b").unwrap()[0].params, r"a\\b");
    }

    #[test]
    fn relative_files_become_absolute_only_where_a_device_is_expected() {
        // The tests run in the package's own directory, which holds Cargo.toml.
        let here = std::env::current_dir().unwrap().join("Cargo.toml");
        let expected = format!("{} 0", here.display());
        assert_eq!(
            parse("0 8 linear Cargo.toml 0").unwrap()[0].params,
            expected
        );
        let striped = &parse("0 8 striped 2 Cargo.toml Cargo.toml 0 no-such 0").unwrap()[0];
        assert_eq!(
            striped.params,
            format!("2 Cargo.toml {} 0 no-such 0", here.display())
        );
        assert_eq!(
            parse("0 8 other Cargo.toml").unwrap()[0].params,
            "Cargo.toml"
        );
    }
}
