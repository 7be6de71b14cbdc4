//! The administrator of one target: makes its devices, suspends, reloads, sends messages.

use std::sync::Arc;

use thinmap_control::{
    DeviceSelector, DmError, DmService, StatusKind, StatusQuery, SuspendOptions, TableLine,
};
use thinmap_daemon::Daemon;
use thinmap_dm::{
    DeviceId, DeviceName, DeviceOpener, DeviceUse, KeptMemory, OpenDevice, OpenDeviceError,
    SharedState,
};
use thinmap_units::{DevNo, DmName, Sector};

use super::bench::Bench;
use super::keeper::Keeper;
use super::plan::{Kind, MAIN, Plan, SNAP};

/// See the module.
pub struct Desk {
    bench: Arc<Bench>,
    daemon: Arc<Daemon>,
    keeper: Option<Arc<Keeper>>,
    kept: Arc<KeptMemory>,
    suspended: bool,
    /// `snapshot-merge` has taken the place of origin and snapshot.
    pub is_merging: bool,
}

/// The disks, by number.
struct Shelf(Arc<Bench>);

impl DeviceOpener for Shelf {
    fn open(&self, request: OpenDevice<'_>) -> Result<DeviceUse, OpenDeviceError> {
        let dev_no = request.spec.parse::<DevNo>().ok();
        let disk = dev_no.and_then(|dev_no| self.0.disks.get(dev_no.minor as usize));
        let (Some(dev_no), Some(disk)) = (dev_no, disk) else {
            return Err(OpenDeviceError {
                reason: format!("{}: no such disk", request.spec),
                errno: 19,
            });
        };
        Ok(DeviceUse {
            dev: disk.clone(),
            id: DeviceId::Block(dev_no),
            name: DeviceName::Number(dev_no),
            read_only: request.read_only,
            claim: Arc::new(()),
        })
    }
}

const NAMES: [&str; 2] = ["main", "snap"];

fn named(name: &str) -> DmName {
    DmName::new(name).expect("a short name")
}

fn selector(name: &str) -> DeviceSelector {
    DeviceSelector::Name(named(name))
}

impl Desk {
    /// Starts a daemon.
    pub fn new(bench: Arc<Bench>, is_merging: bool) -> Self {
        let outside = Arc::new(Shelf(bench.clone()));
        let shared = SharedState::default();
        let kept = shared.of::<KeptMemory>();
        let left = bench.kept.lock().take();
        kept.set_bringing_back(left.is_some());
        let keeper = bench.plan.keeper.then(|| {
            let keeper = Arc::new(Keeper::new(left.unwrap_or_default()));
            kept.set(keeper.clone());
            keeper
        });
        let daemon = Daemon::without_host(bench.executor.clone(), outside, shared)
            .expect("the simulated spawner never refuses");
        Self {
            bench,
            daemon,
            keeper,
            kept,
            suspended: false,
            is_merging,
        }
    }

    /// Who holds what must outlive the daemon.
    pub fn keeper(&self) -> Option<&Keeper> {
        self.keeper.as_deref()
    }

    fn plan(&self) -> &Plan {
        &self.bench.plan
    }

    fn has_snapshot(&self) -> bool {
        matches!(self.plan().kind, Kind::Snapshot | Kind::Merge) && !self.is_merging
    }

    /// Makes the devices and gives them to clients.
    ///
    /// # Errors
    /// When a table is refused.
    pub fn start(&self) -> Result<(), DmError> {
        let both = self.has_snapshot();
        for name in &NAMES[..1 + usize::from(both)] {
            self.daemon.create(&named(name), None, None)?;
            self.load(name)?;
        }
        if both {
            self.resume("snap")?;
        }
        self.resume("main")?;
        for (id, name) in [(MAIN, "main"), (SNAP, "snap")] {
            if let Some(device) = self.daemon.block_device(&named(name)) {
                self.bench.open(id, device);
            }
        }
        self.kept.set_bringing_back(false);
        self.keeper.iter().for_each(|keeper| keeper.ready());
        Ok(())
    }

