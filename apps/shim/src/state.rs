//! What the shim knows in this process: where its daemon is, and whether a thread is already inside it.

use std::cell::Cell;
use std::ffi::CStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

use thinmap_interpose::World;

static WORLD: OnceLock<World> = OnceLock::new();

thread_local! {
    /// The shim opens files and sockets too, through the very functions that it stands before.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Runs before the program's `main`, so that no fork can catch another thread in the middle of it. Inside, because the first
/// allocation may be the program's own allocator's first, and that may look at files.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = {
    extern "C" fn at_load() {
        enter(|| Some(world()));
    }
    at_load
};

/// The daemon that this process was told of.
pub fn world() -> &'static World {
    WORLD.get_or_init(|| {
        if is_privileged_by_file() {
            // Who calls a set-user-id program must not choose which daemon it trusts.
            return World::systems();
        }
        World::from_environment()
    })
}

/// Runs `work` unless this thread is inside the shim already.
pub fn enter<T>(work: impl FnOnce() -> Option<T>) -> Option<T> {
    INSIDE.with(|inside| {
        if inside.replace(true) {
            return None;
        }
        let result = work();
        inside.set(false);
        result
    })
}

/// A path as the program gave it, if it is absolute: only such paths can be ours.
///
/// # Safety
/// `path` is null or a NUL-terminated string, as the libc function asks of its caller.
pub unsafe fn absolute<'a>(path: *const libc::c_char) -> Option<&'a Path> {
    // SAFETY: not null, and by the caller's promise it can be read up to its NUL.
    if path.is_null() || unsafe { *path } as u8 != b'/' {
        return None;
    }
    // SAFETY: as above.
    let bytes = unsafe { CStr::from_ptr(path) }.to_bytes();
    Some(Path::new(std::ffi::OsStr::from_bytes(bytes)))
}

fn is_privileged_by_file() -> bool {
    // SAFETY: getauxval only reads what the kernel gave this process.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}
