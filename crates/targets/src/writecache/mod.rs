//! `writecache`: a fast device takes the writes, and passes them on to a slow one later.
//!
//! Arguments: `s <origin> <cache> <block bytes> <n> <option>...`. Status and messages: see `docs/targets/writecache.md`.

mod args;
mod disk;
mod entries;
mod free;
mod journal;
mod metadata;
mod parts;
mod shared;
mod state;
mod worker;
mod writeback;

use std::sync::Arc;
use std::time::Duration;

use thinmap_block::{Io, Op, QueueLimits};
use thinmap_dm::{
    ConstructCx, DeviceId, DeviceRole, DeviceUse, MapOutcome, MessageError, OpenDevice,
    ResumeError, StatusFlags, StatusKind, TableError, Target, TargetArgs, TargetFeatures,
    TargetInfo, TargetType,
};
use thinmap_units::Sector;

use self::args::{Tuning, parse_block_bytes};
use self::entries::Entries;
use self::journal::Journal;
use self::shared::{Devices, Pace, Shared};
use self::state::{Rules, State, Stats};
use self::worker::{Ask, SharedRef};

/// The target type.
pub struct WritecacheType;

impl TargetType for WritecacheType {
    fn info(&self) -> TargetInfo {
        TargetInfo {
            name: NAME,
            version: [1, 6, 0],
            features: TargetFeatures::default(),
        }
    }

    fn construct(
        &self,
        args: &TargetArgs<'_>,
        cx: &mut ConstructCx<'_>,
    ) -> Result<Arc<dyn Target>, TableError> {
        let mut words = args.argv.iter();
        let mut word = |what: &str| {
            let reason = || format!("Bad arguments: {what} is missing");
            words
                .next()
                .ok_or_else(|| TableError::invalid(NAME, reason()))
        };
        check_mode(word("the mode")?)?;
        let origin = open(cx, word("the origin")?, "Origin data device lookup failed")?;
        let cache = open(cx, word("the cache")?, "Cache data device lookup failed")?;
        let logical = [&origin, &cache].map(|device| device.dev.limits().logical_block_size);
        let block_bytes = parse_block_bytes(word("the block size")?, logical)?;
        let tuning = Tuning::parse(words.as_slice(), cache.dev.size().raw())?;
        let start = Sector(tuning.start_sector.unwrap_or(0));
        if origin.id == cache.id && start < args.len {
            let reason = format!("Cache data device lookup failed: {cache} is the origin");
            return Err(TableError::invalid(NAME, reason));
        }
        let unfit = |unfit: disk::Unfit| {
            TableError::new(NAME, format!("{}: {cache}", unfit.reason), unfit.errno)
        };
        let (geometry, is_new) = metadata::open(&cache.dev, start, block_bytes).map_err(unfit)?;
        let journal = open_journal(cx, &cache, start)?;
        if let Some(journal) = journal.as_ref().filter(|_| is_new) {
            (0..2).for_each(|epoch| journal.clear(epoch));
        }
        let blocks = u64::from(geometry.blocks);
        let no_memory = || TableError::new(NAME, "Cannot allocate memory", ENOMEM);
        let entries = Entries::new(geometry.blocks).ok_or_else(no_memory)?;
        let mut state = State::new(&geometry, entries, tuning.marks(blocks), journal);
        if tuning.cleaner {
            state.become_cleaner(blocks);
        }
        let devices = Devices {
            origin: origin.dev.clone(),
            cache: cache.dev.clone(),
        };
        let clock = cx.env.clock.clone();
        let shared = Shared::new(devices, geometry, rules(&tuning), clock, state);
        let shared = SharedRef::start(cx.env, shared).map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(ENOMEM);
            let reason = format!("Could not allocate writeback workqueue: {error}");
            TableError::new(NAME, reason, errno)
        })?;
        Ok(Arc::new(Writecache {
            begin: args.begin,
            len: args.len,
            origin,
            cache,
            tuning,
            shared,
        }))
    }
}

/// Persistent memory is refused as by a kernel that does not know of it.
fn check_mode(word: &str) -> Result<(), TableError> {
    match word.to_ascii_lowercase().as_str() {
        "s" => Ok(()),
        "p" => {
            let reason = "Persistent memory or DAX not supported on this system: 'p'";
            Err(TableError::new(NAME, reason, EOPNOTSUPP))
        }
        _ => Err(TableError::invalid(
            NAME,
            format!("Bad arguments: mode '{word}'"),
        )),
    }
}

/// Writeable in a read-only table too: blocks are written back there as well.
fn open(cx: &ConstructCx<'_>, spec: &str, what: &str) -> Result<DeviceUse, TableError> {
    let request = OpenDevice {
        spec,
        read_only: false,
        by: cx.dev_no,
    };
    let opened = cx.env.opener.open(request);
    opened.map_err(|error| TableError::new(NAME, format!("{what}: {}", error.reason), error.errno))
}

/// By the cache's place: the next process loads the same table.
fn open_journal(
    cx: &ConstructCx<'_>,
    cache: &DeviceUse,
    start: Sector,
) -> Result<Option<Arc<Journal>>, TableError> {
    let cache = match cache.id {
        DeviceId::Block(dev_no) => dev_no.to_string(),
        DeviceId::File { dev, ino } => format!("file-{dev:x}-{ino:x}"),
    };
    journal::open(cx.env, format!("writecache-{cache}-{start}")).map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(EIO);
        TableError::new(NAME, format!("the journal: {error}"), errno)
    })
}

