//! Messages: `<key> <value>`, and `invalidate_cblocks <block>|<begin>-<end>...`.

use std::ops::Range;

use thinmap_dm::MessageError;

use super::args::{IoMode, parse_pair};
use super::shared::Health;
use super::{Cache, NAME};
use crate::args::parse_u64;

const EPERM: i32 = 1;
const EIO: i32 = 5;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;

impl Cache {
    pub(super) fn obey(&self, argv: &[String]) -> Result<Option<String>, MessageError> {
        let Some((word, rest)) = argv.split_first() else {
            return Err(refused("no message", EINVAL));
        };
        if self.shared.state.lock().health != Health::Write {
            let reason = "unable to service cache target messages in READ_ONLY or FAIL mode";
            return Err(refused(reason, EOPNOTSUPP));
        }
        if word.eq_ignore_ascii_case("invalidate_cblocks") {
            self.invalidate(rest)?;
            return Ok(None);
        }
        let [value] = rest else {
            let reason = format!("'{word}' takes one value");
            return Err(refused(reason, EINVAL));
        };
        let threshold =
            parse_pair(self.line.policy, word, value).map_err(|reason| refused(reason, EINVAL))?;
        if let Some(threshold) = threshold {
            self.shared.state.lock().migration_threshold = threshold;
            self.shared.wake();
        }
        Ok(None)
    }

    /// Forgets blocks, one range after another until one is wrong; what was forgotten is so durably when this returns.
    fn invalidate(&self, words: &[String]) -> Result<(), MessageError> {
        if self.line.features.mode != IoMode::Passthrough {
            let reason = "cache has to be in passthrough mode for invalidation";
            return Err(refused(reason, EPERM));
        }
        let mut said = Ok(());
        for word in words {
            match self.parse_range(word) {
                Ok(cblocks) => self.shared.invalidate(cblocks),
                Err(reason) => {
                    said = Err(refused(reason, EINVAL));
                    break;
                }
            }
        }
        let committed = self.shared.commit();
        said.and_then(|()| committed.map_err(|error| refused(error.to_string(), EIO)))
    }

    fn parse_range(&self, word: &str) -> Result<Range<u32>, String> {
        let wrong = || format!("invalid cblock range '{word}'");
        let (begin, end) = match word.split_once('-') {
            Some((begin, end)) => (parse_u64(begin), parse_u64(end)),
            None => {
                let block = parse_u64(word);
                (block, block.and_then(|block| block.checked_add(1)))
            }
        };
        let (begin, end) = begin.zip(end).ok_or_else(wrong)?;
        let blocks = self.shared.shape.cache_blocks;
        let number = |block: u64| u32::try_from(block).ok().filter(|block| *block <= blocks);
        let begin = number(begin)
            .filter(|begin| *begin < blocks)
            .ok_or_else(|| format!("begin cblock out of range: {begin} >= {blocks}"))?;
        let end =
            number(end).ok_or_else(|| format!("end cblock out of range: {end} > {blocks}"))?;
        match begin < end {
            true => Ok(begin..end),
            false => Err(format!("invalid cblock range: {begin} >= {end}")),
        }
    }
}

fn refused(reason: impl Into<String>, errno: i32) -> MessageError {
    MessageError::new(format!("{NAME}: {}", reason.into()), errno)
}
