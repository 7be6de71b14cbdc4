//! One request and the way back to those who wait for it.
//!
//! Each layer that wants to know of the end pushes a frame (a sink and a tag) before it passes the
//! request on; completion pops frames, last first. There is no allocation per layer and no per-layer
//! copy of the request: the same [`Io`] travels down and up.
//!
//! INVARIANT: an `Io` completes exactly once. One that is dropped (a panic, a queue torn down)
//! completes with [`BlkStatus::IoErr`], so nobody waits for ever.

use std::sync::Arc;

use smallvec::SmallVec;
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Op {
    /// Fill the buffer from the device.
    Read,
    /// Write the buffer to the device.
    Write,
    /// Make every write that completed before durable. Carries no range.
    Flush,
    /// The range's content is no longer needed. May do nothing; what is read afterwards is undefined.
    Discard,
    /// The range reads as zeroes afterwards.
    WriteZeroes,
}

/// Modifiers of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct IoFlags {
    /// Write, write-zeroes: durable before completion.
    pub fua: bool,
    /// Write-zeroes: keep the space allocated.
    pub no_unmap: bool,
}

/// Is told when a request that it pushed itself on has ended.
pub trait EndIo: Send + Sync {
    /// `io` has come back with `status`; `tag` is what was pushed. The receiver goes on with
    /// [`Io::complete`] for the frames below its own, or keeps the request (an outermost submitter).
    ///
    /// May run on any thread; must not block.
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus);
}

struct Frame {
    sink: Arc<dyn EndIo>,
    tag: u64,
}

/// A request to a block device.
pub struct Io {
    /// What to do.
    pub op: Op,
    /// How.
    pub flags: IoFlags,
    /// First sector, on the device it is being submitted to. Layers rewrite it on the way down and
    /// do not restore it on the way up.
    pub sector: Sector,
    /// Length. For reads and writes always the buffer's length.
    pub sectors: Sector,
    /// Data, for reads and writes; empty otherwise.
    pub buf: IoBuf,
    frames: SmallVec<[Frame; 4]>,
}

impl Io {
    /// A request that tells `sink`, with `tag`, of its end.
    pub fn new(
        op: Op,
        sector: Sector,
        sectors: Sector,
        buf: IoBuf,
        sink: Arc<dyn EndIo>,
        tag: u64,
    ) -> Self {
        debug_assert!(
            !matches!(op, Op::Read | Op::Write) || buf.len() as u64 == sectors.bytes(),
            "{op:?} of {sectors} sectors with a buffer of {} bytes",
            buf.len()
        );
        let mut frames = SmallVec::new();
        frames.push(Frame { sink, tag });
        Self {
            op,
            flags: IoFlags::default(),
            sector,
            sectors,
            buf,
            frames,
        }
    }

    /// A read of the whole buffer.
    pub fn read(sector: Sector, buf: IoBuf, sink: Arc<dyn EndIo>, tag: u64) -> Self {
        let sectors = Sector::from_bytes(buf.len() as u64);
        Self::new(Op::Read, sector, sectors, buf, sink, tag)
    }

    /// A write of the whole buffer.
    pub fn write(sector: Sector, buf: IoBuf, sink: Arc<dyn EndIo>, tag: u64) -> Self {
        let sectors = Sector::from_bytes(buf.len() as u64);
        Self::new(Op::Write, sector, sectors, buf, sink, tag)
    }

    /// A flush.
    pub fn flush(sink: Arc<dyn EndIo>, tag: u64) -> Self {
        Self::new(
            Op::Flush,
            Sector::ZERO,
            Sector::ZERO,
            IoBuf::empty(),
            sink,
            tag,
        )
    }

    /// The sector after the last one.
    pub fn end(&self) -> Sector {
        Sector(self.sector.0.saturating_add(self.sectors.0))
    }

    /// Whether the request changes data (and so is refused on read-only devices).
    pub fn is_write(&self) -> bool {
        matches!(self.op, Op::Write | Op::Discard | Op::WriteZeroes)
    }

    /// Asks to be told of the end before those already on the request.
    pub fn push_end_io(&mut self, sink: Arc<dyn EndIo>, tag: u64) {
        self.frames.push(Frame { sink, tag });
    }

    /// Ends the request: the latest one that pushed itself is told.
    pub fn complete(mut self, status: BlkStatus) {
        if let Some(frame) = self.frames.pop() {
            frame.sink.end_io(self, frame.tag, status);
        }
    }

    /// Cuts off the first `sectors` as a request of its own that tells `sink` of its end; `self` keeps the
    /// rest and all its frames. The parts' buffers join again with [`IoBuf::unsplit`].
    ///
    /// # Panics
    /// When `sectors` is beyond the request's end.
    pub fn split_front(&mut self, sectors: Sector, sink: Arc<dyn EndIo>, tag: u64) -> Self {
        assert!(sectors <= self.sectors, "split beyond the end of a request");
        let buf = if self.buf.is_empty() {
            IoBuf::empty()
        } else {
            let bytes = usize::try_from(sectors.bytes()).expect("the buffer is in memory");
            self.buf.split_to(bytes)
        };
        let mut front = Self::new(self.op, self.sector, sectors, buf, sink, tag);
        front.flags = self.flags;
        self.sector += sectors;
        self.sectors -= sectors;
        front
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        if self.frames.is_empty() {
            return;
        }
        let abandoned = Self {
            op: self.op,
            flags: self.flags,
            sector: self.sector,
            sectors: self.sectors,
            buf: std::mem::replace(&mut self.buf, IoBuf::empty()),
            frames: std::mem::take(&mut self.frames),
        };
        tracing::error!(io = ?abandoned, "a request was dropped instead of completed: failing it");
        abandoned.complete(BlkStatus::IoErr);
    }
}

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {}+{}", self.op, self.sector, self.sectors)?;
        if self.flags.fua {
            f.write_str(" FUA")
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[derive(Default)]
    struct Log(Mutex<Vec<(u64, BlkStatus)>>);

    impl EndIo for Log {
        fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
            self.0.lock().push((tag, status));
            io.complete(status);
        }
    }

    #[test]
    fn frames_are_told_last_first() {
        let log = Arc::new(Log::default());
        let mut io = Io::flush(log.clone(), 1);
        io.push_end_io(log.clone(), 2);
        io.complete(BlkStatus::NoSpc);
        assert_eq!(
            *log.0.lock(),
            [(2, BlkStatus::NoSpc), (1, BlkStatus::NoSpc)]
        );
    }

    #[test]
    fn a_dropped_request_fails_instead_of_vanishing() {
        let log = Arc::new(Log::default());
        drop(Io::flush(log.clone(), 7));
        assert_eq!(*log.0.lock(), [(7, BlkStatus::IoErr)]);
    }

    #[test]
    fn the_front_of_a_split_takes_its_part_of_the_buffer() {
        let log = Arc::new(Log::default());
        let mut io = Io::write(Sector(8), IoBuf::alloc(4096), log.clone(), 0);
        let front = io.split_front(Sector(3), log.clone(), 1);
        assert_eq!(
            (front.sector, front.sectors, front.buf.len()),
            (Sector(8), Sector(3), 1536)
        );
        assert_eq!(
            (io.sector, io.sectors, io.buf.len()),
            (Sector(11), Sector(5), 2560)
        );
        front.complete(BlkStatus::Ok);
        io.complete(BlkStatus::Ok);
    }
}
