//! What the clients' tests share: whose turn it is, and what must be installed.

use std::fs::File;
use std::path::Path;

use rustix::fs::FlockOperation;

use thinmap_tests::arm::CLIENTS_TURN;
use thinmap_tests::world::{World, can_make_block_devices};

/// The world of a user who sets nothing, to one test at a time. `None`, with a SKIP line, where it cannot be had or one of
/// `programs` (absolute paths) is missing.
pub fn turn(test: &str, programs: &[&str]) -> Option<(World, File)> {
    if !can_make_block_devices(test) {
        return None;
    }
    if let Some(missing) = programs.iter().find(|program| !Path::new(program).exists()) {
        println!("SKIP {test}: needs {missing}");
        return None;
    }
    // Also against another run of the tests on the same machine.
    let turn = File::create(CLIENTS_TURN).expect("lock file");
    rustix::fs::flock(&turn, FlockOperation::LockExclusive).expect("a turn");
    Some((World::with_default_directories(), turn))
}