    fn line(&self, name: &str) -> (&'static str, String) {
        let (target, params) = &self.plan().line;
        match (self.plan().kind, name) {
            (Kind::Snapshot | Kind::Merge, "main") if self.is_merging => {
                ("snapshot-merge", format!("7:0 7:1 {params}"))
            }
            (Kind::Snapshot | Kind::Merge, "main") => ("snapshot-origin", "7:0".to_owned()),
            (Kind::Snapshot | Kind::Merge, _) => (target, format!("7:0 7:1 {params}")),
            _ => (target, self.one_of(params)),
        }
    }

    /// These arguments, or others in their place.
    fn one_of(&self, params: &str) -> String {
        let others = &self.plan().others;
        if others.is_empty() {
            return params.to_owned();
        }
        let which = self.bench.draw(others.len() as u32 + 1) as usize;
        others.get(which).map_or(params, String::as_str).to_owned()
    }

    fn load(&self, name: &str) -> Result<(), DmError> {
        let (target, params) = self.line(name);
        let mut params = params;
        if self.bench.life > 0 {
            // Made once.
            params = match params.split_once(" nosync") {
                Some((head, rest)) => less_one_word(head, rest),
                None => params,
            };
        }
        self.load_line(name, target, params)
    }

    fn load_line(&self, name: &str, target: &str, params: String) -> Result<(), DmError> {
        let line = TableLine {
            start: Sector::ZERO,
            len: Sector(self.plan().len()),
            target: target.to_owned(),
            params,
        };
        self.bench.log(|| format!("load {name} {line:?}"));
        self.daemon
            .table_load(&selector(name), vec![line], false)
            .map(|_| ())
    }

    fn options(&self) -> SuspendOptions {
        SuspendOptions {
            lock_fs: false,
            no_flush: self.bench.draw(2) == 0,
        }
    }

    fn resume(&self, name: &str) -> Result<(), DmError> {
        let options = self.options();
        self.bench.log(|| format!("resume {name}"));
        self.daemon.resume(&selector(name), options).map(|_| ())
    }

    /// Does something.
    pub fn act(&mut self) {
        let what = self.bench.draw(8);
        self.bench.log(|| format!("command {what}"));
        let done = match what {
            0 | 1 if self.suspended => self.resume_main(),
            0 | 1 => self.suspend_main(),
            2 | 3 => self.reload(),
            _ => {
                self.say();
                Ok(())
            }
        };
        if let Err(error) = done
            && !self.plan().has_faults()
        {
            self.bench.fail(format!("a command failed: {error}"));
        }
    }

    fn suspend_main(&mut self) -> Result<(), DmError> {
        let options = self.options();
        self.daemon.suspend(&selector("main"), options)?;
        self.suspended = true;
        Ok(())
    }

    fn resume_main(&mut self) -> Result<(), DmError> {
        self.suspended = false;
        self.resume("main")
    }

    fn reload(&mut self) -> Result<(), DmError> {
        // A second merge is refused, as by a kernel; what has failed goes back to what was durable.
        let goes_back = match self.plan().kind {
            Kind::Clone => self.plan().has_faults(),
            Kind::Writecache | Kind::Integrity => self.bench.struck(),
            _ => false,
        };
        if self.is_merging || goes_back {
            return self.resume_main();
        }
        if self.has_snapshot() && self.bench.draw(2) == 0 {
            // A handover.
            self.load("snap")?;
            let options = self.options();
            self.daemon.suspend(&selector("snap"), options)?;
            return self.resume("snap");
        }
        self.suspended = false;
        self.load("main")?;
        let resumed = self.resume("main");
        if matches!(self.plan().kind, Kind::Writecache | Kind::Integrity) && self.bench.struck() {
            // It failed as it was suspended.
            self.bench.with_oracle(|oracle| oracle.died(false));
        }
        resumed
    }

