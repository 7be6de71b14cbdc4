//! Messages: which blocks are bad, and whether that counts.
//!
//! COMPAT: order of the checks and texts of the replies are those of Linux `dm-dust.c`.

use std::sync::atomic::Ordering::Relaxed;

use thinmap_dm::MessageError;

use super::{Dust, NAME};
use crate::args::{parse_u64, scan_u32};

type Outcome = Result<Option<String>, MessageError>;

impl Dust {
    pub(super) fn obey(&self, argv: &[String]) -> Outcome {
        match argv {
            [word] => self.obey_word(word),
            [word, block] => {
                let block = self.block(block)?;
                match word.to_ascii_lowercase().as_str() {
                    "addbadblock" => self.add(block, 0),
                    "removebadblock" => self.remove(block),
                    "queryblock" => Ok(Some(self.query(block))),
                    _ => Err(unrecognised(word)),
                }
            }
            [word, block, failures] => {
                let (block_word, block) = (block, parse_u64(block));
                let failures = scan_u32(failures)
                    .filter(|_| block.is_some())
                    .ok_or_else(|| refused(format!("no number: '{block_word}' '{failures}'")))?;
                let failures = u8::try_from(failures)
                    .map_err(|_| refused("selected write fail count out of range"))?;
                let block = self.block(block_word)?;
                match word.eq_ignore_ascii_case("addbadblock") {
                    true => self.add(block, failures),
                    false => Err(unrecognised(word)),
                }
            }
            _ => Err(refused(format!(
                "invalid number of arguments '{}'",
                argv.len()
            ))),
        }
    }

    fn obey_word(&self, word: &str) -> Outcome {
        let reply = match word.to_ascii_lowercase().as_str() {
            "addbadblock" | "removebadblock" | "queryblock" => {
                return Err(refused(format!("{word} requires an additional argument")));
            }
            "disable" => {
                self.fail_reads.store(false, Relaxed);
                return Ok(None);
            }
            "enable" => {
                self.fail_reads.store(true, Relaxed);
                return Ok(None);
            }
            "quiet" => {
                self.quiet.fetch_not(Relaxed);
                return Ok(None);
            }
            "countbadblocks" => {
                let count = self.bad.lock().count();
                format!("countbadblocks: {count} badblock(s) found")
            }
            "clearbadblocks" => match self.bad.lock().clear() {
                true => "dust_clear_badblocks: badblocks cleared".to_owned(),
                false => "dust_clear_badblocks: no badblocks found".to_owned(),
            },
            "listbadblocks" => self.list(),
            _ => return Err(unrecognised(word)),
        };
        Ok(Some(reply))
    }

    /// A block of the device below, or the one after its last.
    fn block(&self, word: &str) -> Result<u64, MessageError> {
        let block = parse_u64(word).ok_or_else(|| refused(format!("no number: '{word}'")))?;
        if block > self.device.dev.size().raw() / self.block_sectors() {
            return Err(refused("selected block value out of range"));
        }
        Ok(block)
    }

    fn add(&self, block: u64, failures: u8) -> Outcome {
        if !self.bad.lock().add(block, failures) {
            let reason = format!("dust_add_block: block {block} already in badblocklist");
            return Err(refused(reason));
        }
        if !self.quiet.load(Relaxed) {
            tracing::info!(block, failures, "dust: badblock added");
        }
        Ok(None)
    }

    fn remove(&self, block: u64) -> Outcome {
        if !self.bad.lock().remove(block) {
            let reason = format!("dust_remove_block: block {block} not found in badblocklist");
            return Err(refused(reason));
        }
        if !self.quiet.load(Relaxed) {
            tracing::info!(block, "dust: badblock removed");
        }
        Ok(None)
    }

    fn query(&self, block: u64) -> String {
        let found = match self.bad.lock().contains(block) {
            true => "found",
            false => "not found",
        };
        format!("dust_query_block: block {block} {found} in badblocklist")
    }

    fn list(&self) -> String {
        let bad = self.bad.lock();
        if bad.count() == 0 {
            return "No blocks in badblocklist".to_owned();
        }
        bad.blocks().map(|block| format!("{block}\n")).collect()
    }
}

fn refused(reason: impl Into<String>) -> MessageError {
    MessageError::new(format!("{NAME}: {}", reason.into()), EINVAL)
}

fn unrecognised(word: &str) -> MessageError {
    refused(format!("unrecognized message '{word}' received"))
}

const EINVAL: i32 = 22;
