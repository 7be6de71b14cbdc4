//! The line of a `raid` target: `<type> <n> <chunk> [<parameter>...] <members> (<metadata device> <data device>)...`.
//!
//! The order of the checks is that of Linux `dm-raid.c`, `raid_ctr`: which of two mistakes is told matters to nobody, but which errno
//! comes back does.

use thinmap_dm::TableError;
use thinmap_units::Sector;

use super::raid_type::{self, RaidType};

/// The target's name.
pub(super) const NAME: &str = "raid";
/// md knows no more.
const MEMBERS_MAX: u64 = 253;
/// The least room, and its unit, that a reshape needs in front of the data.
const RESHAPE_SPACE_MIN: i32 = 32;
const PAGE_SECTORS: i32 = 8;
/// Regions of a bitmap, at most.
pub(super) const REGIONS_MAX: u64 = 1 << 21;
/// 2 GiB.
const REGION_SECTORS_MAX: u64 = 1 << 22;
/// Where the line leaves it open: 4 MiB.
const REGION_SECTORS_DEFAULT: u64 = 1 << 13;
/// md's default of stripes in the cache, and what it takes.
const STRIPE_CACHE: u32 = 256;
const STRIPE_CACHES: std::ops::RangeInclusive<u32> = 17..=32_768;
/// md's COUNTER_MAX: KiB of write-behind, at most.
const WRITE_BEHIND_MAX: i32 = (1 << 14) - 1;

/// What may be said twice or more, in the order in which a table line shows it.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    pub sync: bool,
    pub nosync: bool,
    pub near_sets: bool,
    /// Members to be rebuilt.
    pub rebuild: Vec<usize>,
    /// Milliseconds.
    pub daemon_sleep: Option<u32>,
    /// KiB per second and member.
    pub min_rate: Option<u32>,
    pub max_rate: Option<u32>,
    pub write_mostly: Vec<usize>,
    /// KiB.
    pub max_write_behind: Option<u32>,
    /// Stripes of 4 KiB.
    pub stripe_cache: Option<u32>,
    /// As the line says; [`Args::region`] is what holds.
    pub region_size: Option<u64>,
    pub raid10_copies: Option<u32>,
    pub raid10_format: Option<u32>,
    pub delta_disks: Option<i32>,
    pub data_offset: Option<u32>,
    /// The device that the line names.
    pub journal_dev: Option<String>,
    pub journal_mode: Option<JournalMode>,
}

/// How a journal is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum JournalMode {
    WriteThrough,
    WriteBack,
}

/// A line, taken apart.
#[derive(Debug)]
pub(super) struct Args {
    pub raid_type: &'static RaidType,
    /// Zero for raid1.
    pub chunk: Sector,
    /// md's layout word.
    pub layout: u32,
    /// Copies of raid10; 2 for others.
    pub copies: u32,
    pub options: Options,
    /// Of the bitmap, a power of two.
    pub region: Sector,
    /// Metadata and data device of each member.
    pub devices: Vec<(String, String)>,
}

impl Args {
    /// Stripes that are kept: as the line says, but as many as a chunk has pages.
    pub fn stripe_cache(&self) -> u32 {
        let asked = self.options.stripe_cache.unwrap_or(STRIPE_CACHE);
        // Chunks are below 2^31 sectors.
        asked.max((self.chunk.raw() / 2) as u32)
    }
}

/// Words that are taken one by one.
struct Words<'a>(std::slice::Iter<'a, String>);

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<&'a str> {
        self.0.next().map(String::as_str)
    }

    fn left(&self) -> u64 {
        self.0.len() as u64
    }
}

fn wrong(reason: impl Into<String>) -> TableError {
    TableError::invalid(NAME, reason)
}

/// A word as `kstrtoint(.., 10, ..)` takes it.
fn parse_i32(word: &str) -> Option<i32> {
    let word = word.strip_suffix('\n').unwrap_or(word);
    let digits = word.strip_prefix(['+', '-']).unwrap_or(word);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    word.parse().ok()
}

