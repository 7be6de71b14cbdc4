//! What the superblocks of all members together say: which members are good, from where the array must be resynced.
//!
//! Follows Linux `dm-raid.c` (`analyse_superblocks` and what `raid_ctr` does next) step by step, as what it takes for a new array, for a
//! replaced member or for a mistake decides over data. Touches nothing: writing is the keeper's.

use thinmap_dm::TableError;
use thinmap_units::Sector;

use super::args::{Args, NAME};
use super::members::MAX_SECTOR;
use super::raid_type::{self, RaidType};
use super::superblock::SuperblockDisk;

/// One member as it was found.
#[derive(Default)]
pub(super) struct Found {
    /// There is a data device.
    pub has_data: bool,
    /// There is a metadata device.
    pub has_meta: bool,
    /// Its first block could not be read.
    pub unreadable: bool,
    /// What is in it.
    pub superblock: Option<SuperblockDisk>,
}

/// What a member begins as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Start {
    Missing,
    Failed,
    InSync,
    /// Good up to there.
    Rebuild {
        from: Sector,
        /// What it lacks is in the bitmap: it was a member before.
        by_bitmap: bool,
    },
}

/// An array, put together.
#[derive(Debug)]
pub(super) struct Assembled {
    pub starts: Vec<Start>,
    /// No member had a superblock: bitmap and superblocks are made.
    pub is_new: bool,
    pub events: u64,
    /// The members agree up to there (in the sync space).
    pub resync_from: Sector,
    /// There are superblocks, so there is a bitmap.
    pub has_metadata: bool,
    /// Sectors before the data of every member, now and after a reshape that may be asked for.
    pub data_offset: Sector,
    pub new_data_offset: Sector,
}

struct Role {
    in_sync: bool,
    first_use: bool,
    faulty: bool,
    by_bitmap: bool,
    /// The superblock could not be read.
    out: bool,
    recovered: Sector,
}

fn refuse(reason: impl Into<String>) -> TableError {
    TableError::invalid(NAME, reason)
}

const INVALID: &str = "Unable to assemble array: Invalid superblocks";

/// Puts an array together from its line and what was found. `member_len` is what the line uses of each member.
pub(super) fn assemble(
    args: &Args,
    found: &[Found],
    member_len: Sector,
) -> Result<Assembled, TableError> {
    let mut assembly = Assembly::new(args, found, member_len);
    let freshest = assembly.load();
    if let Some(freshest) = freshest {
        assembly.analyse(freshest)?;
    }
    assembly.decide()?;
    assembly.set_offsets();
    assembly.check_redundancy(freshest.is_some())?;
    Ok(assembly.finish(freshest.is_some()))
}

struct Assembly<'a> {
    args: &'a Args,
    found: &'a [Found],
    roles: Vec<Role>,
    member_len: Sector,
    old_member_len: Sector,
    is_new: bool,
    events: u64,
    resync_from: Sector,
    data_offset: Sector,
    new_data_offset: Sector,
    /// As of the superblocks.
    members: usize,
    level: u32,
    layout: u32,
    chunk: u32,
    array_len: Sector,
}

impl<'a> Assembly<'a> {
    fn new(args: &'a Args, found: &'a [Found], member_len: Sector) -> Self {
        let role = |(index, _): (usize, &Found)| {
            let rebuild = args.options.rebuild.contains(&index);
            Role {
                in_sync: !rebuild,
                first_use: false,
                faulty: false,
                by_bitmap: false,
                out: false,
                recovered: if rebuild { Sector::ZERO } else { MAX_SECTOR },
            }
        };
        Self {
            args,
            found,
            roles: found.iter().enumerate().map(role).collect(),
            member_len,
            old_member_len: member_len,
            is_new: false,
            events: 0,
            resync_from: MAX_SECTOR,
            data_offset: Sector::ZERO,
            new_data_offset: Sector::ZERO,
            members: found.len(),
            level: args.raid_type.level,
            layout: args.layout,
            chunk: args.chunk.raw() as u32,
            array_len: Sector::ZERO,
        }
    }

