//! Which regions are in sync, and the log that remembers it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use thinmap_dm::{DeviceUse, TableEvent};
use thinmap_units::Sector;

use super::args::{LogArgs, LogPlace, Sync};
use super::bits::Bits;
use super::disk_log::LogFailure;

/// What everybody may look at; the log itself is the worker's ([`super::disk_log`]).
pub(super) struct Log {
    pub region: Sector,
    pub regions: u64,
    sync: Sync,
    /// Of a disk log.
    pub device: Option<DeviceUse>,
    in_sync: Bits,
    in_sync_count: AtomicU64,
    device_failed: AtomicBool,
    flush_failed: AtomicBool,
    event: Arc<TableEvent>,
}

impl Log {
    /// `None` when there is no memory for so many regions.
    pub fn new(
        args: &LogArgs<'_>,
        len: Sector,
        device: Option<DeviceUse>,
        event: Arc<TableEvent>,
    ) -> Option<Self> {
        debug_assert_eq!(device.is_some(), matches!(args.place, LogPlace::Disk(_)));
        let regions = len.raw().div_ceil(args.region.raw());
        u32::try_from(regions).ok()?;
        let log = Self {
            region: args.region,
            regions,
            sync: args.sync,
            device,
            in_sync: Bits::new(regions)?,
            in_sync_count: AtomicU64::new(0),
            device_failed: AtomicBool::new(false),
            flush_failed: AtomicBool::new(false),
            event,
        };
        if args.sync == Sync::Nosync {
            (0..regions).for_each(|region| log.set_in_sync(region, true));
        }
        Some(log)
    }

    pub fn sync(&self) -> Sync {
        self.sync
    }

    pub fn is_in_sync(&self, region: u64) -> bool {
        self.in_sync.test(region)
    }

    pub fn set_in_sync(&self, region: u64, in_sync: bool) {
        if in_sync && self.in_sync.set(region) {
            self.in_sync_count.fetch_add(1, SeqCst);
        } else if !in_sync && self.in_sync.clear(region) {
            self.in_sync_count.fetch_sub(1, SeqCst);
        }
    }

    pub fn next_out_of_sync(&self, from: u64) -> Option<u64> {
        self.in_sync.next_clear(from)
    }

    pub fn in_sync_count(&self) -> u64 {
        self.in_sync_count.load(SeqCst)
    }

    pub fn all_in_sync(&self) -> bool {
        self.in_sync_count() == self.regions
    }

    /// The log's device failed. The first time raises an event.
    pub fn fail(&self, failure: LogFailure) {
        if failure == LogFailure::Flush {
            self.flush_failed.store(true, SeqCst);
        }
        if !self.device_failed.swap(true, SeqCst) {
            tracing::warn!(?failure, "mirror: the log's device failed");
            self.event.trigger();
        }
    }

    /// The log's part of the status.
    pub fn status(&self) -> String {
        let Some(device) = &self.device else {
            return "1 core".to_owned();
        };
        let letter = if self.flush_failed.load(SeqCst) {
            'F'
        } else if self.device_failed.load(SeqCst) {
            'D'
        } else {
            'A'
        };
        format!("3 disk {device} {letter}")
    }

    /// The log's part of the table, with a space behind.
    pub fn table_words(&self) -> String {
        let (word, more) = match self.sync {
            Sync::Default => ("", 0),
            Sync::Force => ("sync ", 1),
            Sync::Nosync => ("nosync ", 1),
        };
        match &self.device {
            None => format!("core {} {} {word}", 1 + more, self.region),
            Some(device) => format!("disk {} {device} {} {word}", 2 + more, self.region),
        }
    }
}
