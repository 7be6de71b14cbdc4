//! From a line and its superblocks to an array that runs.

use std::sync::Arc;

use thinmap_dm::{DeviceUse, TableError, TableEvent};
use thinmap_runtime::{Clock, Spawner};
use thinmap_units::Sector;

use super::args::{Args, NAME, REGIONS_MAX};
use super::array::{Array, ArrayRef, NewArray, Pace};
use super::assemble::{Assembled, Start};
use super::bitmap_disk::BitmapImage;
use super::copies::Copies;
use super::level::{Level, Shape};
use super::members::{Enough, FailRule, MAX_SECTOR, Member, Members};
use super::metadata::{Facts, Metadata, read_bitmap, read_bitmap_head};
use super::raid_type::RaidType;
use super::raid10::Geometry;
use super::regions::Regions;
use super::striped::Striped;

/// What an array is set up from.
pub(super) struct Setup<'a> {
    pub args: &'a Args,
    pub devices: &'a [(Option<DeviceUse>, Option<DeviceUse>)],
    pub assembled: &'a Assembled,
    pub member_len: Sector,
    pub array_len: Sector,
    pub read_only: bool,
    pub event: &'a Arc<TableEvent>,
    pub clock: &'a Arc<dyn Clock>,
}

/// The bitmap as it was found.
struct FoundBitmap {
    region: Sector,
    events: u64,
    events_cleared: u64,
    /// Dirty stretches, or everything.
    dirty: Vec<(Sector, Sector)>,
}

fn cannot_run(why: impl std::fmt::Display) -> TableError {
    TableError::invalid(NAME, format!("Failed to run raid array: {why}"))
}

/// How much of the array there is: chunks that not every member has whole are not used.
pub(super) fn usable_len(args: &Args, member_len: Sector, len: Sector) -> Sector {
    let chunk = args.chunk.raw();
    if chunk == 0 {
        return len;
    }
    let rest = member_len.raw() % chunk;
    if rest == 0 {
        return len;
    }
    let data = len.raw() / member_len.raw().max(1);
    Sector(len.raw().saturating_sub(rest * data.max(1)) / chunk * chunk)
}

