//! The texts that a dump can be: thin-provisioning-tools' XML and human-readable form, byte for byte, and
//! JSON.

use std::io::Write;

use super::PoolFacts;
use crate::Run;
use crate::source::Volume;

/// A way to write metadata as text. Runs are formatted on many threads.
pub trait Format: Sync {
    /// The pool as a whole.
    fn begin(&self, pool: &PoolFacts, text: &mut Vec<u8>);
    /// The end of all.
    fn end(&self, text: &mut Vec<u8>);
    /// A volume; `follows` another one or is the first.
    fn begin_device(&self, volume: &Volume, follows: bool, text: &mut Vec<u8>);
    /// The end of a volume.
    fn end_device(&self, text: &mut Vec<u8>);
    /// A run of mappings.
    fn run(&self, run: &Run, text: &mut Vec<u8>);
    /// What stands between two runs.
    fn between(&self) -> &'static [u8] {
        b""
    }
}

/// Appends numbers and words; writing to memory cannot fail.
macro_rules! put {
    ($text:expr, $($part:expr),+ $(,)?) => {{ $($part.put($text);)+ }};
}

/// What can be appended fast.
trait Put {
    fn put(&self, text: &mut Vec<u8>);
}

impl Put for str {
    fn put(&self, text: &mut Vec<u8>) {
        text.extend_from_slice(self.as_bytes());
    }
}

impl Put for u64 {
    fn put(&self, text: &mut Vec<u8>) {
        // The longest has 20 digits.
        let mut digits = [0; 20];
        let (mut at, mut rest) = (digits.len(), *self);
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        text.extend_from_slice(&digits[at..]);
    }
}

impl Put for u32 {
    fn put(&self, text: &mut Vec<u8>) {
        u64::from(*self).put(text);
    }
}

/// thin-provisioning-tools' XML.
pub struct Xml;

impl Format for Xml {
    fn begin(&self, pool: &PoolFacts, text: &mut Vec<u8>) {
        put!(
            text,
            "<superblock uuid=\"\" time=\"",
            pool.time,
            "\" transaction=\"",
            pool.transaction,
            "\" flags=\"",
            pool.flags,
            "\" version=\"",
            pool.version,
            "\" data_block_size=\"",
            pool.data_block_size,
            "\" nr_data_blocks=\"",
            pool.nr_data_blocks,
        );
        // COMPAT: thin_dump never tells of a metadata snapshot, though its XML has an attribute for it.
        put!(text, "\">\n");
    }

    fn end(&self, text: &mut Vec<u8>) {
        put!(text, "</superblock>\n");
    }

    fn begin_device(&self, volume: &Volume, _: bool, text: &mut Vec<u8>) {
        let details = &volume.details;
        put!(
            text,
            "  <device dev_id=\"",
            volume.id,
            "\" mapped_blocks=\"",
            details.mapped_blocks,
            "\" transaction=\"",
            details.transaction_id,
            "\" creation_time=\"",
            details.creation_time,
            "\" snap_time=\"",
            details.snapshotted_time,
            "\">\n",
        );
    }

    fn end_device(&self, text: &mut Vec<u8>) {
        put!(text, "  </device>\n");
    }

    fn run(&self, run: &Run, text: &mut Vec<u8>) {
        if run.len == 1 {
            put!(
                text,
                "    <single_mapping origin_block=\"",
                run.thin,
                "\" data_block=\"",
                run.data
            );
        } else {
            put!(
                text,
                "    <range_mapping origin_begin=\"",
                run.thin,
                "\" data_begin=\"",
                run.data,
                "\" length=\"",
                run.len,
            );
        }
        put!(text, "\" time=\"", run.time, "\"/>\n");
    }
}

/// thin-provisioning-tools' form for people.
pub struct Human;

impl Format for Human {
    fn begin(&self, pool: &PoolFacts, text: &mut Vec<u8>) {
        put!(
            text,
            "begin superblock: \"\", ",
            pool.time,
            ", ",
            pool.transaction,
            ", ",
            pool.flags,
            ", ",
            pool.version,
            ", ",
            pool.data_block_size,
            ", ",
            pool.nr_data_blocks,
        );
        put!(text, "\n");
    }

    fn end(&self, text: &mut Vec<u8>) {
        put!(text, "end superblock\n");
    }

    fn begin_device(&self, volume: &Volume, _: bool, text: &mut Vec<u8>) {
        let details = &volume.details;
        put!(
            text,
            "device: ",
            volume.id,
            "\nmapped_blocks: ",
            details.mapped_blocks,
            "\ntransaction: ",
            details.transaction_id,
            "\ncreation time: ",
            details.creation_time,
            "\nsnap time: ",
            details.snapshotted_time,
            "\n",
        );
    }

    fn end_device(&self, text: &mut Vec<u8>) {
        put!(text, "\n");
    }

    fn run(&self, run: &Run, text: &mut Vec<u8>) {
        if run.len == 1 {
            put!(text, "    ", run.thin, " -> ", run.data);
        } else {
            put!(
                text,
                "    (",
                run.thin,
                "..",
                run.end() - 1,
                ") -> (",
                run.data,
                "..",
                run.data + run.len - 1,
                ")",
            );
        }
        put!(text, ", ", run.time, "\n");
    }
}

/// JSON: an object with the pool's facts and `devices`; each mapping is a list of first block, first data
/// block, length and time.
pub struct Json;

impl Format for Json {
    fn begin(&self, pool: &PoolFacts, text: &mut Vec<u8>) {
        let snap = pool
            .metadata_snap
            .map_or("null".to_owned(), |block| block.to_string());
        // Writing to memory cannot fail.
        let _ = write!(
            text,
            "{{\"time\": {}, \"transaction\": {}, \"flags\": {}, \"version\": {}, \
             \"data_block_size\": {}, \"nr_data_blocks\": {}, \"metadata_snap\": {snap}, \
             \"devices\": [",
            pool.time,
            pool.transaction,
            pool.flags,
            pool.version,
            pool.data_block_size,
            pool.nr_data_blocks,
        );
    }

    fn end(&self, text: &mut Vec<u8>) {
        put!(text, "\n]}\n");
    }

    fn begin_device(&self, volume: &Volume, follows: bool, text: &mut Vec<u8>) {
        let details = &volume.details;
        let _ = write!(
            text,
            "{}\n  {{\"dev_id\": {}, \"mapped_blocks\": {}, \"transaction\": {}, \
             \"creation_time\": {}, \"snap_time\": {}, \"mappings\": [",
            if follows { "," } else { "" },
            volume.id,
            details.mapped_blocks,
            details.transaction_id,
            details.creation_time,
            details.snapshotted_time,
        );
    }

    fn end_device(&self, text: &mut Vec<u8>) {
        put!(text, "]}");
    }

    fn run(&self, run: &Run, text: &mut Vec<u8>) {
        put!(
            text, "[", run.thin, ",", run.data, ",", run.len, ",", run.time, "]"
        );
    }

    fn between(&self) -> &'static [u8] {
        b","
    }
}
