//! The administrator: device mapper's commands to the daemon, as the control socket would bring them, while clients go on.

use std::collections::BTreeSet;
use std::sync::Arc;

use thinmap_block::BlockDevice;
use thinmap_control::{
    DeviceSelector, DmError, DmService, StatusKind, StatusQuery, SuspendOptions, TableLine,
};
use thinmap_daemon::Daemon;
use thinmap_dm::{
    DeviceId, DeviceName, DeviceOpener, DeviceUse, OpenDevice, OpenDeviceError, SharedState,
};
use thinmap_targets::PoolTuning;
use thinmap_units::{DevNo, DmName, Sector};

use crate::oracle::Presence;
use crate::swarm::choose;
use crate::world::World;

const METADATA: DevNo = DevNo::new(7, 0);
const DATA: DevNo = DevNo::new(7, 1);
const ORIGIN: DevNo = DevNo::new(7, 2);
const LEG: DevNo = DevNo::new(7, 3);
const LOG: DevNo = DevNo::new(7, 4);
const POOL: &str = "pool";
const MIRROR: &str = "mirror";

/// What an administrator does; [`crate::swarm::Swarm::command_weights`] in this order.
#[derive(Clone, Copy, Debug)]
enum Command {
    CreateThin,
    CreateSnap,
    Delete,
    Open,
    Close,
    SuspendVolume,
    ReloadVolume,
    GrowVolume,
    GrowData,
    GrowMetadata,
    SuspendPool,
    MetadataSnap,
    TransactionId,
    ReloadPool,
}

const ALL: [Command; crate::swarm::COMMANDS] = [
    Command::CreateThin,
    Command::CreateSnap,
    Command::Delete,
    Command::Open,
    Command::Close,
    Command::SuspendVolume,
    Command::ReloadVolume,
    Command::GrowVolume,
    Command::GrowData,
    Command::GrowMetadata,
    Command::SuspendPool,
    Command::MetadataSnap,
    Command::TransactionId,
    Command::ReloadPool,
];

/// See the module.
pub struct Administrator {
    world: Arc<World>,
    daemon: Arc<Daemon>,
    open: BTreeSet<u32>,
    suspended: BTreeSet<u32>,
    pool_suspended: bool,
    data_blocks: u64,
    features: Vec<&'static str>,
    next_id: u32,
    transaction: u64,
}

/// The disks, by number.
struct Shelf(Arc<World>);

impl DeviceOpener for Shelf {
    fn open(&self, request: OpenDevice<'_>) -> Result<DeviceUse, OpenDeviceError> {
        let disk = match request.spec.parse::<DevNo>() {
            Ok(METADATA) => &self.0.metadata,
            Ok(DATA) => &self.0.data,
            Ok(ORIGIN) => &self.0.origin,
            Ok(LEG) => &self.0.leg,
            Ok(LOG) => &self.0.log,
            _ => {
                return Err(OpenDeviceError {
                    reason: format!("{}: no such disk", request.spec),
                    errno: 19,
                });
            }
        };
        let dev_no = request.spec.parse().unwrap_or(ORIGIN);
        Ok(DeviceUse {
            dev: disk.clone(),
            id: DeviceId::Block(dev_no),
            name: DeviceName::Number(dev_no),
            read_only: request.read_only,
            claim: Arc::new(()),
        })
    }
}

fn named(name: &str) -> DmName {
    DmName::new(name).expect("a short name")
}

fn selector(name: &str) -> DeviceSelector {
    DeviceSelector::Name(named(name))
}

impl Administrator {
    /// Starts a daemon.
    pub fn new(world: Arc<World>) -> Self {
        let shared = SharedState::default();
        shared.of::<PoolTuning>().set(world.swarm.sizes);
        let outside = Arc::new(Shelf(world.clone()));
        let daemon = Daemon::without_host(world.executor.clone(), outside, shared)
            .expect("the simulated spawner never refuses");
        let data_blocks = world.data.size().raw() / world.swarm.layout.block;
        let features = world.swarm.features.clone();
        Self {
            world,
            daemon,
            open: BTreeSet::new(),
            suspended: BTreeSet::new(),
            pool_suspended: false,
            data_blocks,
            features,
            next_id: 0,
            transaction: 0,
        }
    }

    /// Makes the pool and opens the volumes that there are.
    ///
    /// # Errors
    /// When the pool cannot be had.
    pub fn start(&mut self) -> Result<(), DmError> {
        self.start_mirror()?;
        self.daemon.create(&named(POOL), None, None)?;
        self.load_pool()?;
        self.world.with_oracle(|oracle| oracle.formatted = true);
        self.resume(POOL)?;
        let ids: Vec<u32> = self
            .world
            .with_oracle(|o| o.volumes.keys().copied().collect());
        for id in ids {
            self.next_id = self.next_id.max(id + 1);
            if let Some(device) = self.open_device(id) {
                self.world.read_all(id, &device);
                self.world.open(id, device);
            }
        }
        Ok(())
    }