/// Takes a line of `len` apart. A journal device is asked for through `journal` in its turn.
pub(super) fn parse(
    argv: &[String],
    len: Sector,
    journal: &mut dyn FnMut(&str) -> Result<(), TableError>,
) -> Result<Args, TableError> {
    let mut words = Words(argv.iter());
    let name = words.next().ok_or_else(|| wrong("No arguments"))?;
    let raid_type = RaidType::named(name).ok_or_else(|| wrong("Unrecognised raid_type"))?;
    let count = |words: &mut Words<'_>| words.next().and_then(crate::args::parse_u64);
    let parameters = count(&mut words)
        .filter(|n| *n <= argv.len() as u64 && *n <= words.left())
        .ok_or_else(|| wrong("Cannot understand number of raid parameters"))?;
    let behind = usize::try_from(parameters).unwrap_or(usize::MAX);
    let mut rest = Words(words.0.as_slice().get(behind..).unwrap_or(&[]).iter());
    let pairs = rest.left().saturating_sub(1) / 2;
    let members = count(&mut rest)
        .filter(|n| (1..=pairs).contains(n))
        .ok_or_else(|| wrong("Cannot understand number of raid devices parameters"))?;
    if members > MEMBERS_MAX {
        return Err(wrong("Invalid number of supplied raid devices"));
    }
    let members = usize::try_from(members).unwrap_or(usize::MAX);
    if members <= raid_type.parity {
        return Err(wrong("Insufficient number of devices"));
    }
    let mut parser = Parser {
        raid_type,
        members,
        options: Options::default(),
        journal,
    };
    let chunk = parser.chunk(&mut words)?;
    // COMPAT: a count of zero still has the chunk size, and then takes all words that are left.
    parser.parameters(&mut words, parameters.wrapping_sub(1))?;
    parser.check()?;
    let region = region_size(raid_type, parser.options.region_size, len, chunk)?;
    let (layout, copies) = parser.layout()?;
    parser.check_for_type()?;
    let options = parser.options;
    let devices = device_words(&mut words, members)?;
    let args = Args {
        raid_type,
        chunk,
        layout,
        copies,
        options,
        region,
        devices,
    };
    let cache = args.stripe_cache();
    if raid_type.is_parity() && cache != STRIPE_CACHE && !STRIPE_CACHES.contains(&cache) {
        return Err(wrong("Failed to set raid4/5/6 stripe cache size"));
    }
    Ok(args)
}

fn device_words(
    words: &mut Words<'_>,
    members: usize,
) -> Result<Vec<(String, String)>, TableError> {
    let short = || wrong("Not enough devices given");
    words.next().ok_or_else(short)?;
    let mut devices = Vec::with_capacity(members);
    for _ in 0..members {
        let meta = words.next().ok_or_else(short)?;
        let data = words.next().ok_or_else(short)?;
        devices.push((meta.to_owned(), data.to_owned()));
    }
    Ok(devices)
}

/// The bitmap's region.
fn region_size(
    raid_type: &RaidType,
    asked: Option<u64>,
    len: Sector,
    chunk: Sector,
) -> Result<Sector, TableError> {
    let min = len.raw() / REGIONS_MAX;
    if raid_type.is_raid0() {
        return Ok(Sector(REGION_SECTORS_DEFAULT));
    }
    let Some(asked) = asked.filter(|size| *size > 0) else {
        let default = if min > REGION_SECTORS_DEFAULT {
            min.next_power_of_two()
        } else {
            REGION_SECTORS_DEFAULT
        };
        return Ok(Sector(default));
    };
    // COMPAT: bytes of larger ones do not fit the bitmap's head; a kernel writes zero there.
    if asked > len.raw() || asked > REGION_SECTORS_MAX {
        return Err(wrong("Supplied region size is too large"));
    }
    if asked < min {
        return Err(wrong("Supplied region size is too small"));
    }
    if !asked.is_power_of_two() {
        return Err(wrong("Region size is not a power of 2"));
    }
    if asked < chunk.raw() {
        return Err(wrong("Region size is smaller than the chunk size"));
    }
    Ok(Sector(asked))
}

