//! Which lines belong together without naming each other, for who loads tables in an order of his own: a line that changes an
//! origin must not do so while one that keeps the old data is missing.

/// The origin, as the line names it, whose old data this line keeps.
pub fn keeps_old_data_of<'a>(target: &str, params: &'a str) -> Option<&'a str> {
    matches!(target, "snapshot" | "snapshot-merge").then(|| first_word(params))
}

/// The origin, as the line names it, that this line changes.
pub fn changes_origin<'a>(target: &str, params: &'a str) -> Option<&'a str> {
    matches!(target, "snapshot-origin" | "snapshot-merge").then(|| first_word(params))
}

fn first_word(params: &str) -> &str {
    params.split(' ').next().unwrap_or(params)
}
