//! The supervisor's loop.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use thinmap_interpose::World;

use crate::handover;
use crate::listener::Listener;
use crate::perform::Work;

/// Small, for there may be many that wait for events; nothing here recurses.
const STACK_BYTES: usize = 256 << 10;

/// Serves the program at the other end of `program`, and all that it starts, until the last of them has ended.
pub fn serve(program: UnixStream, world: World) -> io::Result<()> {
    let Some(listener) = handover::receive(program)? else {
        return Ok(());
    };
    let listener = Listener::new(listener);
    let world = Arc::new(world);
    while let Some(pending) = listener.next()? {
        let Some(work) = Work::of(&pending, &world) else {
            pending.pass();
            continue;
        };
        // A thread each: the daemon may take its time, and one caller's wait is no other's.
        let world = world.clone();
        let started = std::thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || work.perform(pending, &world));
        // Not started, the call was dropped with the closure, and the kernel performs it.
        drop(started);
    }
    Ok(())
}
