//! fio writes, trims, flushes and verifies while snapshots come and go.

use std::time::{Duration, Instant};

use crate::world::{World, can_make_block_devices};

#[test]
fn fio_verifies_while_snapshots_come_and_go() {
    if !can_make_block_devices("fio_verifies_while_snapshots_come_and_go") {
        return;
    }
    let world = World::new();
    world.make_pool("8G", "");
    world.make_thin(0, "vol", 2_097_152);
    let mut fio = world
        .command("fio")
        .args([
            "--name=verify",
            "--direct=1",
            "--ioengine=libaio",
            "--iodepth=32",
        ])
        .args([
            "--rw=randtrimwrite",
            "--bsrange=512-1m",
            "--bs_unaligned=0",
            "--blockalign=512",
        ])
        .args([
            "--size=1g",
            "--io_size=1500m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--fsync=32",
        ])
        .args([
            "--trim_percentage=10",
            "--trim_backlog=64",
            "--trim_verify_zero=0",
        ])
        .arg("--serialize_overlap=1")
        .arg(format!(
            "--filename={}",
            world.dev_dir().join("vol").display()
        ))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("fio runs");
    let began = Instant::now();
    let mut id = 0;
    while fio.try_wait().expect("fio").is_none() {
        id += 1;
        assert!(
            began.elapsed() < Duration::from_secs(600),
            "fio does not end"
        );
        world.sh(&format!(
            "dmsetup suspend vol; dmsetup message pool 0 'create_snap {id} 0'; dmsetup resume vol"
        ));
        if id > 3 {
            world.sh(&format!("dmsetup message pool 0 'delete {}'", id - 3));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let output = fio.wait_with_output().expect("fio");
    assert!(
        output.status.success(),
        "{}{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        world.daemon_log()
    );
    assert!(id > 3, "only {id} snapshots were taken");
    world.sh("dmsetup remove vol; dmsetup remove pool; thin_check meta.img");
    world.end();
}