    /// A message, or a look at the status.
    fn say(&self) {
        let words: &[&str] = match self.plan().kind {
            Kind::Raid1 | Kind::Raid10 | Kind::Raid5 | Kind::Raid6 => &[
                "check", "repair", "idle", "frozen", "resync", "recover", "idle",
            ],
            Kind::Clone => &[
                "enable_hydration",
                "disable_hydration",
                "enable_hydration",
                "hydration_threshold 3",
            ],
            Kind::Cache => &[
                "migration_threshold 0",
                "migration_threshold 64",
                "migration_threshold 100000",
            ],
            Kind::Writecache => &["flush", "flush_on_suspend", "clear_stats", "cleaner"],
            Kind::Era => &["checkpoint", "take_metadata_snap", "drop_metadata_snap"],
            _ => &[],
        };
        let which = self.bench.draw(words.len() as u32 + 1) as usize;
        match words.get(which) {
            Some(word) => {
                let _ = self.message(word);
            }
            None => {
                let _ = self.status("main");
            }
        }
    }

    fn message(&self, text: &str) -> Result<(), DmError> {
        self.bench.log(|| format!("message {text}"));
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        self.daemon
            .message(&selector("main"), Sector::ZERO, &words)
            .map(|_| ())
    }

    /// The status line.
    pub fn status(&self, name: &str) -> String {
        let query = StatusQuery {
            kind: StatusKind::Info,
            inactive: false,
            no_flush: true,
        };
        let status = self.daemon.table_status(&selector(name), query);
        let lines = status.ok().and_then(|status| status.lines);
        let first = lines.and_then(|lines| lines.into_iter().next());
        first.map(|line| line.params).unwrap_or_default()
    }

    /// Whether a snapshot or a merge has given up.
    pub fn is_invalid(&self) -> bool {
        let of = if self.is_merging { "main" } else { "snap" };
        let status = self.status(of);
        ["Invalid", "Overflow", "Merge failed"].contains(&status.as_str())
    }

    /// Begins to merge the snapshot back.
    pub fn merge(&mut self) {
        if !self.has_snapshot() || self.is_invalid() || !self.resume_all() {
            return;
        }
        self.bench.quiet();
        if self.bench.failed() || self.is_invalid() {
            return;
        }
        self.bench.close(SNAP);
        self.is_merging = true;
        self.suspended = false;
        let options = self.options();
        let merged = (|| {
            self.load("main")?;
            self.daemon.suspend(&selector("main"), options)?;
            self.daemon.suspend(&selector("snap"), options)?;
            self.bench.main_becomes_snap();
            self.resume("main")?;
            self.daemon.remove(&selector("snap"), false).map(|_| ())
        })();
        if let Err(error) = merged
            && !self.plan().has_faults()
        {
            self.bench.fail(format!("a merge does not begin: {error}"));
        }
    }

    /// A linear line in the place of one that can be taken away: it must hold the same. Whether that was done.
    pub fn leave(&self) -> bool {
        let to = match self.plan().kind {
            Kind::Merge if self.is_merging => self.merged_to(),
            Kind::Cache => self.cleaned_to(),
            Kind::Writecache => self.written_back_to(),
            _ => return false,
        };
        let Some(to) = to else {
            return true;
        };
        let linear = self.load_line("main", "linear", to.to_owned());
        if let Err(error) = linear.and_then(|()| self.resume("main")) {
            self.bench
                .fail(format!("no linear in the line's place: {error}"));
        }
        true
    }

