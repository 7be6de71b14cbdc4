//! From a table line to a line: the superblock is read, or made where there is none.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use parking_lot::{Condvar, Mutex};
use rand::TryRngCore;
use thinmap_dm::{ConstructCx, TableError};
use thinmap_units::Sector;

use super::NAME;
use super::args::Args;
use super::bits::BITMAP_BLOCK;
use super::cipher::JournalCipher;
use super::hash::{BadHash, Hash, HashSpec};
use super::journal::COMMIT_IDS;
use super::layout::{Layout, Shape, Wanted};
use super::life::Beginning;
use super::shared::{Fast, Mode, Shared, Slow, Tuning};
use super::superblock::{Found, Superblock, VERSION_MAX, flag};
use super::tags::Tags;

/// log2 of the sectors that an interleaved run of data may have.
const LOG2_INTERLEAVE: std::ops::RangeInclusive<u8> = 3..=31;
/// A new journal is so small a part of the device, as a shift...
const JOURNAL_SHARE: u32 = 7;
/// ... and so many sectors at most: 64 MiB.
const JOURNAL_SECTORS_MAX: u64 = 131_072;
/// The largest journal that is taken into memory: 1 GiB.
const JOURNAL_MEMORY_SECTORS_MAX: u64 = 2 << 20;
const LOG2_SECTORS_PER_BIT: u32 = 15;

/// A line to be, and what its resumes need to know.
pub(super) struct Constructed {
    pub shared: Shared,
    pub beginning: Beginning,
    /// Percent, as the table line says it.
    pub watermark: u64,
}

fn wrong(reason: impl Into<String>) -> TableError {
    TableError::invalid(NAME, reason)
}

fn hash_of(spec: Option<&HashSpec>, what: &str) -> Result<Option<Hash>, TableError> {
    let Some(spec) = spec else {
        return Ok(None);
    };
    spec.hash().map(Some).map_err(|bad| match bad {
        BadHash::Unknown => {
            let reason = format!("Invalid {what}: '{}': there is no such hash", spec.name);
            TableError::new(NAME, reason, ENOENT)
        }
        BadHash::Key(errno, why) => {
            let reason = format!("Error setting {what} key: '{}': {why}", spec.name);
            TableError::new(NAME, reason, errno)
        }
    })
}

fn cipher_of(args: &Args) -> Result<Option<JournalCipher>, TableError> {
    let Some(spec) = args
        .journal_crypt
        .as_ref()
        .filter(|_| args.mode != Mode::Recovery)
    else {
        return Ok(None);
    };
    if args.mode == Mode::Bitmap {
        // A kernel writes what is in memory for the encrypted journal instead of its bitmap.
        return Err(wrong("journal_crypt cannot be used in bitmap mode"));
    }
    JournalCipher::new(spec).map(Some).map_err(|bad| match bad {
        BadHash::Unknown => {
            let reason = format!(
                "Invalid journal cipher: '{}': there is no such cipher",
                spec.name
            );
            TableError::new(NAME, reason, ENOENT)
        }
        BadHash::Key(errno, why) => {
            let reason = format!("Error setting encryption key: '{}': {why}", spec.name);
            TableError::new(NAME, reason, errno)
        }
    })
}

