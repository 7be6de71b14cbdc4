//! fio beside a test: random writes of any length and place, flushed now and then, all verified.

use std::process::{Child, Stdio};

use crate::world::World;

/// Starts it on a mapped device; `sizes` says how large requests are, how many go between two flushes, and how much is written.
pub fn verify(world: &World, device: &str, sizes: &[&str]) -> Child {
    let device = world.dev_dir().join(device);
    world
        .command("fio")
        .args(["--name=verify", "--direct=1", "--ioengine=libaio"])
        .args(["--iodepth=16", "--rw=randwrite", "--bs_unaligned=0"])
        .args(["--blockalign=512", "--verify=crc32c", "--verify_fatal=1"])
        .arg("--serialize_overlap=1")
        .args(sizes)
        .arg(format!("--filename={}", device.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("fio runs")
}