    fn start_mirror(&self) -> Result<(), DmError> {
        let Some(plan) = self.world.swarm.mirror else {
            return Ok(());
        };
        let words = if plan.in_sync { " nosync" } else { "" };
        let (log, device) = if plan.disk_log {
            ("disk", format!("{LOG} "))
        } else {
            ("core", String::new())
        };
        let count = 1 + usize::from(plan.disk_log) + usize::from(plan.in_sync);
        let params = format!(
            "{log} {count} {device}{}{words} 2 {DATA} 0 {LEG} 0 2 handle_errors keep_log",
            plan.region
        );
        self.daemon.create(&named(MIRROR), None, None)?;
        self.load(MIRROR, self.world.data.size().raw(), "mirror", params)?;
        self.resume(MIRROR)
    }

    /// Does something.
    pub fn act(&mut self) {
        if self.pool_suspended {
            return self.resume_pool();
        }
        let chosen = {
            let weights = self.world.swarm.command_weights;
            let mut at = [0; crate::swarm::COMMANDS];
            at.copy_from_slice(&weights);
            self.world.with_rng(|rng| choose(&at, rng))
        };
        let Some(command) = chosen.and_then(|i| ALL.get(i)) else {
            return;
        };
        match command {
            Command::CreateThin => self.create_thin(),
            Command::CreateSnap => self.create_snap(),
            Command::Delete => self.delete(),
            Command::Open => self.open_one(),
            Command::Close => self.close_one(),
            Command::SuspendVolume => self.suspend_volume(),
            Command::ReloadVolume => self.reload_volume(false),
            Command::GrowVolume => self.reload_volume(true),
            Command::GrowData => self.grow_data(),
            Command::GrowMetadata => self.grow_metadata(),
            Command::SuspendPool => self.suspend_pool(),
            Command::MetadataSnap => self.metadata_snap(),
            Command::TransactionId => self.transaction_id(),
            Command::ReloadPool => self.reload_pool(),
        }
    }

    /// Lets everything through again.
    pub fn resume_all(&mut self) {
        if self.pool_suspended {
            self.resume_pool();
        }
        for id in std::mem::take(&mut self.suspended) {
            let _ = self.resume(&volume_name(id));
        }
    }

    /// Ends the daemon in good order: flushed, nothing left. Whether that went well.
    pub fn stop(&mut self) -> bool {
        self.resume_all();
        self.open.iter().for_each(|id| self.world.close(*id));
        let _ = self.daemon.remove_all(false);
        self.left() == 0
    }

    /// Ends the daemon by force; how many devices could not be removed.
    pub fn stop_by_force(&mut self) -> usize {
        self.open.iter().for_each(|id| self.world.close(*id));
        self.daemon.stop_by_force()
    }

    fn left(&self) -> usize {
        self.daemon.list_devices().map_or(0, |list| list.len())
    }

    fn pick(&self, of: &[u32]) -> Option<u32> {
        let n = u32::try_from(of.len()).ok().filter(|n| *n > 0)?;
        of.get(self.world.draw(n) as usize).copied()
    }

    fn load(&self, name: &str, len: u64, target: &str, params: String) -> Result<(), DmError> {
        let line = TableLine {
            start: Sector::ZERO,
            len: Sector(len),
            target: target.to_owned(),
            params,
        };
        self.world.log(|| format!("load {name} {line:?}"));
        self.daemon
            .table_load(&selector(name), vec![line], false)
            .map(|_| ())
    }

    fn options(&self) -> SuspendOptions {
        SuspendOptions {
            lock_fs: false,
            no_flush: self.world.draw(2) == 0,
        }
    }

    fn resume(&self, name: &str) -> Result<(), DmError> {
        let options = self.options();
        self.daemon.resume(&selector(name), options).map(|_| ())
    }

    /// A resume that failed leaves the new table in place, suspended.
    fn is_suspended(&self, name: &str) -> bool {
        let status = self.daemon.status(&selector(name));
        status.is_ok_and(|info| info.suspended)
    }

    fn load_pool(&self) -> Result<(), DmError> {
        let block = self.world.swarm.layout.block;
        let features = &self.features;
        let data = match self.world.swarm.mirror {
            Some(_) => format!("/dev/mapper/{MIRROR}"),
            None => DATA.to_string(),
        };
        let params = format!(
            "{METADATA} {data} {block} 0 {} {}",
            features.len(),
            features.join(" ")
        );
        self.load(POOL, self.data_blocks * block, "thin-pool", params)
    }

