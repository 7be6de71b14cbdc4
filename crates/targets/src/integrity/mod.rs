//! `integrity`: a line that keeps a tag for each of its blocks, and fails reads of blocks whose tag is not theirs.
//!
//! Arguments: `<device> <start> <tag size|-> <D|J|B|R> <count> [<option>...]`. Status: `<mismatches> <sectors provided>
//! <recalculated before|->`. No messages. See `docs/targets/integrity.md` and `docs/internals/integrity.md`.

mod args;
mod bits;
mod cipher;
mod construct;
mod data;
mod hash;
mod journal;
mod kept;
mod layout;
mod life;
mod ranges;
mod recalc;
mod replay;
mod shared;
mod superblock;
mod tags;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use thinmap_block::{Io, Op, QueueLimits};
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, Environment, KeptMemory, MapOutcome, ResumeError,
    StatusFlags, StatusKind, TableError, Target, TargetArgs, TargetFeatures, TargetInfo,
    TargetType,
};
use thinmap_units::Sector;

use self::args::Args;
use self::construct::construct;
use self::life::Beginning;
use self::shared::Mode;
use self::superblock::{Found, Superblock, flag};
use self::worker::SharedRef;
use crate::args::{measured, open_device};
use crate::kept::name_on;

/// The target type.
pub struct IntegrityType;

impl TargetType for IntegrityType {
    fn info(&self) -> TargetInfo {
        TargetInfo {
            name: NAME,
            version: VERSION,
            features: TargetFeatures {
                singleton: true,
                ..TargetFeatures::default()
            },
        }
    }

    fn construct(
        &self,
        args: &TargetArgs<'_>,
        cx: &mut ConstructCx<'_>,
    ) -> Result<Arc<dyn Target>, TableError> {
        let open = |spec: &str| open_device(cx, NAME, spec, false, "Device lookup failed");
        let words = Args::parse(args.argv, &open)?;
        if let Some(meta) = &words.meta_device
            && meta.id == words.device.id
        {
            let reason = format!("meta_device {meta} is the data device");
            return Err(TableError::invalid(NAME, reason));
        }
        let made = construct(&words, (args.begin, args.len), cx)?;
        let shared = SharedRef::start(cx.env, made.shared).map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(ENOMEM);
            TableError::new(NAME, format!("Cannot allocate workqueue: {error}"), errno)
        })?;
        Ok(Arc::new(Integrity {
            len: args.len,
            args: words,
            watermark: made.watermark,
            beginning: made.beginning,
            was_live: AtomicBool::new(false),
            env: cx.env.clone(),
            shared,
        }))
    }
}

struct Integrity {
    len: Sector,
    args: Args,
    /// Percent.
    watermark: u64,
    beginning: Beginning,
    was_live: AtomicBool,
    env: Arc<Environment>,
    shared: SharedRef,
}

impl Integrity {
    /// Before the first resume: the superblock as the line before has left it.
    fn read_again(&self) -> Result<(), ResumeError> {
        let shared = &self.shared;
        let failed = |reason: String, errno| ResumeError::new(NAME, reason, errno);
        let found = Superblock::read(&*shared.meta, Sector(shared.layout.start));
        let found = found
            .map_err(|status| failed("Error reading superblock".to_owned(), status.errno()))?;
        let Found::Superblock(sb) = found else {
            return Err(failed("the superblock has gone".to_owned(), EINVAL));
        };
        construct::check(&sb, &self.args, shared.layout.tag_size)
            .map_err(|error| failed(error.reason, error.errno))?;
        let mut slow = shared.slow.lock();
        let same = sb.journal_sections == slow.sb.journal_sections
            && sb.log2_interleave == slow.sb.log2_interleave
            && sb.salt == slow.sb.salt
            && (sb.flags ^ slow.sb.flags) & LAYOUT_FLAGS == 0;
        if !same {
            let reason = "the superblock has changed since the table was loaded";
            return Err(failed(reason.to_owned(), EINVAL));
        }
        shared.flags.store(sb.flags, SeqCst);
        shared.recalc.store(construct::whole_blocks(&sb), SeqCst);
        if self.args.recalculate && !sb.has(flag::RECALCULATING) {
            shared.set_flag(flag::RECALCULATING, true);
            shared.recalc.store(0, SeqCst);
        }
        slow.sb = sb;
        Ok(())
    }

    fn table(&self) -> String {
        let (args, shared) = (&self.args, &self.shared);
        let layout = &shared.layout;
        let mut words = Vec::new();
        if let Some(meta) = &args.meta_device {
            words.push(format!("meta_device:{meta}"));
        }
        if layout.log2_block != 0 {
            words.push(format!("block_size:{}", layout.block_bytes()));
        }
        for (word, is_set) in [
            ("recalculate", shared.has_flag(flag::RECALCULATING)),
            ("reset_recalculate", args.reset_recalculate),
            ("allow_discards", args.allow_discards),
        ] {
            words.extend(is_set.then(|| word.to_owned()));
        }
        words.push(format!("journal_sectors:{}", layout.shape.all_sectors()));
        words.push(format!("interleave_sectors:{}", layout.interleave()));
        words.push(format!("buffer_sectors:{}", 1_u64 << layout.log2_buffer));
        if shared.mode == Mode::Journal {
            words.push(format!("journal_watermark:{}", self.watermark));
            words.push(format!("commit_time:{}", args.commit_time));
        }
        if shared.mode == Mode::Bitmap {
            let sectors = 1_u64 << self.beginning.log2_sectors_per_bit;
            words.push(format!("sectors_per_bit:{sectors}"));
            words.push(format!(
                "bitmap_flush_interval:{}",
                args.bitmap_flush_interval
            ));
        }
        for (word, is_set) in [
            ("fix_padding", shared.has_flag(flag::FIXED_PADDING)),
            ("fix_hmac", shared.has_flag(flag::FIXED_HMAC)),
            ("legacy_recalculate", args.legacy_recalculate),
        ] {
            words.extend(is_set.then(|| word.to_owned()));
        }
        for (word, spec) in [
            ("internal_hash", &args.internal_hash),
            ("journal_crypt", &args.journal_crypt),
            ("journal_mac", &args.journal_mac),
        ] {
            if let Some(spec) = spec {
                let mut text = format!("{word}:");
                spec.tell(&mut text);
                words.push(text);
            }
        }
        format!(
            "{} {} {} {} {} {}",
            args.device,
            layout.start,
            layout.tag_size,
            shared.mode.letter(),
            words.len(),
            words.join(" ")
        )
    }

