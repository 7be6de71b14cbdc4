//! What the clients' tests share: whose turn it is, and what must be installed.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use thinmap_tests::world::{World, can_make_block_devices};

static TURN: Mutex<()> = Mutex::new(());

/// The world of a user who sets nothing, to one test at a time. `None`, with a SKIP line, where it cannot be had or one of
/// `programs` (absolute paths) is missing.
pub fn turn(test: &str, programs: &[&str]) -> Option<(World, MutexGuard<'static, ()>)> {
    if !can_make_block_devices(test) {
        return None;
    }
    if let Some(missing) = programs.iter().find(|program| !Path::new(program).exists()) {
        println!("SKIP {test}: needs {missing}");
        return None;
    }
    let guard = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Some((World::with_default_directories(), guard))
}
