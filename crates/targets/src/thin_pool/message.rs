//! The six messages of a pool, parsed. Facts: Linux `dm-thin.c`, `pool_message`.

use thinmap_dm::MessageError;
use thinmap_units::ThinId;

/// A message whose words are right; whether it can be obeyed the pool finds out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// `create_thin <id>`
    CreateThin(ThinId),
    /// `create_snap <id> <origin id>`
    CreateSnap {
        /// The new volume.
        new: ThinId,
        /// Whose blocks it shares.
        origin: ThinId,
    },
    /// `delete <id>`
    Delete(ThinId),
    /// `set_transaction_id <current id> <new id>`
    SetTransactionId {
        /// What it must be now.
        old: u64,
        /// What it becomes.
        new: u64,
    },
    /// `reserve_metadata_snap`
    ReserveMetadataSnap,
    /// `release_metadata_snap`
    ReleaseMetadataSnap,
}

impl Message {
    /// Whether it gives metadata blocks back, or needs none for long.
    pub fn takes_no_room(self) -> bool {
        match self {
            Self::Delete(_) | Self::ReleaseMetadataSnap | Self::SetTransactionId { .. } => true,
            Self::CreateThin(_) | Self::CreateSnap { .. } | Self::ReserveMetadataSnap => false,
        }
    }
}

const EINVAL: i32 = 22;

/// Parses a message's words.
pub fn parse(argv: &[String]) -> Result<Message, MessageError> {
    let (name, args) = argv
        .split_first()
        .ok_or_else(|| wrong("an empty message"))?;
    match name.to_ascii_lowercase().as_str() {
        "create_thin" => {
            let [id] = exactly(args)?;
            Ok(Message::CreateThin(thin_id(id)?))
        }
        "create_snap" => {
            let [new, origin] = exactly(args)?;
            Ok(Message::CreateSnap {
                new: thin_id(new)?,
                origin: thin_id(origin)?,
            })
        }
        "delete" => {
            let [id] = exactly(args)?;
            Ok(Message::Delete(thin_id(id)?))
        }
        "set_transaction_id" => {
            let [old, new] = exactly(args)?;
            Ok(Message::SetTransactionId {
                old: transaction_id(old, "id")?,
                new: transaction_id(new, "new id")?,
            })
        }
        "reserve_metadata_snap" => {
            let [] = exactly(args)?;
            Ok(Message::ReserveMetadataSnap)
        }
        "release_metadata_snap" => {
            let [] = exactly(args)?;
            Ok(Message::ReleaseMetadataSnap)
        }
        _ => Err(wrong(&format!(
            "Unrecognised thin pool target message received: {name}"
        ))),
    }
}

fn exactly<const N: usize>(args: &[String]) -> Result<&[String; N], MessageError> {
    args.try_into().map_err(|_| {
        // The kernel counts the message's name too.
        wrong(&format!(
            "Message received with {} arguments instead of {}.",
            args.len() + 1,
            N + 1
        ))
    })
}

fn thin_id(word: &str) -> Result<ThinId, MessageError> {
    number(word)
        .and_then(ThinId::new)
        .ok_or_else(|| wrong(&format!("Message received with invalid device id: {word}")))
}

fn transaction_id(word: &str, what: &str) -> Result<u64, MessageError> {
    number(word).ok_or_else(|| {
        wrong(&format!(
            "set_transaction_id message: Unrecognised {what} {word}."
        ))
    })
}

/// The kernel's `kstrtoull` in base ten: digits, maybe after a plus sign.
fn number(word: &str) -> Option<u64> {
    let digits = word.strip_prefix('+').unwrap_or(word);
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

fn wrong(reason: &str) -> MessageError {
    MessageError::new(reason, EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Message, MessageError> {
        let argv: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse(&argv)
    }

    #[test]
    fn the_six() {
        let id = |n| ThinId::new(n).expect("24 bits");
        for (line, message) in [
            ("create_thin 0", Message::CreateThin(id(0))),
            (
                "create_snap 16777215 1",
                Message::CreateSnap {
                    new: id(16_777_215),
                    origin: id(1),
                },
            ),
            ("delete 7", Message::Delete(id(7))),
            (
                "set_transaction_id 1 2",
                Message::SetTransactionId { old: 1, new: 2 },
            ),
            ("reserve_metadata_snap", Message::ReserveMetadataSnap),
            ("Release_metadata_snap", Message::ReleaseMetadataSnap),
        ] {
            assert_eq!(parse_line(line), Ok(message), "{line}");
        }
    }

    #[test]
    fn wrong_words() {
        for line in [
            "",
            "create_thin",
            "create_thin 1 2",
            "create_thin x",
            "create_thin -1",
            "create_thin 16777216",
            "create_thin 99999999999999999999",
            "create_snap 1",
            "delete",
            "set_transaction_id 1",
            "set_transaction_id a 1",
            "reserve_metadata_snap 1",
            "frobnicate",
        ] {
            assert_eq!(parse_line(line).expect_err(line).errno, EINVAL, "{line}");
        }
    }
}
