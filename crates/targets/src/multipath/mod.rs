//! `multipath`: one device that is reached by several paths. A request that a path fails takes another one.
//!
//! Arguments, status and messages: `docs/targets/multipath.md`. Paths lie in groups; a group is used until it has no working path left, and
//! in it a selector deals the requests out. A path stays out of use until a message brings it back: who looks after paths is a program.

mod args;
mod history;
mod message;
mod path;
mod routing;
mod selector;
mod status;
#[cfg(test)]
mod tests;
mod timeout;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thinmap_block::{Extent, Io};
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, MapOutcome, MessageError, StatusFlags, StatusKind,
    TableError, Target, TargetArgs, TargetFeatures, TargetInfo, TargetType,
};
use thinmap_units::{BlkStatus, Sector};

use self::args::Arguments;
use self::message::Finder;
use self::routing::{Route, Routing};
pub use self::timeout::NoPathTimeout;
use self::timeout::Timeout;

/// The target type.
pub struct MultipathType;

impl TargetType for MultipathType {
    fn info(&self) -> TargetInfo {
        TargetInfo {
            name: NAME,
            version: VERSION,
            features: TargetFeatures {
                singleton: true,
                immutable: true,
                ..TargetFeatures::default()
            },
        }
    }

    fn construct(
        &self,
        args: &TargetArgs<'_>,
        cx: &mut ConstructCx<'_>,
    ) -> Result<Arc<dyn Target>, TableError> {
        let arguments = Arguments::parse(args.argv, cx)?;
        let timeout = Timeout::new(cx.env);
        let routing = Routing::new(arguments, timeout, cx);
        if let Some(timeout) = &routing.timeout {
            timeout.start(&routing, cx.env).map_err(|error| {
                let errno = error.raw_os_error().unwrap_or(EAGAIN);
                TableError::new(NAME, format!("cannot start a thread: {error}"), errno)
            })?;
        }
        routing.watch_for_path();
        let finder = Finder {
            env: cx.env.clone(),
            dev_no: cx.dev_no,
            read_only: cx.read_only,
        };
        Ok(Arc::new(Multipath {
            begin: args.begin,
            len: args.len,
            routing,
            finder,
            suspended: AtomicBool::new(false),
        }))
    }
}

struct Multipath {
    begin: Sector,
    len: Sector,
    routing: Arc<Routing>,
    finder: Finder,
    suspended: AtomicBool,
}

impl Drop for Multipath {
    fn drop(&mut self) {
        if let Some(timeout) = &self.routing.timeout {
            timeout.end();
        }
    }
}

impl Target for Multipath {
    /// All paths lead to the same device: a flush takes one, too.
    fn map(&self, io: Io) -> MapOutcome<'_> {
        match self.routing.route(io) {
            Route::Path(io, path) => MapOutcome::Remapped(io, &path.device.dev),
            Route::Held => MapOutcome::Submitted,
            Route::PushBack(io) => MapOutcome::Requeue(io),
            Route::Fail(io) => MapOutcome::Kill(io, BlkStatus::IoErr),
        }
    }

    fn status(&self, kind: StatusKind, _: StatusFlags, out: &mut String) {
        status::tell(&self.routing, kind, out);
    }

    fn message(&self, argv: &[String]) -> Result<Option<String>, MessageError> {
        if self.suspended.load(Ordering::SeqCst) {
            return Err(MessageError::new("the device is suspended", EBUSY));
        }
        message::obey(&self.routing, &self.finder, argv).map(|()| None)
    }

    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole)) {
        let role = DeviceRole::Data {
            start: self.begin,
            len: self.len,
        };
        for path in self.routing.groups.iter().flat_map(|group| &group.paths) {
            visit(&path.device, role);
        }
    }

    fn presuspend(&self, noflush: bool) {
        self.routing.presuspend(noflush);
    }

    /// COMPAT: requests that find no path go on failing, as in the kernel, until a message or a resume.
    fn presuspend_undo(&self) {
        self.routing.suspend_ended();
    }

    fn postsuspend(&self) {
        self.routing.suspend_ended();
        self.suspended.store(true, Ordering::SeqCst);
    }

    fn resume(&self) {
        self.suspended.store(false, Ordering::SeqCst);
        self.routing.resume();
    }

    /// What the first working path says, which need not be the one that a read takes: all lead to the same device.
    fn extents(&self, start: Sector, len: Sector, out: &mut Vec<Extent>) -> Result<(), BlkStatus> {
        let mut paths = self.routing.groups.iter().flat_map(|group| &group.paths);
        match paths.find(|path| path.is_active()) {
            Some(path) => path.device.dev.extents(start, len, out),
            None => Err(BlkStatus::IoErr),
        }
    }
}

const NAME: &str = "multipath";
const VERSION: [u32; 3] = [1, 14, 0];
const EAGAIN: i32 = 11;
const EBUSY: i32 = 16;
