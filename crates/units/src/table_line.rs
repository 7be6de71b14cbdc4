//! A table's lines, as they are asked for, and their words.

use crate::Sector;

/// One line of a table as it is asked for: `len` sectors from `start` are mapped by `target` with `params`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableLine {
    /// First sector in the mapped device.
    pub start: Sector,
    /// Length.
    pub len: Sector,
    /// The target type's name; at most 15 bytes.
    pub target: String,
    /// Its arguments, unsplit; see [`split_args`].
    pub params: String,
}

/// Splits a target's arguments, or a message, into words. White space separates; a backslash takes the next character as it is.
///
/// COMPAT: the kernel's `dm_split_args`: there are no quotes, and a lone backslash at the end stands for itself.
pub fn split_args(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let mut is_literal = false;
        let is_end = |c: char| {
            let ends = is_space(c) && !is_literal;
            is_literal = c == '\\' && !is_literal;
            ends
        };
        let end = rest.find(is_end).unwrap_or(rest.len());
        let (raw, after) = rest.split_at(end);
        // A key that moves as it grows would leave copies behind.
        let mut word = String::with_capacity(end);
        let mut chars = raw.chars();
        while let Some(c) = chars.next() {
            word.push(match c {
                '\\' => chars.next().unwrap_or(c),
                _ => c,
            });
        }
        words.push(word);
        rest = after.trim_start_matches(is_space);
    }
    words
}

/// C's `isspace`, vertical tab included.
fn is_space(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\x0b'
}

#[cfg(test)]
mod tests {
    use super::split_args;

    #[test]
    fn words_are_split_as_the_kernel_does() {
        let cases: &[(&str, &[&str])] = &[
            ("", &[]),
            (" \t\n\x0b ", &[]),
            ("a b", &["a", "b"]),
            ("  a\t\tb  ", &["a", "b"]),
            (r"a\ b c\\d", &["a b", r"c\d"]),
            (r"\\ \\", &[r"\", r"\"]),
            (r"a\", &[r"a\"]),
            (r"\ ", &[" "]),
            (r"'a b'", &["'a", "b'"]),
            ("/dev/\u{e4} b", &["/dev/\u{e4}", "b"]),
        ];
        for (text, words) in cases {
            assert_eq!(split_args(text), *words, "{text:?}");
        }
    }
}