impl Setup<'_> {
    /// Whether the array would run, as far as can be told without writing.
    pub fn check(&self) -> Result<Arc<dyn Level>, TableError> {
        let level = self.level(&self.members())?;
        if self.keeps_bitmap() && !self.assembled.is_new {
            self.find_bitmap(&*level)?;
        }
        Ok(level)
    }

    /// Starts it, suspended. Writes superblocks and bitmap.
    pub fn start(&self, spawner: &dyn Spawner, name: &str) -> Result<Arc<ArrayRef>, TableError> {
        let members = self.members();
        let level = self.level(&members)?;
        let found = if self.keeps_bitmap() && !self.assembled.is_new {
            Some(self.find_bitmap(&*level)?)
        } else {
            None
        };
        let region = found
            .as_ref()
            .map_or(self.args.region, |found| found.region);
        let region = self
            .args
            .options
            .region_size
            .map_or(region, |_| self.args.region);
        let sync_len = level.sync_len();
        // An array that has grown a lot.
        let mut region = region;
        while sync_len.raw().div_ceil(region.raw()) > 2 * REGIONS_MAX {
            region += region;
        }
        let regions = self.keeps_bitmap().then(|| Regions::new(region, sync_len));
        if let Some(regions) = &regions {
            self.mark(regions, found.as_ref(), sync_len);
        }
        let resynced = if self.assembled.resync_from < sync_len {
            self.assembled.resync_from
        } else {
            MAX_SECTOR
        };
        let mut metadata = self.metadata(&members, &*level, regions.as_ref(), found.as_ref());
        if self.keeps_bitmap() {
            metadata.update(resynced);
        }
        let by_bitmap = |(index, start): (usize, &Start)| {
            matches!(
                start,
                Start::Rebuild {
                    by_bitmap: true,
                    ..
                }
            )
            .then_some(index)
        };
        let starts = self.assembled.starts.iter().enumerate();
        let options = &self.args.options;
        let new = NewArray {
            by_bitmap: starts.filter_map(by_bitmap).collect(),
            members,
            level,
            regions,
            metadata,
            pace: Pace {
                daemon_sleep: options
                    .daemon_sleep
                    .filter(|ms| *ms > 0)
                    .unwrap_or(DAEMON_SLEEP_MS),
                min_rate: options
                    .min_rate
                    .filter(|rate| *rate > 0)
                    .unwrap_or(MIN_RATE),
                max_rate: options
                    .max_rate
                    .filter(|rate| *rate > 0)
                    .unwrap_or(MAX_RATE),
            },
            needs_all: self.args.raid_type.is_parity(),
            read_only: self.read_only,
            event: self.event.clone(),
            resynced,
        };
        Array::start(new, spawner, name).map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(ENOMEM);
            TableError::new(NAME, format!("Failed to start raid array: {error}"), errno)
        })
    }

    /// Whether there are superblocks, and so a bitmap, that may be written.
    fn keeps_bitmap(&self) -> bool {
        self.assembled.has_metadata && !self.args.raid_type.is_raid0() && !self.read_only
    }

    fn members(&self) -> Arc<Members> {
        let mostly_written = &self.args.options.write_mostly;
        let mut list = Vec::with_capacity(self.devices.len());
        for (index, (meta, data)) in self.devices.iter().enumerate() {
            let write_mostly = mostly_written.contains(&index);
            let member = Member::new(data.clone(), meta.clone(), write_mostly);
            member.set_data_offset(self.assembled.data_offset);
            match self.assembled.starts.get(index) {
                Some(Start::Failed) => member.set_failed(),
                Some(Start::Rebuild { from, by_bitmap }) => {
                    member.set_rebuilding(*from, *by_bitmap)
                }
                _ => {}
            }
            list.push(member);
        }
        let rule = match self.args.raid_type.level {
            0 => FailRule::Never,
            4..=6 => FailRule::Always,
            _ => FailRule::WhileEnough,
        };
        Members::new(list, rule, self.enough(), self.clock.clone())
    }

    fn enough(&self) -> Enough {
        let (count, parity) = (self.devices.len(), self.args.raid_type.parity);
        let geometry = Geometry::new(self.args.layout, count, self.args.chunk, self.member_len);
        match (self.args.raid_type.level, geometry) {
            (1, _) => Box::new(move |is_good| (0..count).any(is_good)),
            (10, Some(geometry)) => Box::new(move |is_good| geometry.is_enough(is_good)),
            _ => Box::new(move |is_good| {
                (0..count).filter(|index| is_good(*index)).count() >= count - parity
            }),
        }
    }

    fn level(&self, members: &Arc<Members>) -> Result<Arc<dyn Level>, TableError> {
        let shape = Shape {
            level: self.args.raid_type.level,
            layout: self.args.layout,
            chunk: self.args.chunk,
            member_len: self.member_len,
            stripe_cache: self.args.stripe_cache(),
            members: members.clone(),
        };
        let level: Arc<dyn Level> = match shape.level {
            0 => Arc::new(Striped::new(&shape)),
            1 | 10 => {
                let copies = Copies::new(&shape).ok_or_else(|| cannot_run("no such layout"))?;
                Arc::new(copies)
            }
            _ => super::parity::new(&shape).map_err(cannot_run)?,
        };
        if level.sync_len() == Sector::ZERO {
            return Err(cannot_run("not one chunk fits"));
        }
        Ok(level)
    }

    /// Reads the bitmap of the first member that is good and can be read; as in the kernel what is read there counts.
    fn find_bitmap(&self, level: &dyn Level) -> Result<FoundBitmap, TableError> {
        let good = |index: &usize| self.assembled.starts[*index] == Start::InSync;
        let others = |index: &usize| !good(index);
        let all = 0..self.devices.len();
        for index in all.clone().filter(good).chain(all.filter(others)) {
            let Some(meta) = &self.devices[index].0 else {
                continue;
            };
            if let Some(found) = self.bitmap_of(meta, level).map_err(cannot_run)? {
                return Ok(found);
            }
            tracing::warn!(member = index, "raid: the bitmap cannot be read");
        }
        Err(cannot_run("no bitmap can be read"))
    }

    fn bitmap_of(
        &self,
        meta: &DeviceUse,
        level: &dyn Level,
    ) -> Result<Option<FoundBitmap>, String> {
        let Some(head) = read_bitmap_head(&*meta.dev)? else {
            return Ok(None);
        };
        let mut found = FoundBitmap {
            region: head.region,
            events: head.events,
            events_cleared: head.events_cleared,
            dirty: Vec::new(),
        };
        if head.is_stale() || head.events < self.assembled.events {
            tracing::warn!("raid: the bitmap is out of date: everything is synced");
            found.dirty.push((Sector::ZERO, level.sync_len()));
            return Ok(Some(found));
        }
        let len = head.sync_len.min(level.sync_len());
        let count = len.raw().div_ceil(head.region.raw());
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let Some(image) = read_bitmap(&*meta.dev, count) else {
            return Ok(None);
        };
        for index in (0..count).filter(|index| image.is_set(*index)) {
            let begin = Sector(index as u64 * head.region.raw());
            found.dirty.push((begin, begin + head.region));
        }
        Ok(Some(found))
    }

    /// Regions that members may differ in.
    fn mark(&self, regions: &Regions, found: Option<&FoundBitmap>, sync_len: Sector) {
        let mark = |begin: Sector, end: Sector| {
            let span = regions.span(&(begin..end.min(sync_len)));
            span.iter().for_each(|index| regions.set_needed(index));
        };
        for (begin, end) in found.iter().flat_map(|found| &found.dirty) {
            mark(*begin, *end);
        }
        if self.assembled.resync_from < sync_len {
            mark(self.assembled.resync_from, sync_len);
        }
    }

    fn metadata(
        &self,
        members: &Arc<Members>,
        level: &dyn Level,
        regions: Option<&Regions>,
        found: Option<&FoundBitmap>,
    ) -> Metadata {
        let options = &self.args.options;
        let facts = Facts {
            level: self.args.raid_type.level,
            layout: self.args.layout,
            chunk: self.args.chunk,
            array_len: usable_len(self.args, self.member_len, self.array_len),
            member_len: self.member_len,
            sync_len: level.sync_len(),
            region: regions.map_or(self.args.region, Regions::region),
            new_data_offset: self.assembled.new_data_offset,
            daemon_sleep: (options.daemon_sleep.unwrap_or(DAEMON_SLEEP_MS) / 1000).max(1),
            write_behind: options.max_write_behind.unwrap_or(0),
        };
        let image = regions.map(|regions| {
            let mut image = BitmapImage::new(regions.len());
            for index in (0..regions.len()).filter(|index| regions.is_on_disk(*index)) {
                image.set(index, true);
            }
            image
        });
        let events = self
            .assembled
            .events
            .max(found.map_or(0, |found| found.events));
        let cleared = found.map_or(events, |found| found.events_cleared);
        Metadata::new(members.clone(), facts, (events, cleared), image)
    }
}

/// What a line's level and layout are called, for messages.
impl std::fmt::Display for RaidType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// md's default.
const DAEMON_SLEEP_MS: u32 = 5000;
/// md's default is 1000: it was chosen for slower disks.
const MIN_RATE: u32 = 20_000;
/// md's default.
const MAX_RATE: u32 = 200_000;
const ENOMEM: i32 = 12;