    fn message(&self, text: &str) -> Result<(), DmError> {
        self.world.log(|| format!("message {text}"));
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        self.daemon
            .message(&selector(POOL), Sector::ZERO, &words)
            .map(|_| ())
    }

    /// After an answer that was good: whether what it told of is durable for certain.
    fn settled(&self) -> Presence {
        if !self.world.swarm.has_faults() {
            return Presence::Yes;
        }
        let query = StatusQuery {
            kind: StatusKind::Info,
            inactive: false,
            no_flush: true,
        };
        let status = self.daemon.table_status(&selector(POOL), query);
        let lines = status
            .ok()
            .and_then(|status| status.lines)
            .unwrap_or_default();
        let writes = |text: &str| text.contains(" rw ") || text.contains(" out_of_data_space ");
        match lines.iter().any(|line| writes(&line.params)) {
            true => Presence::Yes,
            false => Presence::Maybe,
        }
    }

    fn volumes(&self) -> Vec<u32> {
        self.world.with_oracle(|oracle| {
            let there = oracle
                .volumes
                .iter()
                .filter(|(_, v)| v.presence == Presence::Yes);
            there.map(|(id, _)| *id).collect()
        })
    }

    fn free_id(&mut self) -> u32 {
        let last = self.next_id.saturating_sub(1);
        let used = self
            .world
            .with_oracle(|oracle| oracle.volumes.contains_key(&last));
        if self.next_id > 0 && !used && self.world.draw(2) == 0 {
            return last;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    fn has_room(&self) -> bool {
        self.world.with_oracle(|oracle| oracle.volumes.len()) < self.world.swarm.volumes
    }

    fn create_thin(&mut self) {
        if !self.has_room() {
            return;
        }
        let id = self.free_id();
        let blocks = 1 + u64::from(self.world.draw(self.world.swarm.volume_blocks as u32));
        let on_origin = self.world.draw(4) == 0;
        self.world
            .with_oracle(|oracle| oracle.creating(id, None, blocks, on_origin));
        let done = self.message(&format!("create_thin {id}"));
        self.created(id, done.is_ok());
    }

    fn create_snap(&mut self) {
        let Some(origin) = self.pick(&self.volumes()).filter(|_| self.has_room()) else {
            return;
        };
        let id = self.free_id();
        self.world
            .with_oracle(|oracle| oracle.creating(id, Some(origin), 0, false));
        let done = self.message(&format!("create_snap {id} {origin}"));
        self.created(id, done.is_ok());
    }

    fn created(&mut self, id: u32, well: bool) {
        if !well && !self.world.swarm.has_faults() {
            return self.world.with_oracle(|oracle| oracle.gone(id));
        }
        let presence = if well {
            self.settled()
        } else {
            Presence::Maybe
        };
        self.world
            .with_oracle(|oracle| oracle.created(id, presence));
        if well && self.world.draw(3) > 0 {
            self.open_one_of(id);
        }
    }

    fn delete(&mut self) {
        let closed: Vec<u32> = self
            .volumes()
            .into_iter()
            .filter(|id| !self.open.contains(id))
            .collect();
        let Some(id) = self.pick(&closed) else {
            return self.close_one();
        };
        self.world
            .with_oracle(|oracle| oracle.set_presence(id, Presence::Maybe));
        let done = self.message(&format!("delete {id}"));
        let faults = self.world.swarm.has_faults();
        let settled = self.settled();
        self.world.with_oracle(|oracle| match done {
            Ok(()) if settled == Presence::Yes => oracle.gone(id),
            Err(_) if !faults => oracle.set_presence(id, Presence::Yes),
            _ => {}
        });
    }

    fn open_one(&mut self) {
        let closed: Vec<u32> = self
            .volumes()
            .into_iter()
            .filter(|id| !self.open.contains(id))
            .collect();
        if let Some(id) = self.pick(&closed) {
            self.open_one_of(id);
        }
    }

    fn open_one_of(&mut self, id: u32) {
        if let Some(device) = self.open_device(id) {
            self.world.open(id, device);
        }
    }

    fn table_of(&self, id: u32, blocks: u64) -> (u64, String) {
        let on_origin = self
            .world
            .with_oracle(|o| o.volumes.get(&id).is_some_and(|v| v.on_origin));
        let origin = if on_origin {
            format!(" {ORIGIN}")
        } else {
            String::new()
        };
        let params = format!("/dev/mapper/{POOL} {id}{origin}");
        (blocks * self.world.swarm.layout.block, params)
    }

    fn blocks_of(&self, id: u32) -> u64 {
        self.world
            .with_oracle(|o| o.volumes.get(&id).map_or(1, |v| v.blocks))
    }

    fn open_device(&mut self, id: u32) -> Option<Arc<dyn BlockDevice>> {
        let name = volume_name(id);
        let (len, params) = self.table_of(id, self.blocks_of(id));
        self.daemon.create(&named(&name), None, None).ok()?;
        let live = self
            .load(&name, len, "thin", params)
            .and_then(|()| self.resume(&name));
        if let Err(error) = live {
            if !self.world.swarm.has_faults() {
                self.world
                    .fail(format!("volume {id} cannot be opened: {error}"));
            }
            let _ = self.daemon.remove(&selector(&name), false);
            return None;
        }
        self.open.insert(id);
        self.daemon.block_device(&named(&name))
    }

    fn some_open(&self) -> Option<u32> {
        let open: Vec<u32> = self.open.iter().copied().collect();
        self.pick(&open)
    }

    fn close_one(&mut self) {
        let Some(id) = self.some_open() else { return };
        if self.suspended.remove(&id) {
            let _ = self.resume(&volume_name(id));
        }
        self.world.close(id);
        self.open.remove(&id);
        let deferred = self.world.draw(3) == 0;
        let removed = self.daemon.remove(&selector(&volume_name(id)), deferred);
        if let Err(error) = removed {
            self.world
                .fail(format!("volume {id} cannot be closed: {error}"));
        }
    }

    fn suspend_volume(&mut self) {
        let Some(id) = self.some_open() else { return };
        let name = volume_name(id);
        if self.suspended.remove(&id) {
            let _ = self.resume(&name);
            return;
        }
        let options = self.options();
        if self.daemon.suspend(&selector(&name), options).is_ok() {
            self.suspended.insert(id);
        }
    }

    fn reload_volume(&mut self, grow: bool) {
        let Some(id) = self.some_open() else { return };
        let name = volume_name(id);
        let more = if grow {
            1 + u64::from(self.world.draw(4))
        } else {
            0
        };
        let blocks = self.blocks_of(id) + more;
        let (len, params) = self.table_of(id, blocks);
        self.world.with_oracle(|oracle| oracle.grown(id, blocks));
        let loaded = self.load(&name, len, "thin", params);
        if loaded.and_then(|()| self.resume(&name)).is_ok() {
            self.suspended.remove(&id);
        }
    }

    fn grow_data(&mut self) {
        self.data_blocks += 1 + u64::from(self.world.draw(8));
        self.world
            .data
            .grow(self.data_blocks * self.world.swarm.layout.block);
        self.reload();
    }

    fn grow_metadata(&mut self) {
        let more = 8 * (1 + u64::from(self.world.draw(30)));
        let size = self.world.metadata.size().raw();
        self.world.metadata.grow(size + more);
        self.reload();
    }

    fn reload_pool(&mut self) {
        // Whether discards are taken and blocks zeroed stays as it is: what may be read depends on it.
        let feature = ["error_if_no_space", "no_discard_passdown"][self.world.draw(2) as usize];
        match self.features.iter().position(|f| *f == feature) {
            Some(at) => {
                self.features.remove(at);
            }
            None if self.features.len() < 4 => self.features.push(feature),
            None => {}
        }
        self.reload();
    }

    fn reload(&mut self) {
        let reloaded = self.load_pool().and_then(|()| self.resume(POOL));
        let Err(error) = reloaded else { return };
        self.world.log(|| format!("reload of the pool: {error}"));
        if !self.world.swarm.has_faults() {
            self.world
                .fail(format!("the pool's table is refused: {error}"));
        }
        self.pool_suspended = self.is_suspended(POOL);
    }

    fn suspend_pool(&mut self) {
        let options = self.options();
        if self.daemon.suspend(&selector(POOL), options).is_ok() {
            self.pool_suspended = true;
        }
    }

    fn resume_pool(&mut self) {
        let resumed = self.resume(POOL);
        if let Err(error) = &resumed {
            self.world.log(|| format!("resume of the pool: {error}"));
            if !self.world.swarm.has_faults() {
                self.world
                    .fail(format!("the pool cannot be resumed: {error}"));
            }
        }
        self.pool_suspended = resumed.is_err();
    }

    fn metadata_snap(&mut self) {
        if self.message("reserve_metadata_snap").is_err() {
            let _ = self.message("release_metadata_snap");
        }
    }

    fn transaction_id(&mut self) {
        let next = self.transaction + 1;
        if self
            .message(&format!("set_transaction_id {} {next}", self.transaction))
            .is_ok()
        {
            self.transaction = next;
        }
    }
}

fn volume_name(id: u32) -> String {
    format!("t{id}")
}