    /// A merge that has ended leaves the origin as the snapshot was.
    fn merged_to(&self) -> Option<&'static str> {
        let status = self.status("main");
        let parts: Vec<&str> = status.split([' ', '/']).collect();
        (parts.len() == 3 && parts[0] == parts[2]).then_some("7:0 0")
    }

    /// A cache that is being cleaned leaves the origin as the line was.
    fn cleaned_to(&self) -> Option<&'static str> {
        let (_, params) = &self.plan().line;
        let head: Vec<&str> = params.split(' ').take(4).collect();
        let line = format!("{} 0 cleaner 0", head.join(" "));
        let cleaner = self.load_line("main", "cache", line);
        if let Err(error) = cleaner.and_then(|()| self.resume("main")) {
            self.bench.fail(format!("no cleaner: {error}"));
        }
        self.wait_until("never clean", &|| {
            self.status("main").split(' ').nth(DIRTY) == Some("0")
        });
        (!self.bench.failed()).then_some("7:2 0")
    }

    /// Steps until it is so, or the run has failed.
    fn wait_until(&self, never: &str, is_so: &dyn Fn() -> bool) {
        for _ in 0..100_000 {
            if is_so() || self.bench.failed() {
                return;
            }
            if !self.bench.step(None) {
                break;
            }
        }
        self.bench.fail(format!("{never}: {}", self.status("main")));
    }

    fn written_back_to(&self) -> Option<&'static str> {
        let asked = self.message("flush_on_suspend");
        if let Err(error) = asked {
            self.bench.fail(format!("flush_on_suspend: {error}"));
            return None;
        }
        Some("7:0 0")
    }

    /// Lets everything through again; `false` when it cannot be resumed.
    pub fn resume_all(&mut self) -> bool {
        for name in &NAMES[..1 + usize::from(self.has_snapshot())] {
            if self.is_suspended(name) {
                let _ = self.resume(name);
            }
        }
        self.suspended = self.is_suspended("main");
        !(self.suspended || self.has_snapshot() && self.is_suspended("snap"))
    }

    fn is_suspended(&self, name: &str) -> bool {
        let status = self.daemon.status(&selector(name));
        status.is_ok_and(|info| info.suspended)
    }

    /// Waits for an array's sync to end, and sees that its members agree.
    pub fn settle(&mut self, check: bool) {
        self.resume_all();
        let raid = self.plan().line.0 == "raid";
        let mirror = self.plan().kind == Kind::Mirror;
        let merge = self.is_merging && !self.is_invalid();
        let fails = self.plan().faults[self.bench.life].is_some();
        if !raid && !mirror && !merge || mirror && fails {
            return;
        }
        if raid {
            let _ = self.message("idle");
        }
        let is_idle = || {
            let status = self.status("main");
            let words: Vec<&str> = status.split(' ').collect();
            if raid {
                return words.get(4) == Some(&"idle");
            }
            if merge {
                let parts: Vec<&str> = status.split([' ', '/']).collect();
                return parts.len() != 3 || parts[0] == parts[2];
            }
            let legs: usize = words[0].parse().unwrap_or(0);
            let (have, all) = words[legs + 1].split_once('/').unwrap_or(("", ""));
            have == all
        };
        let wait = || self.wait_until("never settles", &is_idle);
        wait();
        if check && raid && !self.bench.failed() {
            let _ = self.message("check");
            wait();
            let status = self.status("main");
            if status.split(' ').nth(5) != Some("0") {
                self.bench.fail(format!("members differ: {status}"));
            }
        }
    }

    /// Ends the daemon in good order. Whether that went well.
    pub fn stop(&mut self) -> bool {
        self.resume_all();
        [MAIN, SNAP].iter().for_each(|id| self.bench.close(*id));
        let _ = self.daemon.remove_all(false);
        self.daemon.list_devices().map_or(0, |list| list.len()) == 0
    }

    /// Ends the daemon by force; how many devices could not be removed.
    pub fn stop_by_force(&mut self) -> usize {
        [MAIN, SNAP].iter().for_each(|id| self.bench.close(*id));
        self.daemon.stop_by_force()
    }
}

/// Where a cache's status tells of dirty blocks.
const DIRTY: usize = 10;

/// `... <level> <n> <words> nosync ...` without that word.
fn less_one_word(head: &str, rest: &str) -> String {
    let mut words: Vec<String> = head.split(' ').map(str::to_owned).collect();
    let count: usize = words[1].parse().unwrap_or(1);
    words[1] = (count - 1).to_string();
    format!("{}{rest}", words.join(" "))
}
