//! In which order devices come back, and what each waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use thinmap_units::DevNo;

use crate::devices::Device;
use crate::question::Question;
use crate::state::{SavedDevice, SavedTable};

/// A device on its way back.
pub(crate) struct Returning {
    pub saved: SavedDevice,
    pub device: Arc<Device>,
    /// Where it stands in an order in which each comes after those that its tables name.
    pub place: usize,
    pub live_on: StandsOn,
    pub inactive_on: StandsOn,
    /// What is not back.
    pub late: Tables,
}

/// What a table needs.
#[derive(Default)]
pub(crate) struct StandsOn {
    /// What it names that is not ours.
    pub backings: BTreeSet<String>,
    /// Devices of ours that it names, and those without which it must not be live.
    pub ours: BTreeSet<DevNo>,
}

/// Some of a device's two tables.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tables {
    pub live: bool,
    pub inactive: bool,
}

impl Returning {
    /// What of it, late so far, waits for nothing more: first the live table, then the inactive one.
    pub fn ready(&self, question: &Question, unserved: &BTreeSet<DevNo>) -> Tables {
        let waits = |on: &StandsOn| on.waits_for(question, unserved, unserved).is_some();
        let live = self.late.live && !waits(&self.live_on);
        Tables {
            live,
            inactive: self.late.inactive && (live || !self.late.live) && !waits(&self.inactive_on),
        }
    }

    /// Whether one of its tables needs the other device.
    pub fn needs(&self, other: DevNo) -> bool {
        self.live_on.ours.contains(&other) || self.inactive_on.ours.contains(&other)
    }
}

impl StandsOn {
    /// What it waits for, if it does, while files on the devices `unserved` cannot be opened, and the devices `late` have no table.
    pub fn waits_for(
        &self,
        question: &Question,
        unserved: &BTreeSet<DevNo>,
        late: &BTreeSet<DevNo>,
    ) -> Option<String> {
        let waits =
            |backing: &&String| question.is_silent(backing) || question.lies_on(backing, unserved);
        let backing = self.backings.iter().find(waits).cloned();
        let below = || self.ours.intersection(late).next().map(DevNo::to_string);
        backing.or_else(below)
    }
}

/// What a table names that is not one of our devices.
pub(crate) fn backings<'a>(
    table: &'a SavedTable,
    ours: &'a BTreeSet<DevNo>,
) -> impl Iterator<Item = String> + 'a {
    let is_ours = |word: &str| word.parse::<DevNo>().is_ok_and(|no| ours.contains(&no));
    table
        .devices()
        .filter(move |word| !is_ours(word))
        .map(str::to_owned)
}

/// The devices in an order in which each comes after those that its tables name, and an origin after its snapshots.
pub(crate) fn bottom_up(
    adopted: Vec<(SavedDevice, Arc<Device>)>,
    ours: &BTreeSet<DevNo>,
) -> Vec<Returning> {
    let mut snapshots: BTreeMap<String, BTreeSet<DevNo>> = BTreeMap::new();
    for (saved, _) in &adopted {
        for origin in saved.live.iter().flat_map(SavedTable::origins_kept) {
            let of_origin = snapshots.entry(origin.to_owned()).or_default();
            of_origin.insert(saved.dev_no());
        }
    }
    let with_number = |one: (SavedDevice, _)| (one.0.dev_no(), one);
    let mut sort = Sort {
        left: adopted.into_iter().map(with_number).collect(),
        ours,
        snapshots,
        order: Vec::new(),
    };
    while let Some((dev_no, _)) = sort.left.first_key_value() {
        sort.visit(*dev_no);
    }
    sort.order
}

struct Sort<'a> {
    left: BTreeMap<DevNo, (SavedDevice, Arc<Device>)>,
    ours: &'a BTreeSet<DevNo>,
    /// By their origins' names.
    snapshots: BTreeMap<String, BTreeSet<DevNo>>,
    order: Vec<Returning>,
}

impl Sort<'_> {
    fn visit(&mut self, dev_no: DevNo) {
        let Some((saved, device)) = self.left.remove(&dev_no) else {
            return;
        };
        let [live_on, inactive_on] =
            [&saved.live, &saved.inactive].map(|table| self.stands_on(dev_no, table.as_ref()));
        live_on
            .ours
            .union(&inactive_on.ours)
            .for_each(|below| self.visit(*below));
        self.order.push(Returning {
            saved,
            device,
            place: self.order.len(),
            live_on,
            inactive_on,
            late: Tables::default(),
        });
    }

    fn stands_on(&self, dev_no: DevNo, table: Option<&SavedTable>) -> StandsOn {
        let Some(table) = table else {
            return StandsOn::default();
        };
        let of_origins = table
            .origins_changed()
            .filter_map(|origin| self.snapshots.get(origin));
        let all = table.numbers().chain(of_origins.flatten().copied());
        StandsOn {
            backings: backings(table, self.ours).collect(),
            ours: all
                .filter(|no| *no != dev_no && self.ours.contains(no))
                .collect(),
        }
    }
}
