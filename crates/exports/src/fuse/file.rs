//! One file of the mount: the device behind it, its size as told to the kernel, and what is in flight.
//!
//! INVARIANT: after [`DeviceFile::retire`] has returned, the device gets no request from this file any more.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};
use thinmap_block::{BlockDevice, QueueLimits};

use super::unaligned::UnalignedWrites;

/// What the data path must know of a device, read once per change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Geometry {
    pub size_bytes: u64,
    pub limits: QueueLimits,
    pub read_only: bool,
}

impl Geometry {
    pub(crate) fn of(device: &dyn BlockDevice, read_only: bool) -> Self {
        let limits = device.limits();
        let read_only = read_only || limits.read_only;
        Self {
            size_bytes: device.size().bytes(),
            limits,
            read_only,
        }
    }

    const EMPTY: Self = Self {
        size_bytes: 0,
        limits: QueueLimits::STACKING,
        read_only: false,
    };
}

/// One file.
pub(crate) struct DeviceFile {
    nodeid: u64,
    name: String,
    behind: RwLock<Behind>,
    in_flight: AtomicU64,
    opens: AtomicU32,
    retired: AtomicBool,
    drained: (Mutex<()>, Condvar),
    pub(super) unaligned: UnalignedWrites,
}

struct Behind {
    device: Option<Arc<dyn BlockDevice>>,
    geometry: Geometry,
}

impl DeviceFile {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn nodeid(&self) -> u64 {
        self.nodeid
    }

    /// Puts a device behind the file, or tells of a change of the one that is there.
    pub(crate) fn attach(&self, device: Arc<dyn BlockDevice>, geometry: Geometry) {
        *self.behind.write() = Behind {
            device: Some(device),
            geometry,
        };
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.behind.read().geometry
    }

    /// Descriptors open on the file (the loop device's own included).
    pub(crate) fn opens(&self) -> u32 {
        self.opens.load(Ordering::Acquire)
    }

    pub(super) fn opened(&self) {
        self.opens.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn released(&self) {
        let _ = self
            .opens
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1));
    }

    /// Counts a request in and gives the device for it; `None` when there is none (any more).
    /// Each `Some` is paired with one [`DeviceFile::leave`].
    pub(super) fn enter(&self) -> Option<(Arc<dyn BlockDevice>, Geometry)> {
        // INVARIANT: counted before `retired` is looked at, so `retire` misses nobody.
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        if !self.retired.load(Ordering::SeqCst) {
            let behind = self.behind.read();
            if let Some(device) = &behind.device {
                return Some((device.clone(), behind.geometry));
            }
        }
        self.leave();
        None
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    pub(super) fn leave(&self) {
        let was = self.in_flight.fetch_sub(1, Ordering::SeqCst);
        if was == 1 && self.retired.load(Ordering::SeqCst) {
            let _guard = self.drained.0.lock();
            self.drained.1.notify_all();
        }
    }

    /// No new requests from now on (they fail with EIO); waits for those in flight and lets go of the device.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
        let mut guard = self.drained.0.lock();
        while self.in_flight.load(Ordering::SeqCst) > 0 {
            // The time-out only bounds a wake-up lost between the count and the lock.
            self.drained
                .1
                .wait_for(&mut guard, Duration::from_millis(50));
        }
        drop(guard);
        self.behind.write().device = None;
    }
}

/// All files of a mount.
#[derive(Default)]
pub(crate) struct Files {
    by_id: RwLock<HashMap<u64, Arc<DeviceFile>>>,
    last_id: AtomicU64,
}

impl Files {
    /// Files of a mount that earlier processes have served, so many of them: numbers of their files are not used again.
    pub(super) fn of_generation(generation: u32) -> Self {
        Self {
            last_id: AtomicU64::new(u64::from(generation) << 32),
            ..Self::default()
        }
    }

    /// A new file of size 0. Its number is never used again in this mount, so a stale inode cannot meet a new device.
    pub(crate) fn add(&self) -> Arc<DeviceFile> {
        self.restore(self.last_id.fetch_add(1, Ordering::Relaxed) + 2)
    }

    /// A file that an earlier process had under this number, of size 0 until something is attached.
    pub(super) fn restore(&self, nodeid: u64) -> Arc<DeviceFile> {
        let file = Arc::new(DeviceFile {
            nodeid,
            name: nodeid.to_string(),
            behind: RwLock::new(Behind {
                device: None,
                geometry: Geometry::EMPTY,
            }),
            in_flight: AtomicU64::new(0),
            opens: AtomicU32::new(0),
            retired: AtomicBool::new(false),
            drained: Default::default(),
            unaligned: UnalignedWrites::default(),
        });
        self.by_id.write().insert(nodeid, file.clone());
        file
    }

    /// The next file gets the first number again. There must be no file.
    #[cfg(feature = "fuzzing")]
    pub(super) fn number_from_the_start(&self) {
        assert!(self.by_id.read().is_empty());
        self.last_id.store(0, Ordering::Relaxed);
    }

    /// Takes a file out of the directory; its open descriptors see I/O errors.
    pub(crate) fn remove(&self, file: &DeviceFile) {
        self.by_id.write().remove(&file.nodeid);
    }

    pub(super) fn by_id(&self, nodeid: u64) -> Option<Arc<DeviceFile>> {
        self.by_id.read().get(&nodeid).cloned()
    }

    pub(super) fn by_name(&self, name: &[u8]) -> Option<Arc<DeviceFile>> {
        let nodeid = std::str::from_utf8(name).ok()?.parse().ok()?;
        self.by_id(nodeid)
            .filter(|file| file.name.as_bytes() == name)
    }

    /// All, in a stable order.
    pub(super) fn all(&self) -> Vec<Arc<DeviceFile>> {
        let mut all: Vec<_> = self.by_id.read().values().cloned().collect();
        all.sort_by_key(|file| file.nodeid);
        all
    }
}