fn rules(tuning: &Tuning) -> (Rules, Pace) {
    let ms = |ms: u32| Duration::from_millis(u64::from(ms));
    let rules = Rules {
        autocommit_blocks: tuning.autocommit_blocks.unwrap_or(65_536),
        autocommit_time: ms(tuning.autocommit_time.unwrap_or(1000)),
        metadata_only: tuning.metadata_only,
    };
    let jobs = tuning.writeback_jobs.filter(|jobs| *jobs > 0);
    let pace = Pace {
        jobs: jobs.map(u64::from),
        max_age: tuning.max_age.map(ms),
        pause: ms(tuning.pause_writeback.unwrap_or(3000)),
    };
    (rules, pace)
}

struct Writecache {
    begin: Sector,
    len: Sector,
    origin: DeviceUse,
    cache: DeviceUse,
    tuning: Tuning,
    shared: SharedRef,
}

impl Writecache {
    fn info(&self) -> String {
        let state = self.shared.state.lock();
        let Stats {
            reads,
            read_hits,
            writes,
            write_hits_uncommitted,
            write_hits_committed,
            writes_around,
            writes_allocate,
            writes_blocked,
            flushes,
            discards,
        } = state.stats;
        let counts = [
            u64::from(state.failed),
            u64::from(self.shared.geometry.blocks),
            state.entries.free_count() as u64,
            state.writeback,
            reads,
            read_hits,
            writes,
            write_hits_uncommitted,
            write_hits_committed,
            writes_around,
            writes_allocate,
            writes_blocked,
            flushes,
            discards,
        ];
        counts.map(|count| count.to_string()).join(" ")
    }

    /// Everything goes to the origin.
    fn write_back(&self) -> Result<(), MessageError> {
        {
            let state = self.shared.state.lock();
            if !state.is_running {
                return Err(refused("the device is suspended", EBUSY));
            }
            if state.failed {
                return Err(refused("a device has failed", EIO));
            }
        }
        match self.shared.ask(Ask::WriteBack) {
            true => Ok(()),
            false => Err(refused("a device has failed", EIO)),
        }
    }
}

impl Target for Writecache {
    fn map(&self, mut io: Io) -> MapOutcome<'_> {
        if io.op != Op::Flush {
            io.sector -= self.begin;
        }
        self.shared.map(io)
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        let block = self.shared.geometry.block_bytes;
        limits.logical_block_size = limits.logical_block_size.max(block);
        limits.physical_block_size = limits.physical_block_size.max(block);
        limits.io_min = limits.io_min.max(block);
        limits.max_write_zeroes = Sector::ZERO;
        // Nothing is durable before a commit, whatever the devices do.
        limits.write_cache = true;
    }

    fn status(&self, kind: StatusKind, _: StatusFlags, out: &mut String) {
        match kind {
            StatusKind::Info => out.push_str(&self.info()),
            StatusKind::Table => out.push_str(&format!(
                "s {} {} {} {}",
                self.origin, self.cache, self.shared.geometry.block_bytes, self.tuning
            )),
            StatusKind::Measurement => {}
        }
    }

    fn message(&self, argv: &[String]) -> Result<Option<String>, MessageError> {
        let word = argv.first().map_or("", String::as_str);
        let known = ["flush", "flush_on_suspend", "cleaner", "clear_stats"];
        let found = known.iter().find(|known| word.eq_ignore_ascii_case(known));
        let Some(message) = found else {
            return Err(refused(
                &format!("unrecognised message received: {word}"),
                EINVAL,
            ));
        };
        if argv.len() != 1 {
            return Err(refused(&format!("{message} takes no arguments"), EINVAL));
        }
        if *message == "flush" {
            return self.write_back().map(|()| None);
        }
        let mut state = self.shared.state.lock();
        match *message {
            "flush_on_suspend" => state.flush_on_suspend = true,
            "clear_stats" => state.stats = Stats::default(),
            _ => {
                state.become_cleaner(u64::from(self.shared.geometry.blocks));
                state.verify_watermark();
            }
        }
        drop(state);
        self.shared.wake();
        Ok(None)
    }

    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole)) {
        let role = DeviceRole::Data {
            start: Sector::ZERO,
            len: self.len,
        };
        visit(&self.origin, role);
        visit(&self.cache, DeviceRole::Other);
    }

    fn postsuspend(&self) {
        let flush = {
            let mut state = self.shared.state.lock();
            state.is_running = false;
            std::mem::take(&mut state.flush_on_suspend)
        };
        let ask = if flush { Ask::WriteBack } else { Ask::Commit };
        if !self.shared.ask(ask) {
            tracing::error!(
                "writecache: suspended after a device has failed: not all that was written is durable"
            );
        }
    }

    fn preresume(&self) -> Result<(), ResumeError> {
        // Read anew each time: others may have used the devices meanwhile. Of a line that has failed the medium lacks what was written last,
        // and reads would go back to what was there before.
        if !self.shared.state.lock().failed {
            self.shared.load();
        }
        Ok(())
    }

    fn resume(&self) {
        self.shared.state.lock().is_running = true;
        self.shared.wake();
    }
}

fn refused(reason: &str, errno: i32) -> MessageError {
    MessageError::new(format!("{NAME}: {reason}"), errno)
}

const NAME: &str = "writecache";
const EIO: i32 = 5;
const ENOMEM: i32 = 12;
const EBUSY: i32 = 16;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;
