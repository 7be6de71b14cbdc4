//! Volumes over NBD, with other people's clients.

use crate::world::{World, can_make_block_devices};

#[test]
fn every_device_is_an_export_of_its_own_name() {
    if !can_make_block_devices("every_device_is_an_export_of_its_own_name") {
        return;
    }
    let world = World::new();
    world.make_pool("1G", "");
    world.make_thin(0, "vol", 204_800);
    world.sh("head -c 30M /dev/urandom > content
         dd if=content of=$M/vol bs=1M oflag=direct conv=fsync status=none
         nbdcopy \"nbd+unix:///vol?socket=$RUN/nbd.sock\" out
         cmp -n 31457280 content out
         nbdinfo --list \"nbd+unix:///?socket=$RUN/nbd.sock\" | grep -q 'export=\"vol\"'");
    // What was never written is a hole that reads as zeroes.
    let map = world.sh("nbdinfo --map \"nbd+unix:///vol?socket=$RUN/nbd.sock\"");
    assert!(map.contains("data") && map.contains("hole,zero"), "{map}");
    world.sh(
        "qemu-img convert -n -f raw -O raw content \"nbd+unix:///vol?socket=$RUN/nbd.sock\"
         qemu-img compare -f raw -F raw out \"nbd+unix:///vol?socket=$RUN/nbd.sock\"",
    );
    world.sh("dmsetup rename vol other; nbdinfo --size \"nbd+unix:///other?socket=$RUN/nbd.sock\" | grep -qx 104857600");
    world.fails("nbdinfo --size \"nbd+unix:///vol?socket=$RUN/nbd.sock\"");
    world.sh("dmsetup remove other; dmsetup remove pool; thin_check meta.img");
    world.end();
}

#[test]
fn a_connected_client_keeps_its_device() {
    if !can_make_block_devices("a_connected_client_keeps_its_device") {
        return;
    }
    let world = World::new();
    world.sh(
        "truncate -s 64M disk.img; dmsetup create disk --table \"0 131072 linear $PWD/disk.img 0\"",
    );
    world.sh(
        "(PATH=/usr/bin:$PATH nbdsh -u \"nbd+unix:///disk?socket=$RUN/nbd.sock\" -c 'import time; open(\"connected\",\"w\"); time.sleep(3)') & client=$!
         for i in $(seq 100); do test -e connected && break; sleep 0.1; done
         if dmsetup remove disk 2>error; then exit 1; fi
         grep -q 'Device or resource busy' error
         wait $client
         for i in $(seq 50); do dmsetup remove disk 2>/dev/null && exit 0; sleep 0.1; done; exit 1",
    );
    world.end();
}