/// Builds what a line is made of.
pub(super) fn construct(
    args: &Args,
    (begin, len): (Sector, Sector),
    cx: &ConstructCx<'_>,
) -> Result<Constructed, TableError> {
    let internal_hash = hash_of(args.internal_hash.as_ref(), "internal hash")?;
    let journal_mac = hash_of(args.journal_mac.as_ref(), "journal mac")?;
    let tag_size = args.tag_size(internal_hash.as_ref().map(Hash::size))?;
    if args.mode == Mode::Bitmap && internal_hash.is_none() {
        return Err(wrong("Bitmap mode can be only used with internal hash"));
    }
    if args.allow_discards && internal_hash.is_none() {
        return Err(wrong("Discard can be only used with internal hash"));
    }
    let data = args.device.dev.clone();
    let meta = args
        .meta_device
        .as_ref()
        .unwrap_or(&args.device)
        .dev
        .clone();
    let wanted = Wanted {
        start: args.start,
        separate: args.meta_device.is_some(),
        tag_size,
        log2_block: args.log2_block,
        log2_buffer: args.log2_buffer,
        data_sectors: data.size().raw(),
        meta_sectors: meta.size().raw(),
    };
    let read_failed = |status: thinmap_units::BlkStatus| {
        TableError::new(NAME, "Error reading superblock", status.errno())
    };
    let found = Superblock::read(&*meta, Sector(args.start)).map_err(read_failed)?;
    let (mut sb, is_new) = match found {
        Found::Superblock(sb) => {
            check_signature(args.mode, &sb, journal_mac.as_ref())?;
            (sb, false)
        }
        Found::Other if args.mode != Mode::Recovery => {
            return Err(wrong(format!(
                "The device is not initialized: {} has neither a superblock nor zeroes at sector {}",
                args.meta_device.as_ref().unwrap_or(&args.device),
                args.start
            )));
        }
        _ => (format(args, &wanted)?, true),
    };
    check(&sb, args, tag_size)?;
    let mut layout = Layout::of(&wanted, &sb);
    layout.provide();
    if layout.provided == 0 {
        return Err(wrong("The device is too small"));
    }
    while !layout.fits() {
        if !layout.shrink_buffers() {
            return Err(wrong("The device is too small"));
        }
    }
    let (log2_sectors_per_bit, bitmap_blocks) = bitmap_size(args, &layout);
    let formats = is_new && args.mode != Mode::Recovery;
    if formats {
        sb.log2_blocks_per_bit = (log2_sectors_per_bit as u8) - args.log2_block;
    }
    layout.align_buffers();
    if len.raw() > layout.provided {
        return Err(wrong(format!(
            "Not enough provided sectors for requested mapping size: {} for {len}",
            layout.provided
        )));
    }
    if !layout.separate && layout.log2_buffer > layout.log2_interleave {
        return Err(wrong(format!(
            "buffer_sectors {} is more than interleave_sectors {}: data and tags would share buffers",
            1_u64 << layout.log2_buffer,
            layout.interleave()
        )));
    }
    let entries = layout.shape.all_entries();
    let free_low = (entries * (100 - u64::from(args.journal_watermark)) + 50) / 100;
    let watermark = ((entries - free_low) * 100 + entries / 2) / entries;
    if args.recalculate && !sb.has(flag::RECALCULATING) {
        sb.flags |= flag::RECALCULATING;
        sb.recalc_sector = 0;
    }
    check_recalculation(&sb, args, layout.provided)?;
    if args.mode != Mode::Recovery && layout.shape.all_sectors() > JOURNAL_MEMORY_SECTORS_MAX {
        let reason = format!(
            "Journal doesn't fit into memory: {} sectors, at most {JOURNAL_MEMORY_SECTORS_MAX}",
            layout.shape.all_sectors()
        );
        return Err(TableError::new(NAME, reason, ENOMEM));
    }
    let journal_cipher = cipher_of(args)?;
    let commit_ids = match &journal_cipher {
        Some(cipher) => cipher.commit_ids(layout.shape),
        None => COMMIT_IDS,
    };
    let shared = Shared {
        begin,
        tags: Tags::new(
            meta.clone(),
            (layout.tags_sector(), layout.log2_buffer),
            tag_size,
        ),
        data,
        meta,
        layout,
        mode: args.mode,
        tuning: Tuning {
            commit_time: args.commit_time(),
            bitmap_flush_interval: args.bitmap_flush_interval(),
            free_low,
        },
        internal_hash,
        journal_mac,
        journal_cipher,
        commit_ids,
        allow_discards: args.allow_discards,
        salt: sb.has(flag::FIXED_HMAC).then_some(sb.salt),
        clock: cx.env.clock.clone(),
        flags: AtomicU32::new(sb.flags),
        recalc: AtomicU64::new(whole_blocks(&sb)),
        mismatches: AtomicU64::new(0),
        failed: OnceLock::new(),
        fast: Mutex::new(Fast::default()),
        freed: Condvar::new(),
        slow: Mutex::new(Slow {
            sb,
            clear_bits_at: None,
            journal_used: false,
            recalculated: 0,
        }),
        running: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        handle: OnceLock::new(),
    };
    if formats {
        // CRASH: the superblock last: without it the device is formatted again.
        shared.write_blank(0, shared.layout.shape.sections, 0);
        if let Some(status) = shared.failed() {
            return Err(TableError::new(
                NAME,
                "Error initializing journal",
                status.errno(),
            ));
        }
        shared.write_superblock(&mut shared.slow.lock());
        if let Some(status) = shared.failed() {
            return Err(TableError::new(
                NAME,
                "Error initializing superblock",
                status.errno(),
            ));
        }
    }
    Ok(Constructed {
        shared,
        beginning: Beginning {
            first: true,
            reset_recalculate: args.reset_recalculate,
            bitmap_blocks,
            log2_sectors_per_bit,
        },
        watermark,
    })
}

/// COMPAT: the superblock is signed where the kernel's is, and looked at where the kernel does.
fn check_signature(mode: Mode, sb: &Superblock, mac: Option<&Hash>) -> Result<(), TableError> {
    match mac {
        Some(mac)
            if mode != Mode::Recovery && sb.has(flag::FIXED_HMAC) && !sb.is_signed_by(mac) =>
        {
            let reason = "Error reading superblock: its signature is not that of the journal_mac";
            Err(TableError::new(NAME, reason, EILSEQ))
        }
        _ => Ok(()),
    }
}

