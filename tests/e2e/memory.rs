//! A volume of 1 TiB, every block mapped: what it costs the daemon in memory, and how fast it comes up.

use std::io::Write;
use std::time::Instant;

use crate::world::{World, can_make_block_devices};

#[test]
fn a_fully_mapped_tebibyte_stays_small() {
    if !can_make_block_devices("a_fully_mapped_tebibyte_stays_small") {
        return;
    }
    let world = World::new();
    let blocks = 1u64 << 24;
    let xml = format!(
        "<superblock uuid=\"\" time=\"0\" transaction=\"1\" version=\"2\" data_block_size=\"128\" nr_data_blocks=\"{blocks}\">\n\
         <device dev_id=\"1\" mapped_blocks=\"{blocks}\" transaction=\"0\" creation_time=\"0\" snap_time=\"0\">\n\
         <range_mapping origin_begin=\"0\" data_begin=\"0\" length=\"{blocks}\" time=\"0\"/>\n</device>\n</superblock>\n"
    );
    std::fs::File::create(world.path().join("dump.xml"))
        .and_then(|mut f| f.write_all(xml.as_bytes()))
        .expect("xml");
    world.sh(
        "truncate -s 1T data.img; truncate -s 1G meta.img; thin_restore -i dump.xml -o meta.img",
    );
    world.sh("dmsetup ls");
    let began = Instant::now();
    world.sh(
        "dmsetup create pool --table \"0 2147483648 thin-pool $PWD/meta.img $PWD/data.img 128 0\"
         dmsetup create vol --table \"0 2147483648 thin $M/pool 1\"",
    );
    println!(
        "pool and volume created by two commands in {:?}",
        began.elapsed()
    );
    assert_eq!(
        world.sh("dmsetup status vol").split_whitespace().nth(3),
        Some("2147483648")
    );
    world.sh(
        "fio --name=touch --direct=1 --ioengine=libaio --iodepth=32 --rw=randread --bs=4k --size=1t \
             --io_size=400m --randrepeat=0 --filename=$M/vol >/dev/null
         fio --name=write --direct=1 --ioengine=libaio --iodepth=32 --rw=randwrite --bs=4k --size=1t \
             --io_size=100m --filename=$M/vol >/dev/null",
    );
    let pid = world.daemon_pid().expect("a daemon runs");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let peak: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kib| kib.parse().ok())
        .expect("VmHWM");
    println!("peak memory of the daemon: {} MiB", peak / 1024);
    assert!(peak < 256 * 1024, "{} MiB", peak / 1024);
    world.sh("dmsetup remove vol; dmsetup remove pool");
    world.end();
}
