//! Splitting a table line's or message's text into arguments by the kernel's rule.

/// Splits at white space; a backslash takes the next character literally and is dropped.
///
/// The kernel's `dm_split_args`: there are no quotes, and a backslash at the very end stands for itself.
pub fn split_args(text: &str) -> Vec<String> {
    let mut args = Vec::new();
    let mut current: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if is_space(c) {
            args.extend(current.take());
            continue;
        }
        let literal = match c {
            '\\' => chars.next().unwrap_or('\\'),
            other => other,
        };
        let is_first = current.is_none();
        let word: &mut String = current.get_or_insert_default();
        if is_first {
            // A key that moves as it grows would leave copies behind.
            word.reserve(
                chars
                    .as_str()
                    .find(is_space)
                    .map_or(chars.as_str().len(), |at| at)
                    + 4,
            );
        }
        word.push(literal);
    }
    args.extend(current);
    args
}

fn is_space(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\x0b'
}

#[cfg(test)]
mod tests {
    use super::split_args;

    #[test]
    fn splits_as_the_kernel_does() {
        assert_eq!(split_args("  a  b\tc\n"), ["a", "b", "c"]);
        assert_eq!(split_args(r"a\ b c\\d"), ["a b", r"c\d"]);
        assert_eq!(split_args(r"'a b'"), ["'a", "b'"]);
        assert_eq!(split_args(r"end\"), [r"end\"]);
        assert!(split_args("   ").is_empty());
    }
}
