//! What a `raid` line says of itself.
//!
//! Status: `<type> <members> <health> <synced>/<total> <action> <mismatches> <data offset> <journal>`; health is a letter for each member:
//! `A` in sync, `a` alive and not in sync, `D` dead, `-` not there.

use thinmap_units::Sector;

use super::args::NAME;
use super::array::Array;
use super::assemble::Start;
use super::level::SyncKind;
use super::line::{RaidLine, VERSION};
use super::members::MemberState;
use super::raid_type::{RaidType, copies, format_name};
use super::sync::Action;
use crate::args::measured;

/// A line's state in short.
struct Shown {
    states: Vec<MemberState>,
    action: Action,
    /// Where a sync is; for an idle array, how far its members agree.
    progress: Sector,
    total: Sector,
    mismatches: u64,
    data_offset: Sector,
}

impl Shown {
    fn of_array(array: &Array) -> Self {
        let action = array.action();
        let sync = array.sync.lock();
        let total = array.level.sync_len();
        let progress = match action {
            Action::Idle => array.resynced(),
            _ => sync.completed(),
        };
        Self {
            states: array.members.iter().map(|member| member.state()).collect(),
            action,
            progress: progress.min(total),
            total,
            mismatches: sync.mismatches(),
            data_offset: array.members.member(0).data_offset(),
        }
    }

    fn of_preview(line: &RaidLine) -> Self {
        let state = |start: &Start| match start {
            Start::Missing => MemberState::Missing,
            Start::Failed => MemberState::Failed,
            Start::InSync => MemberState::InSync,
            Start::Rebuild { .. } => MemberState::Rebuilding,
        };
        Self {
            states: line.preview.starts.iter().map(state).collect(),
            action: Action::Idle,
            progress: line.preview.resync_from.min(line.member_len),
            total: line.member_len,
            mismatches: 0,
            data_offset: line.preview.data_offset,
        }
    }

    /// A letter for each member, by the kernel's rules.
    fn health(&self, raid0: bool) -> String {
        let all_in_sync = self
            .states
            .iter()
            .all(|state| matches!(state, MemberState::InSync | MemberState::Missing));
        let complete = self.progress >= self.total;
        let (resyncing, in_sync) = match self.action {
            _ if raid0 => (false, true),
            Action::Sync(SyncKind::Resync) => (true, false),
            Action::Sync(SyncKind::Check | SyncKind::Repair) => (false, true),
            Action::Sync(SyncKind::Recover) => (false, false),
            Action::Idle if complete => (false, false),
            Action::Idle | Action::Frozen => (false, all_in_sync),
        };
        let letter = |state: &MemberState| match state {
            MemberState::Missing => '-',
            MemberState::Failed => 'D',
            _ if resyncing => 'a',
            MemberState::Rebuilding if !in_sync => 'a',
            _ => 'A',
        };
        self.states.iter().map(letter).collect()
    }

    fn action_word(&self) -> &'static str {
        match self.action {
            Action::Idle => "idle",
            Action::Frozen => "frozen",
            Action::Sync(SyncKind::Resync) => "resync",
            Action::Sync(SyncKind::Recover) => "recover",
            Action::Sync(SyncKind::Check) => "check",
            Action::Sync(SyncKind::Repair) => "repair",
        }
    }
}

impl RaidLine {
    fn shown(&self) -> Shown {
        let mut shown = match &*self.array.load() {
            Some(held) => Shown::of_array(&held.0),
            None => Shown::of_preview(self),
        };
        if self.args.raid_type.is_raid0() {
            shown.progress = shown.total;
            if shown.action != Action::Frozen {
                shown.action = Action::Idle;
            }
        }
        shown
    }

    /// The type's name as md's words have it: of several names for one layout, the last.
    fn type_name(&self) -> &'static str {
        let t = self.args.raid_type;
        RaidType::of(t.level, self.args.layout).map_or(t.name, |t| t.name)
    }

    /// STATUSTYPE_INFO.
    pub fn info(&self, out: &mut String) {
        let shown = self.shown();
        out.push_str(&format!(
            "{} {} {} {}/{} {} {} {} -",
            self.type_name(),
            self.devices.len(),
            shown.health(self.args.raid_type.is_raid0()),
            shown.progress,
            shown.total,
            shown.action_word(),
            shown.mismatches,
            shown.data_offset
        ));
    }

    /// STATUSTYPE_TABLE, in the kernel's order.
    pub fn table(&self, out: &mut String) {
        let words = self.parameter_words();
        out.push_str(&format!(
            "{} {} {}",
            self.args.raid_type.name,
            1 + words.len(),
            self.args.chunk
        ));
        for word in words {
            out.push(' ');
            out.push_str(&word);
        }
        out.push_str(&format!(" {}", self.devices.len()));
        let name = |device: &Option<thinmap_dm::DeviceUse>| {
            device
                .as_ref()
                .map_or_else(|| "-".to_owned(), ToString::to_string)
        };
        for (meta, data) in &self.devices {
            out.push_str(&format!(" {} {}", name(meta), name(data)));
        }
    }

    fn parameter_words(&self) -> Vec<String> {
        let options = &self.args.options;
        let mut words = Vec::new();
        if options.sync {
            words.push("sync".to_owned());
        }
        if options.nosync {
            words.push("nosync".to_owned());
        }
        // COMPAT: the kernel counts the word and does not say it, so that its line cannot be loaded again.
        if options.near_sets {
            words.push("raid10_use_near_sets".to_owned());
        }
        fn pair(words: &mut Vec<String>, key: &str, value: Option<impl ToString>) {
            if let Some(value) = value {
                words.extend([key.to_owned(), value.to_string()]);
            }
        }
        let mut indexes = options.rebuild.clone();
        indexes.sort_unstable();
        for index in indexes {
            pair(&mut words, "rebuild", Some(index));
        }
        pair(&mut words, "daemon_sleep", options.daemon_sleep);
        pair(&mut words, "min_recovery_rate", options.min_rate);
        pair(&mut words, "max_recovery_rate", options.max_rate);
        let mut indexes = options.write_mostly.clone();
        indexes.sort_unstable();
        indexes.dedup();
        for index in indexes {
            pair(&mut words, "write_mostly", Some(index));
        }
        pair(&mut words, "max_write_behind", options.max_write_behind);
        let entries = options.stripe_cache.map(|_| self.args.stripe_cache());
        pair(&mut words, "stripe_cache", entries);
        let region = options.region_size.map(|_| self.args.region);
        pair(&mut words, "region_size", region);
        let layout = self.args.layout;
        let told = options.raid10_copies.map(|_| copies(layout));
        pair(&mut words, "raid10_copies", told);
        let told = options.raid10_format.map(|_| format_name(layout));
        pair(&mut words, "raid10_format", told);
        pair(&mut words, "delta_disks", options.delta_disks);
        pair(&mut words, "data_offset", options.data_offset);
        words
    }

    /// STATUSTYPE_IMA.
    pub fn measurement(&self, out: &mut String) {
        let shown = self.shown();
        out.push_str(&format!(
            "{},raid_type={},raid_disks={},raid_state={}",
            measured(NAME, VERSION),
            self.type_name(),
            self.devices.len(),
            shown.action_word()
        ));
        let letters = shown.health(self.args.raid_type.is_raid0());
        for (index, letter) in letters.chars().enumerate() {
            out.push_str(&format!(",raid_device_{index}_status={letter}"));
        }
        if self.args.raid_type.is_parity() {
            out.push_str(",journal_dev_mode=writethrough");
        }
        out.push(';');
    }
}
