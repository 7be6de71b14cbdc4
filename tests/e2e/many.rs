//! Many devices and many snapshots, and nothing of them left.

use crate::world::{World, can_make_block_devices};

#[test]
fn a_thousand_snapshots_of_one_volume() {
    if !can_make_block_devices("a_thousand_snapshots_of_one_volume") {
        return;
    }
    let world = World::new();
    world.make_pool("1G", "");
    world.make_thin(0, "vol", 204_800);
    world.sh(
        "for i in $(seq 1 1000); do
             printf \"generation %d\" $i | dd of=$M/vol bs=512 conv=sync,notrunc oflag=direct status=none
             dmsetup suspend vol
             dmsetup message pool 0 \"create_snap $i 0\"
             dmsetup resume vol
         done",
    );
    for id in [1, 2, 499, 1000] {
        let first = world.sh(&format!(
            "dmsetup create s --table \"0 204800 thin $M/pool {id}\"
             dd if=$M/s bs=512 count=1 iflag=direct status=none | tr -d '\\0'
             dmsetup remove s"
        ));
        assert_eq!(first, format!("generation {id}"));
    }
    world.sh("for i in $(seq 1 1000); do dmsetup message pool 0 \"delete $i\"; done");
    let status = world.sh("dmsetup status pool");
    let used = status
        .split_whitespace()
        .nth(5)
        .expect("data blocks")
        .to_owned();
    assert_eq!(used, "1/16384", "{status}");
    world.sh("dmsetup remove vol; dmsetup remove pool; thin_check meta.img");
    world.end();
}

#[test]
fn two_hundred_active_block_devices_at_once() {
    if !can_make_block_devices("two_hundred_active_block_devices_at_once") {
        return;
    }
    let world = World::new();
    world.make_pool("1G", "");
    world.sh(
        "for i in $(seq 1 200); do
             dmsetup message pool 0 \"create_thin $i\"
             dmsetup create vol$i --table \"0 20480 thin $M/pool $i\"
             echo volume $i | dd of=$M/vol$i bs=512 conv=sync oflag=direct status=none
         done
         for i in $(seq 1 200); do
             test -b $M/vol$i
             test \"$(dd if=$M/vol$i bs=512 count=1 iflag=direct status=none | tr -d '\\0')\" = \"volume $i\"
         done
         test $(dmsetup ls --target thin | wc -l) = 200
         dmsetup remove_all
         test \"$(dmsetup ls)\" = 'No devices found'",
    );
    let left = world.leftovers();
    let of_devices: Vec<&String> = left.iter().filter(|l| !l.contains("/run/fuse ")).collect();
    assert!(of_devices.is_empty(), "left behind: {of_devices:#?}");
    world.sh("thin_check meta.img");
    world.end();
}

#[test]
fn more_devices_than_a_shell_has_descriptors_outlive_the_daemon() {
    let world = World::new();
    world.sh(
        "printf '[block_devices]\nenabled = false\n' > config.toml
         (ulimit -Sn 64; thinmap daemon --detach --config config.toml)
         key=$(printf '00%.0s' $(seq 32)); truncate -s 1M disk.img
         for i in $(seq 100); do
             truncate -s 1M disk.$i
             dmsetup create lin$i --table \"0 2048 linear $PWD/disk.$i 0\"
             dmsetup create key$i --table \"0 8 crypt aes-xts-plain64 $key 0 $PWD/disk.img $((i * 8))\"
         done",
    );
    world.kill_daemon();
    assert_eq!(world.sh("dmsetup table | wc -l").trim(), "200");
    world.sh("dmsetup remove_all");
    world.end();
}

#[test]
fn devices_stack_ten_deep() {
    if !can_make_block_devices("devices_stack_ten_deep") {
        return;
    }
    let world = World::new();
    world.sh("truncate -s 16M disk.img
         dmsetup create d0 --table \"0 32768 linear $PWD/disk.img 0\"
         for i in $(seq 1 10); do
             dmsetup create d$i --table \"0 $((32768 - i)) linear $M/d$((i - 1)) 1\"
         done
         echo deep | dd of=$M/d10 bs=512 conv=sync oflag=direct status=none
         test \"$(dd if=disk.img bs=512 skip=10 count=1 status=none | tr -d '\\0')\" = deep");
    let busy = world.fails("dmsetup remove d3");
    assert!(busy.contains("Device or resource busy"), "{busy}");
    let looped = world.fails("dmsetup reload d0 --table \"0 32000 linear $M/d10 0\"");
    assert!(looped.contains("failed"), "{looped}");
    world.sh("dmsetup remove_all");
    world.end();
}

#[test]
fn a_device_can_be_removed_as_soon_as_its_last_user_has_closed_it() {
    if !can_make_block_devices("a_device_can_be_removed_as_soon_as_its_last_user_has_closed_it") {
        return;
    }
    let world = World::new();
    // The daemon counts users while there is one; what it found then must not be taken for the present.
    world.sh("for i in $(seq 1 20); do
             dmsetup create z --table '0 2048 zero'
             exec 3<$M/z
             sleep 0.05
             dmsetup resume z
             exec 3<&-
             dmsetup remove z
         done");
    world.end();
}

#[test]
fn a_concise_dump_brings_a_removed_device_back_with_its_minor() {
    if !can_make_block_devices("a_concise_dump_brings_a_removed_device_back_with_its_minor") {
        return;
    }
    let world = World::new();
    // A number that nobody gets who takes the first free one while it is.
    world.sh("truncate -s 16M disk.img
         dmsetup create c --major 7 --minor 54321 --table \"0 32768 linear $PWD/disk.img 0\"
         for i in $(seq 1 10); do
             before=$(dmsetup info -c --noheadings -o name,minor,uuid c)
             dump=$(dmsetup table --concise c)
             dmsetup remove c
             dmsetup create --concise \"$dump\"
             test \"$(dmsetup info -c --noheadings -o name,minor,uuid c)\" = \"$before\"
         done
         dmsetup remove c");
    world.end();
}
