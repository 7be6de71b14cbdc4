//! Words of a table line.

/// Splits a target's arguments into words. White space separates; a backslash takes the next character as it is.
///
/// COMPAT: the kernel's `dm_split_args`, down to the lone backslash at the end, which stands for itself.
pub fn split_args(params: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut chars = params.chars().peekable();
    loop {
        while chars.next_if(|c| is_space(*c)).is_some() {}
        if chars.peek().is_none() {
            return words;
        }
        // A key that moves as it grows would leave copies behind.
        let mut word = String::with_capacity(chars.clone().take_while(|c| !is_space(*c)).count());
        while let Some(c) = chars.next_if(|c| !is_space(*c)) {
            let quoted = if c == '\\' { chars.next() } else { None };
            word.push(quoted.unwrap_or(c));
        }
        words.push(word);
    }
}

/// C's `isspace`, vertical tab included.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_the_kernel_does() {
        let cases: &[(&str, &[&str])] = &[
            ("", &[]),
            (" \t\n\x0b ", &[]),
            ("a b", &["a", "b"]),
            ("  a\t\tb  ", &["a", "b"]),
            (r"a\ b c", &["a b", "c"]),
            (r"\\ \\", &[r"\", r"\"]),
            (r"a\", &[r"a\"]),
            (r"\ ", &[" "]),
            ("/dev/\u{e4}", &["/dev/\u{e4}"]),
        ];
        for (params, words) in cases {
            assert_eq!(split_args(params), *words, "{params:?}");
        }
    }
}