    /// Looks at each superblock; the one whose word counts.
    fn load(&mut self) -> Option<usize> {
        let mut freshest: Option<(usize, u64)> = None;
        for (index, found) in self.found.iter().enumerate() {
            if !found.has_meta || !found.has_data {
                continue;
            }
            let role = &mut self.roles[index];
            if found.unreadable {
                role.faulty = true;
                role.out = !self.args.raid_type.is_raid0();
                continue;
            }
            let rebuild = !role.in_sync && role.recovered == Sector::ZERO;
            let events = match &found.superblock {
                Some(superblock) if !rebuild => superblock.events,
                _ => {
                    role.first_use = true;
                    // Any superblock is better than none.
                    if freshest.is_none() {
                        freshest = Some((index, 0));
                    }
                    continue;
                }
            };
            if freshest.is_none_or(|(_, best)| events > best) {
                freshest = Some((index, events));
            }
        }
        freshest.map(|(index, _)| index)
    }

    /// The freshest superblock's word, then each member's own.
    fn analyse(&mut self, freshest: usize) -> Result<(), TableError> {
        if self.args.raid_type.is_raid0() {
            return Ok(());
        }
        self.take_from(freshest)?;
        self.count_new()?;
        self.mark_failed(freshest)?;
        self.validate(freshest)?;
        if !self.is_redundant() {
            return Err(refuse("Insufficient redundancy to activate array"));
        }
        for index in 0..self.roles.len() {
            if index != freshest {
                self.validate(index)?;
            }
        }
        Ok(())
    }