/// A superblock for a device that has none.
fn format(args: &Args, wanted: &Wanted) -> Result<Superblock, TableError> {
    let mut sb = Superblock::empty();
    sb.tag_size = wanted.tag_size as u16;
    sb.log2_block = wanted.log2_block;
    let has_mac = args.journal_mac.is_some();
    if has_mac {
        sb.flags |= flag::JOURNAL_MAC;
    }
    let journal_sectors = args.journal_sectors.map_or_else(
        || (wanted.data_sectors >> JOURNAL_SHARE).min(JOURNAL_SECTORS_MAX),
        u64::from,
    );
    let shape = Shape::new(wanted.tag_size, wanted.log2_block, has_mac, 0);
    let sections = (journal_sectors as u32 / shape.sectors).max(1);
    if args.fix_hmac && (has_mac || args.internal_hash.is_some()) {
        sb.flags |= flag::FIXED_HMAC;
        rand::rngs::OsRng
            .try_fill_bytes(&mut sb.salt)
            .map_err(|error| {
                TableError::new(
                    NAME,
                    format!("no random numbers for the salt: {error}"),
                    EIO,
                )
            })?;
    }
    let too_small = || wrong("Could not initialize superblock: the device is too small");
    if !wanted.separate {
        if args.fix_padding {
            sb.flags |= flag::FIXED_PADDING;
        }
        sb.journal_sections = sections;
        sb.log2_interleave = match args.interleave_sectors {
            0 => 15,
            sectors => {
                (sectors.ilog2() as u8).clamp(*LOG2_INTERLEAVE.start(), *LOG2_INTERLEAVE.end())
            }
        };
    }
    let mut layout = Layout::of(wanted, &sb);
    layout.provide();
    if layout.provided == 0 || wanted.separate && !layout.choose_sections(sections) {
        return Err(too_small());
    }
    sb.journal_sections = layout.shape.sections;
    sb.provided = layout.provided;
    sb.set_version(args.mode == Mode::Bitmap, wanted.separate);
    Ok(sb)
}

/// Whether the superblock is one that the line can stand on. Also asked when it is read again.
pub(super) fn check(sb: &Superblock, args: &Args, tag_size: u32) -> Result<(), TableError> {
    if sb.version == 0 || sb.version > VERSION_MAX {
        return Err(wrong(format!("Unknown version: {}", sb.version)));
    }
    if u32::from(sb.tag_size) != tag_size {
        return Err(wrong(format!(
            "Tag size doesn't match the information in superblock: {tag_size} and {}",
            sb.tag_size
        )));
    }
    if sb.log2_block != args.log2_block {
        return Err(wrong(format!(
            "Block size doesn't match the information in superblock: {} and 2^{}",
            512 << args.log2_block,
            u32::from(sb.log2_block) + 9
        )));
    }
    if sb.journal_sections == 0 {
        return Err(wrong("Corrupted superblock, journal_sections is 0"));
    }
    let separate = args.meta_device.is_some();
    let interleave_fits = match separate {
        true => sb.log2_interleave == 0,
        false => LOG2_INTERLEAVE.contains(&sb.log2_interleave),
    };
    if !interleave_fits {
        return Err(wrong(format!(
            "Invalid interleave_sectors in the superblock: 2^{}",
            sb.log2_interleave
        )));
    }
    if sb.has(flag::JOURNAL_MAC) != args.journal_mac.is_some() {
        return Err(wrong("Journal mac mismatch"));
    }
    Ok(())
}

/// Where recalculation goes on: at the beginning of a block.
pub(super) fn whole_blocks(sb: &Superblock) -> u64 {
    sb.recalc_sector >> sb.log2_block << sb.log2_block
}

fn check_recalculation(sb: &Superblock, args: &Args, provided: u64) -> Result<(), TableError> {
    if !sb.has(flag::RECALCULATING) {
        return Ok(());
    }
    if args.internal_hash.is_none() {
        let reason = "Recalculate can only be specified with internal_hash";
        return Err(wrong(reason));
    }
    let keyed = |spec: &Option<HashSpec>| spec.as_ref().is_some_and(HashSpec::has_key);
    let (internal, journal) = (keyed(&args.internal_hash), keyed(&args.journal_mac));
    let unsafe_mac = match sb.has(flag::FIXED_HMAC) {
        true => internal && !journal,
        false => internal || journal,
    };
    if sb.recalc_sector < provided && unsafe_mac && !args.legacy_recalculate {
        let reason = "Recalculating with HMAC is disabled for security reasons - if you really need it, use the argument \"legacy_recalculate\"";
        return Err(TableError::new(NAME, reason, EOPNOTSUPP));
    }
    Ok(())
}

/// log2 of the sectors of a bit, and the blocks of the bitmap: as fine as was wanted, if that fits the journal's place.
fn bitmap_size(args: &Args, layout: &Layout) -> (u32, usize) {
    let block = u32::from(args.log2_block);
    let mut log2 = args
        .log2_sectors_per_bit
        .unwrap_or(LOG2_SECTORS_PER_BIT)
        .max(block);
    let room = (layout.shape.all_sectors() << 12).min(u32::MAX.into());
    while log2 < 63 && layout.provided.div_ceil(1 << log2) > room {
        log2 += 1;
    }
    let bits = (layout.provided >> block).div_ceil(1 << (log2 - block));
    (log2, bits.div_ceil(BITMAP_BLOCK as u64 * 8) as usize)
}

const ENOENT: i32 = 2;
const EIO: i32 = 5;
const ENOMEM: i32 = 12;
const EILSEQ: i32 = 84;
const EOPNOTSUPP: i32 = 95;
