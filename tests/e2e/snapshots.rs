//! fio verifies an origin and one of its snapshots at once, while others come and go; a first one keeps what it saw, also through a
//! kill of the daemon.

use std::time::{Duration, Instant};

use crate::fio;
use crate::world::{World, can_make_block_devices};

const SECTORS: u64 = 262_144;

#[test]
fn fio_verifies_an_origin_and_its_snapshot_at_once() {
    if !can_make_block_devices("fio_verifies_an_origin_and_its_snapshot_at_once") {
        return;
    }
    let world = World::without_keeper();
    world.sh(&format!(
        "head -c {bytes} /dev/urandom >base; truncate -s 200M first written passing
         dmsetup create base --table '0 {SECTORS} linear '$PWD'/base 0'
         dmsetup create origin --table \"0 {SECTORS} snapshot-origin $M/base\"
         dmsetup create first --table \"0 {SECTORS} snapshot $M/base $PWD/first P 8\"
         dmsetup create written --table \"0 {SECTORS} snapshot $M/base $PWD/written PO 32\"
         sha256sum <base >seen",
        bytes = SECTORS * 512
    ));
    let mut loads = ["origin", "written"].map(|name| {
        fio::verify(
            &world,
            name,
            &[
                "--bsrange=512-128k",
                "--fsync=32",
                "--size=96m",
                "--io_size=96m",
            ],
        )
    });
    let began = Instant::now();
    let mut rounds = 0;
    while loads
        .iter_mut()
        .any(|l| l.try_wait().expect("fio").is_none())
    {
        let late = began.elapsed() > Duration::from_secs(600);
        assert!(!late, "fio does not end: {}", world.sh("dmsetup status"));
        rounds += 1;
        world.sh(&format!(
            "dd if=/dev/zero of=passing bs=4k count=1 conv=notrunc status=none
             dmsetup suspend origin
             dmsetup create passing --table \"0 {SECTORS} snapshot $M/base $PWD/passing P 1\"
             dmsetup resume origin
             one=$(head -c 1M $M/passing | sha256sum); two=$(head -c 1M $M/passing | sha256sum)
             test \"$one\" = \"$two\"
             dmsetup remove passing"
        ));
    }
    for load in loads {
        let output = load.wait_with_output().expect("fio");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}\n{}", world.daemon_log());
    }
    assert!(rounds > 1, "only {rounds} snapshots passed by");
    world.sh("sha256sum <$M/first | cmp - seen; ! dmsetup status | grep Invalid");
    // Killed while the origin is written: whatever was copied is found, and the origin's old content with it.
    world.sh("dd if=/dev/zero of=$M/origin bs=64k oflag=direct status=none & sleep 0.3; kill $!; wait $! || true");
    world.kill_daemon();
    world.sh(&format!(
        "thinmap ls-exports >/dev/null
         dmsetup create base --table '0 {SECTORS} linear '$PWD'/base 0'
         dmsetup create first --table \"0 {SECTORS} snapshot $M/base $PWD/first P 8\"
         sha256sum <$M/first | cmp - seen
         dmsetup create merged --table \"0 {SECTORS} snapshot-merge $M/base $PWD/written P 8\"
         dmsetup remove first; dmsetup remove merged; dmsetup remove base"
    ));
    world.end();
}