    /// The superblock that is used of a member: none of one that is new or to be rebuilt.
    fn superblock(&self, index: usize) -> Option<&'a SuperblockDisk> {
        let found = self.found[index].superblock.as_ref();
        found.filter(|_| !self.roles[index].first_use)
    }

    fn take_from(&mut self, freshest: usize) -> Result<(), TableError> {
        self.events = 1;
        let Some(superblock) = self.superblock(freshest) else {
            return Ok(());
        };
        if superblock.is_reshaping() {
            return Err(refuse(format!(
                "{INVALID}: a reshape is under way, which is not supported"
            )));
        }
        self.events = superblock.events.max(1);
        self.members = superblock.members as usize;
        self.level = superblock.level;
        self.layout = superblock.layout;
        self.chunk = superblock.chunk;
        self.array_len = superblock.array_len;
        if !self.args.options.nosync {
            self.resync_from = superblock.resynced;
        }
        Ok(())
    }

    /// Whether new members are there where the line says so, and all of them.
    fn count_new(&mut self) -> Result<(), TableError> {
        let present = (0..self.roles.len()).filter(|i| self.found[*i].has_data);
        let roles: Vec<&Role> = present.map(|index| &self.roles[index]).collect();
        let new = roles.iter().filter(|role| role.first_use).count();
        let rebuilds = roles.iter().filter(|role| !role.in_sync).count();
        let both = roles.iter().filter(|r| r.first_use && !r.in_sync).count();
        let delta = self.args.options.delta_disks.unwrap_or(0);
        if new == self.roles.len() || rebuilds == 0 {
            if new == self.roles.len() {
                self.is_new = true;
            } else if new != rebuilds && i32::try_from(new) != Ok(delta) {
                return Err(refuse(format!(
                    "{INVALID}: New device injected into existing raid set without 'delta_disks' or 'rebuild' parameter specified"
                )));
            }
        } else if new != 0 && new != rebuilds {
            return Err(refuse(format!(
                "{INVALID}: {rebuilds} 'rebuild' devices cannot be injected into a raid set with {new} other first-time devices"
            )));
        } else if both != 0 && rebuilds != both {
            return Err(refuse(format!(
                "{INVALID}: new device provided without 'rebuild'"
            )));
        }
        Ok(())
    }

    fn mark_failed(&mut self, freshest: usize) -> Result<(), TableError> {
        let word = self.superblock(freshest);
        for index in 0..self.roles.len() {
            let Some(superblock) = self.superblock(index).filter(|_| !self.roles[index].out) else {
                continue;
            };
            let position = superblock.position as usize;
            if position != index && !self.args.raid_type.is_raid1() {
                self.check_move()?;
            }
            if word.is_some_and(|word| word.has_failed(position)) {
                self.roles[index].faulty = true;
            }
        }
        Ok(())
    }

    fn check_move(&self) -> Result<(), TableError> {
        if self.level != 10 || !raid_type::is_near(self.layout) {
            return Err(refuse("Cannot change device positions in raid set"));
        }
        let copies = raid_type::near_copies(self.layout) as usize;
        if !self.members.is_multiple_of(copies.max(1))
            || !self.roles.len().is_multiple_of(self.args.copies as usize)
        {
            return Err(refuse("Cannot change raid10 near set to odd # of devices!"));
        }
        Ok(())
    }

    /// A member's own superblock.
    fn validate(&mut self, index: usize) -> Result<(), TableError> {
        let found = &self.found[index];
        if !found.has_meta || !found.has_data || self.roles[index].out {
            return Ok(());
        }
        if let Some(superblock) = self.superblock(index) {
            if superblock.has_unknown_features() {
                return Err(refuse(
                    "Unable to assemble array: Unknown flag(s) in compatible feature flags",
                ));
            }
            if superblock.incompat_features != 0 {
                return Err(refuse(
                    "Unable to assemble array: No incompatible feature flags supported yet",
                ));
            }
            if superblock.is_extended() {
                self.old_member_len = superblock.member_len;
                self.data_offset = superblock.data_offset;
                self.new_data_offset = superblock.new_data_offset;
            }
            let role = &mut self.roles[index];
            role.recovered = superblock.recovered;
            role.in_sync = role.recovered == MAX_SECTOR;
        }
        let role = &mut self.roles[index];
        role.first_use = false;
        // One that failed once and is there again: what it has missed is in the bitmap.
        if std::mem::replace(&mut role.faulty, false) {
            // One that failed before it was rebuilt to its end lacks more than that.
            role.by_bitmap = role.in_sync;
            role.recovered = Sector::ZERO;
            role.in_sync = false;
        }
        Ok(())
    }

    /// Whether so many members are good that there is an array. Asked when only the freshest superblock has been taken in.
    fn is_redundant(&self) -> bool {
        let is_bad = |index: usize| {
            let (role, found) = (&self.roles[index], &self.found[index]);
            !role.in_sync || !found.has_meta
        };
        let all = 0..self.roles.len();
        let bad = all.filter(|i| !self.roles[*i].first_use && is_bad(*i));
        let bad = bad.count();
        match self.args.raid_type.level {
            0 => true,
            1 => bad < self.members,
            4..=6 => bad <= self.args.raid_type.parity,
            _ => bad < self.args.copies as usize || self.groups_are_good(is_bad),
        }
    }

    /// raid10: more may be gone when no group has lost all of its copies.
    fn groups_are_good(&self, is_bad: impl Fn(usize) -> bool) -> bool {
        let copies = self.args.copies as usize;
        let members = self.roles.len().min(self.members);
        let near = raid_type::is_near(self.args.layout);
        let group = (members / copies).max(1);
        let last_begin = (members / group - 1) * group;
        let mut in_group = 0;
        for index in 0..members {
            if index % copies == 0 && (near || index <= last_begin) {
                in_group = 0;
            }
            in_group += usize::from(is_bad(index));
            if in_group >= copies {
                return false;
            }
        }
        true
    }

    /// What kind of table this is: a new array, a change, a rebuild, growth.
    fn decide(&mut self) -> Result<(), TableError> {
        let args = self.args;
        if args.raid_type.is_raid0() {
            self.resync_from = MAX_SECTOR;
            return Ok(());
        }
        if self.is_new {
            if args.raid_type.level == 6 && args.options.nosync {
                return Err(refuse("'nosync' not allowed for new raid6 set"));
            }
            self.resync_from = if args.options.nosync {
                MAX_SECTOR
            } else {
                Sector::ZERO
            };
            return Ok(());
        }
        self.check_conversion()?;
        if !args.options.rebuild.is_empty() {
            self.resync_from = MAX_SECTOR;
        } else if self.old_member_len < self.member_len {
            let old = if args.raid_type.is_raid10() {
                self.array_len
            } else {
                self.old_member_len
            };
            if !args.options.nosync || args.raid_type.level == 6 {
                self.resync_from = self.resync_from.min(old);
            }
        }
        // COMPAT: a kernel 6.1 does not look at superblocks then, and does not resync either.
        if args.options.sync {
            self.resync_from = Sector::ZERO;
        }
        Ok(())
    }

    /// Levels, layouts, chunks and the count of members stay what they are, but for raid1's members.
    fn check_conversion(&self) -> Result<(), TableError> {
        let args = self.args;
        let name = |level, layout| RaidType::of(level, layout).map_or("unknown", |t| t.name);
        if self.level != args.raid_type.level {
            return Err(refuse(format!(
                "takeover not possible: {} to {} is not supported",
                name(self.level, self.layout),
                args.raid_type.name
            )));
        }
        let members = self.members != self.roles.len() || args.options.delta_disks.is_some();
        let reshape = self.layout != args.layout || self.chunk != args.chunk.raw() as u32;
        if reshape || members && !args.raid_type.is_raid1() {
            return Err(TableError::new(
                NAME,
                format!(
                    "Reshape not supported: {} of {} members with chunks of {} to {} of {} with {}",
                    name(self.level, self.layout),
                    self.members,
                    self.chunk,
                    args.raid_type.name,
                    self.roles.len(),
                    args.chunk
                ),
                EPERM,
            ));
        }
        Ok(())
    }

    /// What the line says of space for a reshape is written down; none is ever begun.
    fn set_offsets(&mut self) {
        if let Some(asked) = self.args.options.data_offset {
            let asked = Sector(u64::from(asked));
            if asked == Sector::ZERO {
                self.data_offset = Sector::ZERO;
            }
            let used = self.data_offset != Sector::ZERO;
            self.new_data_offset = if used { Sector::ZERO } else { asked };
        }
    }

    /// What the level itself wants to run.
    fn check_redundancy(&self, has_metadata: bool) -> Result<(), TableError> {
        let failed = || TableError::new(NAME, "Failed to run raid array", EIO);
        let invalid = || TableError::new(NAME, "Failed to run raid array", EINVAL);
        let is_good = |index: usize| {
            let role = &self.roles[index];
            self.found[index].has_data && role.in_sync && !role.faulty
        };
        let total = self.roles.len();
        let good = (0..total).filter(|index| is_good(*index)).count();
        let t = self.args.raid_type;
        match t.level {
            0 if (0..total).any(|index| !self.found[index].has_data) => Err(invalid()),
            1 if good == 0 => Err(invalid()),
            4..=6 if total - good > t.parity => Err(failed()),
            // Parity may be wrong, so what a member lacks cannot be had from the others.
            4..=6 if good < total && self.resync_from < self.member_len => Err(failed()),
            // COMPAT: only superblocks tell the kernel the layout.
            10 if !has_metadata => Err(invalid()),
            10 => {
                let enough = super::raid10::Geometry::new(
                    self.args.layout,
                    total,
                    self.args.chunk,
                    self.member_len,
                )
                .ok_or_else(invalid)?
                .is_enough(&is_good);
                if enough { Ok(()) } else { Err(failed()) }
            }
            _ => Ok(()),
        }
    }

    fn finish(self, has_metadata: bool) -> Assembled {
        let start = |(index, role): (usize, &Role)| {
            if !self.found[index].has_data {
                Start::Missing
            } else if role.faulty {
                Start::Failed
            } else if role.in_sync {
                Start::InSync
            } else {
                Start::Rebuild {
                    from: role.recovered,
                    by_bitmap: role.by_bitmap,
                }
            }
        };
        Assembled {
            starts: self.roles.iter().enumerate().map(start).collect(),
            is_new: self.is_new,
            events: self.events,
            resync_from: self.resync_from,
            has_metadata,
            data_offset: self.data_offset,
            new_data_offset: self.new_data_offset,
        }
    }
}

const EPERM: i32 = 1;
const EIO: i32 = 5;
const EINVAL: i32 = 22;
