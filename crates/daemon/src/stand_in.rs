//! What is behind a device's node and export while the table that it had under the last daemon is not back.
//!
//! INVARIANT: a request is held, failed or passed on, each once; none is held after the stand-in has failed or passed on.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use thinmap_block::{BlockDevice, Extent, Io, QueueLimits, submit_from_outside};
use thinmap_units::{BlkStatus, Sector};

/// As large as the device was, and with its limits, so that whoever has it open sees no other device.
pub struct StandIn {
    size: Sector,
    limits: QueueLimits,
    /// The device, when it is back.
    device: OnceLock<Arc<dyn BlockDevice>>,
    /// What waits for that; `None` when nothing shall wait.
    held: Mutex<Option<Vec<Io>>>,
}

impl StandIn {
    /// One that holds requests.
    pub fn new(size: Sector, limits: QueueLimits) -> Arc<Self> {
        Arc::new(Self {
            size,
            limits,
            device: OnceLock::new(),
            held: Mutex::new(Some(Vec::new())),
        })
    }

    /// Fails what waits and what comes, until there is a device.
    pub fn fail(&self) {
        let waiting = self.held.lock().take();
        for io in waiting.into_iter().flatten() {
            io.complete(BlkStatus::IoErr);
        }
    }

    /// Holds what comes, after a [`StandIn::fail`] that was too early.
    pub fn hold(&self) {
        let mut held = self.held.lock();
        if self.device.get().is_none() && held.is_none() {
            *held = Some(Vec::new());
        }
    }

    /// Hands what waits and what comes to the device. Only the first one counts.
    pub fn pass_to(&self, device: Arc<dyn BlockDevice>) {
        let waiting = {
            let mut held = self.held.lock();
            let _ = self.device.set(device);
            held.take()
        };
        for io in waiting.into_iter().flatten() {
            self.submit(io);
        }
    }
}

impl BlockDevice for StandIn {
    fn limits(&self) -> QueueLimits {
        match self.device.get() {
            Some(device) => device.limits(),
            None => self.limits,
        }
    }

    fn size(&self) -> Sector {
        self.device.get().map_or(self.size, |device| device.size())
    }

    fn submit(&self, io: Io) {
        if let Some(device) = self.device.get() {
            return submit_from_outside(&**device, io);
        }
        let mut held = self.held.lock();
        match &mut *held {
            Some(waiting) => waiting.push(io),
            None => {
                drop(held);
                // The device may have come before the lock did.
                match self.device.get() {
                    Some(device) => submit_from_outside(&**device, io),
                    None => io.complete(BlkStatus::IoErr),
                }
            }
        }
    }

    fn is_synchronous(&self) -> bool {
        self.device.get().is_some_and(|d| d.is_synchronous())
    }

    fn extents(&self, start: Sector, len: Sector, out: &mut Vec<Extent>) -> Result<(), BlkStatus> {
        match self.device.get() {
            Some(device) => device.extents(start, len, out),
            // Nothing is known of it.
            None => {
                out.push(Extent {
                    sectors: len,
                    allocated: true,
                    zeroes: false,
                });
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use thinmap_block::EndIo;
    use thinmap_block::backing::MemoryDevice;
    use thinmap_runtime::IoBuf;

    use super::*;

    const SIZE: Sector = Sector(8);

    struct Count {
        fine: AtomicU64,
        failed: AtomicU64,
    }

    impl EndIo for Count {
        fn end_io(self: Arc<Self>, _: Io, _: u64, status: BlkStatus) {
            let counter = match status {
                BlkStatus::Ok => &self.fine,
                _ => &self.failed,
            };
            counter.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn device() -> Arc<MemoryDevice> {
        Arc::new(MemoryDevice::new(Sector(16)))
    }

    fn bench() -> (Arc<StandIn>, Arc<Count>, impl Fn()) {
        let stand_in = StandIn::new(SIZE, QueueLimits::STACKING);
        let count = Arc::new(Count {
            fine: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        });
        let (device, sink) = (stand_in.clone(), count.clone());
        let read = move || device.submit(Io::read(Sector(0), IoBuf::alloc(512), sink.clone(), 0));
        (stand_in, count, read)
    }

    fn counts(count: &Count) -> (u64, u64) {
        let of = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        (of(&count.fine), of(&count.failed))
    }

    #[test]
    fn requests_wait_for_the_device_and_then_go_to_it() {
        let (stand_in, count, read) = bench();
        read();
        read();
        assert_eq!((counts(&count), stand_in.size()), ((0, 0), SIZE));
        stand_in.pass_to(device());
        assert_eq!((counts(&count), stand_in.size()), ((2, 0), Sector(16)));
        read();
        stand_in.fail();
        read();
        assert_eq!(
            counts(&count),
            (4, 0),
            "a device that is there is not failed"
        );
    }

    #[test]
    fn requests_fail_when_no_device_will_come_and_go_to_one_that_comes_all_the_same() {
        let (stand_in, count, read) = bench();
        read();
        stand_in.fail();
        read();
        assert_eq!(counts(&count), (0, 2));
        stand_in.hold();
        read();
        assert_eq!(counts(&count), (0, 2));
        stand_in.pass_to(device());
        read();
        assert_eq!(counts(&count), (2, 2));
    }

    #[test]
    fn no_request_is_forgotten_while_the_device_comes() {
        for _ in 0..200 {
            let (stand_in, count, read) = bench();
            std::thread::scope(|scope| {
                scope.spawn(|| (0..50).for_each(|_| read()));
                scope.spawn(|| stand_in.pass_to(device()));
            });
            assert_eq!(counts(&count), (50, 0));
        }
    }
}
