//! What a journal that was found tells: which sections hold blocks that may not be where they belong.

use super::journal::{Journal, Span, next_seq, prev_seq};

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Sections to be written out, oldest first.
    pub span: Span,
    /// None of them holds anything.
    pub is_empty: bool,
    /// The journal can be gone on with after them, with this sequence number; otherwise it is to be cleared.
    pub go_on: Option<u8>,
    /// The sequence number to clear it with.
    pub erase_seq: u8,
}

/// Looks at the commit ids. An error says what is damaged.
///
/// Sections are written in a ring, and each time round has the next one of four sequence numbers. Of a journal without damage
/// at most two (three just after a turn whose last commit was torn) are in use, so the number after the last one is not.
pub(super) fn examine(journal: &Journal) -> Result<Found, &'static str> {
    let shape = journal.shape();
    let mut used = [false; 4];
    let mut last_section = [0; 4];
    let mut is_empty = true;
    for section in 0..shape.sections {
        for sector in 0..shape.sectors {
            let seq = journal.commit_seq_of(section, sector);
            let seq = usize::from(seq.ok_or("journal commit id")?);
            used[seq] = true;
            last_section[seq] = section;
        }
        is_empty =
            is_empty && (0..shape.entries).all(|entry| journal.sector(section, entry).is_none());
    }
    let unused = if used[3] {
        used.iter().position(|used| !used)
    } else {
        // After the last one that is in use, counted from the first.
        Some(
            used.iter()
                .rposition(|used| *used)
                .map_or(0, |last| last + 1),
        )
    };
    let unused = unused.ok_or("journal commit ids")? as u8;
    let last_used = prev_seq(unused);
    let mut want = prev_seq(last_used);
    if !used[usize::from(want)] && used[usize::from(prev_seq(want))] {
        is_empty = true;
    }
    // The oldest section is the one after the newest; it is of the turn before, unless that has ended.
    let mut first = last_section[usize::from(last_used)] + 1;
    if first >= shape.sections {
        want = next_seq(want);
        first = 0;
    }
    let mut section = first;
    let mut count = 0;
    while count < shape.sections {
        let whole =
            (0..shape.sectors).all(|sector| journal.commit_seq_of(section, sector) == Some(want));
        if !whole {
            // A commit that was cut off. It was not told to anybody.
            break;
        }
        count += 1;
        section += 1;
        if section == shape.sections {
            want = next_seq(want);
            section = 0;
        }
    }
    Ok(Found {
        span: Span { first, count },
        is_empty,
        go_on: (count == shape.sections).then_some(want),
        erase_seq: prev_seq(prev_seq(last_used)),
    })
}
