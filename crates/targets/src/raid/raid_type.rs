//! The names of levels and layouts, and md's words for them.

use thinmap_units::Sector;

/// One name that a table line may begin with.
#[derive(Debug)]
pub(super) struct RaidType {
    /// As tables name it.
    pub name: &'static str,
    /// Members' worth of parity.
    pub parity: usize,
    /// md's level; raid4 is level 5.
    pub level: u32,
    /// md's layout; of raid10 one of the `RAID10_` numbers.
    pub algorithm: u32,
    /// As few members as such an array may have.
    pub members_min: u32,
}

/// md's numbers of raid10's formats in [`RaidType::algorithm`].
pub(super) const RAID10_DEFAULT: u32 = 0;
pub(super) const RAID10_NEAR: u32 = 1;
pub(super) const RAID10_OFFSET: u32 = 2;
pub(super) const RAID10_FAR: u32 = 3;

/// In md's layout word of raid10: copies in adjacent rows; far copies stay inside sets.
const LAYOUT_OFFSET: u32 = 1 << 16;
const LAYOUT_FAR_SETS: u32 = 1 << 18;

const fn raid_type(
    name: &'static str,
    parity: usize,
    members_min: u32,
    level: u32,
    algorithm: u32,
) -> RaidType {
    RaidType {
        name,
        parity,
        level,
        algorithm,
        members_min,
    }
}

/// All of them, in the order in which a layout is looked for from the end.
static TYPES: &[RaidType] = &[
    raid_type("raid0", 0, 2, 0, 0),
    raid_type("raid1", 0, 2, 1, 0),
    raid_type("raid10_far", 0, 2, 10, RAID10_FAR),
    raid_type("raid10_offset", 0, 2, 10, RAID10_OFFSET),
    raid_type("raid10_near", 0, 2, 10, RAID10_NEAR),
    raid_type("raid10", 0, 2, 10, RAID10_DEFAULT),
    raid_type("raid4", 1, 2, 5, 4),
    raid_type("raid5_n", 1, 2, 5, 5),
    raid_type("raid5_ls", 1, 2, 5, 2),
    raid_type("raid5_rs", 1, 2, 5, 3),
    raid_type("raid5_la", 1, 2, 5, 0),
    raid_type("raid5_ra", 1, 2, 5, 1),
    raid_type("raid6_zr", 2, 4, 6, 8),
    raid_type("raid6_nr", 2, 4, 6, 9),
    raid_type("raid6_nc", 2, 4, 6, 10),
    raid_type("raid6_n_6", 2, 4, 6, 5),
    raid_type("raid6_ls_6", 2, 4, 6, 18),
    raid_type("raid6_rs_6", 2, 4, 6, 19),
    raid_type("raid6_la_6", 2, 4, 6, 16),
    raid_type("raid6_ra_6", 2, 4, 6, 17),
];

impl RaidType {
    /// The type of a name, in either case.
    pub fn named(name: &str) -> Option<&'static Self> {
        TYPES.iter().find(|t| t.name.eq_ignore_ascii_case(name))
    }

    /// The type that md's level and layout belong to.
    pub fn of(level: u32, layout: u32) -> Option<&'static Self> {
        let fits = |t: &&RaidType| {
            let format = t.level == 10
                && match t.algorithm {
                    RAID10_DEFAULT | RAID10_NEAR => is_near(layout),
                    RAID10_OFFSET => is_offset(layout),
                    _ => is_far(layout),
                };
            t.level == level && (format || t.algorithm == layout)
        };
        TYPES.iter().rev().find(fits)
    }

    pub fn is_raid0(&self) -> bool {
        self.level == 0
    }

    pub fn is_raid1(&self) -> bool {
        self.level == 1
    }

    pub fn is_raid10(&self) -> bool {
        self.level == 10
    }

    /// raid4, raid5, raid6.
    pub fn is_parity(&self) -> bool {
        matches!(self.level, 4..=6)
    }
}

/// md's layout word for a format and a number of copies.
pub(super) fn raid10_layout(format: u32, copies: u32, near_sets: bool) -> u32 {
    let sets = if near_sets { 0 } else { LAYOUT_FAR_SETS };
    match format {
        RAID10_OFFSET => LAYOUT_OFFSET | sets | copies << 8 | 1,
        RAID10_FAR => sets | copies << 8 | 1,
        _ => 1 << 8 | copies,
    }
}

/// Copies in neighbouring members of one row.
pub(super) fn near_copies(layout: u32) -> u32 {
    layout & 0xff
}

/// Copies in other rows.
pub(super) fn far_copies(layout: u32) -> u32 {
    layout >> 8 & 0xff
}

/// Copies, as the table tells them.
pub(super) fn copies(layout: u32) -> u32 {
    near_copies(layout).max(far_copies(layout))
}

pub(super) fn is_offset(layout: u32) -> bool {
    layout & LAYOUT_OFFSET != 0
}

pub(super) fn is_near(layout: u32) -> bool {
    !is_offset(layout) && near_copies(layout) > 1
}

pub(super) fn is_far(layout: u32) -> bool {
    !is_offset(layout) && far_copies(layout) > 1
}

/// The format's word in a table line.
pub(super) fn format_name(layout: u32) -> &'static str {
    if is_offset(layout) {
        "offset"
    } else if near_copies(layout) > 1 {
        "near"
    } else if far_copies(layout) > 1 {
        "far"
    } else {
        "unknown"
    }
}

/// What a line of `len` uses of each member; `None` when it cannot be dealt out evenly.
pub(super) fn member_len(
    raid_type: &RaidType,
    members: usize,
    copies: u32,
    len: Sector,
) -> Option<Sector> {
    let members = members as u64;
    let (total, by) = if raid_type.is_raid1() {
        (len.raw(), 1)
    } else if raid_type.is_raid10() {
        (len.raw().checked_mul(u64::from(copies))?, members)
    } else {
        (len.raw(), members - raid_type.parity as u64)
    };
    total.is_multiple_of(by).then(|| Sector(total / by))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_found_by_mds_words() {
        for t in TYPES.iter().filter(|t| !t.is_raid10()) {
            let found = RaidType::of(t.level, t.algorithm).expect("known");
            assert_eq!(found.name, t.name);
        }
        let of = |format, copies| RaidType::of(10, raid10_layout(format, copies, false));
        let name = |format, copies| of(format, copies).expect("known").name;
        assert_eq!(name(RAID10_DEFAULT, 2), "raid10");
        assert_eq!(name(RAID10_FAR, 2), "raid10_far");
        assert_eq!(name(RAID10_OFFSET, 3), "raid10_offset");
        assert_eq!(raid10_layout(RAID10_NEAR, 2, false), 0x102);
        assert_eq!(raid10_layout(RAID10_FAR, 2, false), 0x4_0201);
        assert_eq!(raid10_layout(RAID10_OFFSET, 2, false), 0x5_0201);
    }
}