struct Parser<'p> {
    raid_type: &'static RaidType,
    members: usize,
    options: Options,
    journal: &'p mut dyn FnMut(&str) -> Result<(), TableError>,
}

/// Notes something that may be said once.
fn once<T>(place: &mut Option<T>, value: T, twice: &str) -> Result<(), TableError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(wrong(twice)),
    }
}

impl Parser<'_> {
    fn chunk(&self, words: &mut Words<'_>) -> Result<Sector, TableError> {
        let value = words
            .next()
            .and_then(parse_i32)
            .ok_or_else(|| wrong("Bad numerical argument given for chunk_size"))?;
        if self.raid_type.is_raid1() {
            return Ok(Sector::ZERO);
        }
        // COMPAT: the kernel takes the one negative power of two for one, too; here it is too small.
        match u64::try_from(value) {
            Ok(value) if !value.is_power_of_two() => Err(wrong("Chunk size must be a power of 2")),
            Ok(value) if value >= 8 => Ok(Sector(value)),
            Err(_) if value != i32::MIN => Err(wrong("Chunk size must be a power of 2")),
            _ => Err(wrong("Chunk size value is too small")),
        }
    }

    fn parameters(&mut self, words: &mut Words<'_>, count: u64) -> Result<(), TableError> {
        let mut taken = 0;
        while taken < count {
            let key = words
                .next()
                .ok_or_else(|| wrong("Not enough raid parameters given"))?
                .to_ascii_lowercase();
            taken += 1;
            if self.alone(&key)? {
                continue;
            }
            let value = words
                .next()
                .ok_or_else(|| wrong("Wrong number of raid parameters given"))?;
            taken += 1;
            if self.with_word(&key, value)? {
                continue;
            }
            let number = parse_i32(value)
                .ok_or_else(|| wrong("Bad numerical argument given in raid params"))?;
            self.with_number(&key, number)?;
        }
        Ok(())
    }

    /// Parameters of one word; whether it was one.
    fn alone(&mut self, key: &str) -> Result<bool, TableError> {
        let (place, twice) = match key {
            "nosync" => (
                &mut self.options.nosync,
                "Only one 'nosync' argument allowed",
            ),
            "sync" => (&mut self.options.sync, "Only one 'sync' argument allowed"),
            "raid10_use_near_sets" => (
                &mut self.options.near_sets,
                "Only one 'raid10_use_new_sets' argument allowed",
            ),
            _ => return Ok(false),
        };
        if std::mem::replace(place, true) {
            return Err(wrong(twice));
        }
        Ok(true)
    }

    /// Parameters whose value is a word; whether it was one.
    fn with_word(&mut self, key: &str, value: &str) -> Result<bool, TableError> {
        match key {
            "raid10_format" => {
                let format = match value.to_ascii_lowercase().as_str() {
                    "near" => Some(raid_type::RAID10_NEAR),
                    "offset" => Some(raid_type::RAID10_OFFSET),
                    "far" => Some(raid_type::RAID10_FAR),
                    _ => None,
                };
                if self.options.raid10_format.is_some() {
                    return Err(wrong("Only one 'raid10_format' argument pair allowed"));
                }
                if !self.raid_type.is_raid10() {
                    return Err(wrong(
                        "'raid10_format' is an invalid parameter for this RAID type",
                    ));
                }
                let format = format.ok_or_else(|| wrong("Invalid 'raid10_format' value given"))?;
                self.options.raid10_format = Some(format);
            }
            "journal_dev" => {
                let twice = "Only one raid4/5/6 set journaling device allowed";
                once(&mut self.options.journal_dev, value.to_owned(), twice)?;
                if !self.raid_type.is_parity() {
                    return Err(wrong(
                        "'journal_dev' is an invalid parameter for this RAID type",
                    ));
                }
                (self.journal)(value)?;
            }
            "journal_mode" => {
                if self.options.journal_dev.is_none() {
                    return Err(wrong(
                        "raid4/5/6 'journal_mode' is invalid without 'journal_dev'",
                    ));
                }
                let twice = "Only one raid4/5/6 'journal_mode' argument allowed";
                let mode = match value.to_ascii_lowercase().as_str() {
                    "writethrough" => Some(JournalMode::WriteThrough),
                    "writeback" => Some(JournalMode::WriteBack),
                    _ => None,
                };
                if self.options.journal_mode.is_some() {
                    return Err(wrong(twice));
                }
                let mode = mode.ok_or_else(|| wrong("Invalid 'journal_mode' argument"))?;
                self.options.journal_mode = Some(mode);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn member(&self, value: i32, reason: &str) -> Result<usize, TableError> {
        usize::try_from(value)
            .ok()
            .filter(|index| *index < self.members)
            .ok_or_else(|| wrong(reason))
    }

    fn with_number(&mut self, key: &str, value: i32) -> Result<(), TableError> {
        let not_negative = |reason: &str| u32::try_from(value).map_err(|_| wrong(reason));
        let raid1 = self.raid_type.is_raid1();
        match key {
            "rebuild" => {
                let index = self.member(value, "Invalid rebuild index given")?;
                if self.options.rebuild.contains(&index) {
                    return Err(wrong("rebuild for this index already given"));
                }
                self.options.rebuild.push(index);
            }
            "write_mostly" if !raid1 => {
                return Err(wrong("write_mostly option is only valid for RAID1"));
            }
            "write_mostly" => {
                let index = self.member(value, "Invalid write_mostly index given")?;
                self.options.write_mostly.push(index);
            }
            "max_write_behind" if !raid1 => {
                return Err(wrong("max_write_behind option is only valid for RAID1"));
            }
            "max_write_behind" => {
                let place = &mut self.options.max_write_behind;
                let kibibytes = u32::try_from(value / 2).unwrap_or(0);
                once(
                    place,
                    kibibytes,
                    "Only one max_write_behind argument pair allowed",
                )?;
                if value < 0 || value / 2 > WRITE_BEHIND_MAX {
                    return Err(wrong("Max write-behind limit out of range"));
                }
            }
            "daemon_sleep" => {
                let value = not_negative("daemon sleep period out of range");
                let twice = "Only one daemon_sleep argument pair allowed";
                if self.options.daemon_sleep.is_some() {
                    return Err(wrong(twice));
                }
                self.options.daemon_sleep = Some(value?);
            }
            _ => return self.with_size(key, value),
        }
        Ok(())
    }

    fn with_size(&mut self, key: &str, value: i32) -> Result<(), TableError> {
        let number = u32::try_from(value).ok();
        let options = &mut self.options;
        let twice = |key: &str| wrong(format!("Only one {key} argument pair allowed"));
        match key {
            "data_offset" => {
                let offset = number.filter(|_| {
                    value == 0 || value >= RESHAPE_SPACE_MIN && value % PAGE_SECTORS == 0
                });
                if options.data_offset.is_some() {
                    return Err(twice(key));
                }
                let offset = offset.ok_or_else(|| wrong("Bogus data_offset value"))?;
                options.data_offset = Some(offset);
            }
            "delta_disks" => {
                if options.delta_disks.replace(value).is_some() {
                    return Err(twice(key));
                }
                let most = MEMBERS_MAX as u32 - self.raid_type.members_min;
                if !(1..=most).contains(&value.unsigned_abs()) {
                    return Err(wrong("Too many delta_disk requested"));
                }
            }
            "stripe_cache" => {
                if options.stripe_cache.is_some() {
                    return Err(twice(key));
                }
                if !self.raid_type.is_parity() {
                    return Err(wrong("Inappropriate argument: stripe_cache"));
                }
                let entries = number.ok_or_else(|| wrong("Bogus stripe cache entries value"))?;
                options.stripe_cache = Some(entries);
            }
            "min_recovery_rate" | "max_recovery_rate" => {
                let place = if key.starts_with("min") {
                    &mut options.min_rate
                } else {
                    &mut options.max_rate
                };
                if place.is_some() {
                    return Err(twice(key));
                }
                *place = Some(number.ok_or_else(|| wrong(format!("{key} out of range")))?);
            }
            "region_size" => {
                // COMPAT: a negative one is a very large one.
                let size = u64::from(value.cast_unsigned());
                if options.region_size.replace(size).is_some() {
                    return Err(twice(key));
                }
            }
            "raid10_copies" => {
                if options.raid10_copies.is_some() {
                    return Err(twice(key));
                }
                let copies = number.filter(|n| *n >= 2 && u64::from(*n) <= self.members as u64);
                options.raid10_copies =
                    Some(copies.ok_or_else(|| wrong("Bad value for 'raid10_copies'"))?);
            }
            _ => return Err(wrong("Unable to parse RAID parameter")),
        }
        Ok(())
    }

    /// What does not go together.
    fn check(&self) -> Result<(), TableError> {
        let options = &self.options;
        if options.sync && options.nosync {
            return Err(wrong("sync and nosync are mutually exclusive"));
        }
        if !options.rebuild.is_empty() && (options.sync || options.nosync) {
            return Err(wrong("sync/nosync and rebuild are mutually exclusive"));
        }
        if options.write_mostly.len() >= self.members {
            return Err(wrong("Can't set all raid1 devices to write_mostly"));
        }
        let max = options.max_rate.filter(|max| *max > 0);
        if max.is_some_and(|max| options.min_rate.unwrap_or(0) > max) {
            return Err(wrong("Bogus recovery rates"));
        }
        Ok(())
    }

    /// md's layout word, and the copies.
    fn layout(&self) -> Result<(u32, u32), TableError> {
        let copies = self.options.raid10_copies.unwrap_or(2);
        if !self.raid_type.is_raid10() {
            return Ok((self.raid_type.algorithm, copies));
        }
        if u64::from(copies) > self.members as u64 {
            return Err(wrong("Not enough devices to satisfy specification"));
        }
        let near_sets = self.options.near_sets;
        let format = self.options.raid10_format;
        let format = format.unwrap_or(raid_type::RAID10_DEFAULT);
        let layout = raid_type::raid10_layout(format, copies, near_sets);
        if near_sets && raid_type::is_near(layout) {
            return Err(wrong(
                "RAID10 format 'near' and 'raid10_use_near_sets' are incompatible",
            ));
        }
        Ok((layout, copies))
    }

    /// Whether the level knows what the line says.
    fn check_for_type(&self) -> Result<(), TableError> {
        let options = &self.options;
        let t = self.raid_type;
        let redundant = !t.is_raid0();
        let said_and_known = [
            (options.sync, redundant),
            (options.nosync, redundant && t.level != 6),
            (!options.rebuild.is_empty(), redundant),
            (options.daemon_sleep.is_some(), redundant),
            (options.min_rate.is_some(), redundant),
            (options.max_rate.is_some(), redundant),
            (options.region_size.is_some(), redundant),
            (options.delta_disks.is_some(), redundant),
            (options.raid10_copies.is_some(), t.is_raid10()),
            (options.near_sets, t.is_raid10()),
        ];
        if said_and_known.iter().any(|(said, known)| *said && !known) {
            return Err(wrong("Invalid flags combination"));
        }
        Ok(())
    }
}
