//! The text of /etc/ld.so.preload: libraries between blanks, colons and line ends; what stands behind a `#` is a remark.

use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Whether the list names this library.
pub fn names(text: &[u8], library: &Path) -> bool {
    lines(text).any(|line| !entries(line, library).is_empty())
}

/// The list with this library as its last one.
pub fn with(text: &[u8], library: &Path) -> Vec<u8> {
    let mut longer = text.to_vec();
    if !longer.is_empty() && !longer.ends_with(b"\n") {
        longer.push(b'\n');
    }
    longer.extend_from_slice(library.as_os_str().as_bytes());
    longer.push(b'\n');
    longer
}

/// The list without this library. Other entries and all remarks stay as they are; a line of which nothing is left goes.
pub fn without(text: &[u8], library: &Path) -> Vec<u8> {
    let mut shorter = Vec::with_capacity(text.len());
    for line in lines(text) {
        let ours = entries(line, library);
        let mut rest = line.to_vec();
        for entry in ours.iter().rev() {
            // With the separator behind it, or else the one before.
            let end = (entry.end + 1).min(code_of(line).len());
            let start = match end > entry.end {
                true => entry.start,
                false => entry.start.saturating_sub(1),
            };
            rest.drain(start..end);
        }
        if ours.is_empty() || !rest.trim_ascii().is_empty() {
            shorter.extend_from_slice(&rest);
        }
    }
    shorter
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|byte| *byte == b'\n')
}

/// A line before its remark and its end.
fn code_of(line: &[u8]) -> &[u8] {
    let end = line.iter().position(|byte| matches!(byte, b'#' | b'\n'));
    line.get(..end.unwrap_or(line.len())).unwrap_or(line)
}

/// Where a line names the library.
fn entries(line: &[u8], library: &Path) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut start = 0;
    for word in code_of(line).split(|byte| matches!(byte, b' ' | b'\t' | b':')) {
        if word == library.as_os_str().as_bytes() {
            found.push(start..start + word.len());
        }
        start += word.len() + 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "/lib/ours.so";

    fn without_ours(text: &str) -> String {
        String::from_utf8(without(text.as_bytes(), Path::new(OURS))).expect("text")
    }

    #[test]
    fn an_entry_is_found_among_others_but_not_in_remarks() {
        let names = |text: &str| names(text.as_bytes(), Path::new(OURS));
        for text in [
            "/lib/ours.so",
            "/lib/ours.so\n",
            "/lib/a.so:/lib/ours.so /lib/b.so\n",
            "# one\n\t/lib/ours.so# two\n",
        ] {
            assert!(names(text), "{text:?}");
        }
        for text in [
            "",
            "\n",
            "# /lib/ours.so\n",
            "/lib/ours.so.1\n",
            "/x/lib/ours.so",
        ] {
            assert!(!names(text), "{text:?}");
        }
    }

    #[test]
    fn what_was_added_can_be_taken_away_and_the_rest_is_as_it_was() {
        for text in [
            "",
            "\n",
            "# a remark\n",
            "/lib/a.so\n",
            "/lib/a.so /lib/b.so # both\n\n",
        ] {
            let longer = with(text.as_bytes(), Path::new(OURS));
            assert!(names(&longer, Path::new(OURS)));
            assert!(longer.starts_with(text.as_bytes()));
            assert_eq!(without(&longer, Path::new(OURS)), text.as_bytes());
        }
        let unended = with(b"/lib/a.so", Path::new(OURS));
        assert_eq!(unended, b"/lib/a.so\n/lib/ours.so\n");
    }

    #[test]
    fn others_of_the_same_line_stay() {
        assert_eq!(without_ours("/lib/a.so:/lib/ours.so\n"), "/lib/a.so\n");
        assert_eq!(
            without_ours("/lib/ours.so /lib/a.so # x\n"),
            "/lib/a.so # x\n"
        );
        assert_eq!(
            without_ours("/lib/a.so /lib/ours.so:/lib/b.so"),
            "/lib/a.so /lib/b.so"
        );
        assert_eq!(without_ours("/lib/ours.so # why\n/lib/ours.so"), "# why\n");
        assert_eq!(without_ours("/lib/ours.so:/lib/ours.so\nx\n"), "x\n");
    }
}