    fn measurement(&self) -> String {
        let (args, shared) = (&self.args, &self.shared);
        let layout = &shared.layout;
        let mut text = measured(NAME, VERSION);
        text += &format!(
            ",dev_name={},start={},tag_size={},mode={}",
            args.device,
            layout.start,
            layout.tag_size,
            shared.mode.letter()
        );
        if let Some(meta) = &args.meta_device {
            text += &format!(",meta_device={meta}");
        }
        if layout.log2_block != 0 {
            text += &format!(",block_size={}", layout.block_bytes());
        }
        for (word, is_set) in [
            ("recalculate", shared.has_flag(flag::RECALCULATING)),
            ("allow_discards", args.allow_discards),
            ("fix_padding", shared.has_flag(flag::FIXED_PADDING)),
            ("fix_hmac", shared.has_flag(flag::FIXED_HMAC)),
            ("legacy_recalculate", args.legacy_recalculate),
        ] {
            text += &format!(",{word}={}", if is_set { 'y' } else { 'n' });
        }
        text + &format!(
            ",journal_sectors={},interleave_sectors={},buffer_sectors={};",
            layout.shape.all_sectors(),
            layout.interleave(),
            1_u64 << layout.log2_buffer
        )
    }
}

impl Target for Integrity {
    fn map(&self, io: Io) -> MapOutcome<'_> {
        self.shared.map(io)
    }

    fn split_at(&self, _: Op) -> Option<Sector> {
        let layout = &self.shared.layout;
        let run = (!layout.separate).then(|| layout.interleave());
        let noted = match self.shared.mode {
            Mode::Bitmap => self.beginning.bitmap_block_sectors(),
            _ => None,
        };
        run.into_iter().chain(noted).min().map(Sector)
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        let layout = &self.shared.layout;
        if layout.log2_block > 0 {
            let bytes = layout.block_bytes() as u32;
            limits.logical_block_size = bytes;
            limits.physical_block_size = bytes;
            limits.io_min = bytes;
        }
        // Zeroes need tags: the core writes them.
        limits.max_write_zeroes = Sector::ZERO;
        if !self.args.allow_discards {
            limits.max_discard = Sector::ZERO;
            limits.discard_granularity = 0;
        }
    }

    fn status(&self, kind: StatusKind, _: StatusFlags, out: &mut String) {
        match kind {
            StatusKind::Info => {
                let shared = &self.shared;
                let recalculated = shared
                    .recalculated_before()
                    .map_or("-".to_owned(), |sector| sector.to_string());
                out.push_str(&format!(
                    "{} {} {recalculated}",
                    shared.mismatches.load(SeqCst),
                    shared.layout.provided
                ));
            }
            StatusKind::Table => out.push_str(&self.table()),
            StatusKind::Measurement => out.push_str(&self.measurement()),
        }
    }

    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole)) {
        let role = DeviceRole::Data {
            start: self.shared.layout.first_data_sector(),
            len: self.len,
        };
        visit(&self.args.device, role);
        if let Some(meta) = &self.args.meta_device {
            visit(meta, DeviceRole::Other);
        }
    }

    fn postsuspend(&self) {
        self.shared.running.store(false, SeqCst);
        let mut slow = self.shared.slow.lock();
        self.shared.end_all(&mut slow);
    }

    fn preresume(&self) -> Result<(), ResumeError> {
        let first = !self.was_live.load(SeqCst);
        if first && self.shared.mode != Mode::Recovery {
            self.read_again()?;
        }
        self.was_live.store(true, SeqCst);
        let mut slow = self.shared.slow.lock();
        let how = Beginning {
            first,
            ..self.beginning
        };
        self.shared.begin(&mut slow, how);
        if let Some(keeper) = self.env.shared.of::<KeptMemory>().keeper() {
            // Not the mapped device's: a table that was to take the place of another line's must not write that one's blocks to its own
            // device.
            let device = name_on(NAME, self.args.device.id);
            let name = format!("{device}-{}", self.shared.layout.start);
            let kept = self.shared.take_over(&mut slow, keeper, name);
            kept.map_err(|error| {
                let errno = error.raw_os_error().unwrap_or(EIO);
                ResumeError::new(NAME, format!("memory for the next daemon: {error}"), errno)
            })?;
        }
        drop(slow);
        self.shared.running.store(true, SeqCst);
        self.shared.wake();
        Ok(())
    }
}

const NAME: &str = "integrity";
const VERSION: [u32; 3] = [1, 10, 0];
/// Flags that say where things lie, and how they are signed.
const LAYOUT_FLAGS: u32 = flag::JOURNAL_MAC | flag::FIXED_PADDING | flag::FIXED_HMAC;
const EIO: i32 = 5;
const ENOMEM: i32 = 12;
const EINVAL: i32 = 22;
