//! A real tree on each file system over a thin volume: unpacked, compared, snapshotted, checked.

use crate::world::{World, can_make_block_devices};

fn tree_on(file_system: &str, mkfs: &str, mount_options: &str, fsck: &str) {
    if !can_make_block_devices(file_system) {
        return;
    }
    let world = World::new();
    world.make_pool("6G", "");
    world.make_thin(0, "vol", 6_291_456);
    world.sh(&format!(
        "{mkfs} $M/vol; mkdir mnt snap; mount {mount_options} $M/vol mnt"
    ));
    world.sh(
        "tar -C /usr/share -cf tree.tar --sort=name doc perl zoneinfo
         tar -C mnt -xf tree.tar; sync -f mnt",
    );
    // A snapshot of the mounted volume: the suspend freezes the file system.
    world.sh("dmsetup suspend vol; dmsetup message pool 0 'create_snap 1 0'; dmsetup resume vol");
    world.sh("rm -rf mnt/doc; echo changed > mnt/changed; sync -f mnt");
    world.sh(&format!(
        "dmsetup create snap --table \"0 6291456 thin $M/pool 1\"
         mount {mount_options} $M/snap snap
         tar -C snap -df tree.tar
         test ! -e snap/changed; test ! -e mnt/doc
         umount mnt snap
         {fsck} $M/vol; {fsck} $M/snap
         dmsetup remove snap; dmsetup remove vol; dmsetup remove pool
         thin_check meta.img"
    ));
    world.end();
}

#[test]
fn a_tree_on_ext4() {
    tree_on("ext4", "mkfs.ext4 -q", "", "fsck.ext4 -fn");
}

#[test]
fn a_tree_on_xfs() {
    tree_on("xfs", "mkfs.xfs -q", "-o nouuid", "xfs_repair -n");
}

#[test]
fn a_tree_on_btrfs() {
    // Two mounted copies of one btrfs confuse the kernel (same uuid): the snapshot gets its own.
    if !can_make_block_devices("btrfs") {
        return;
    }
    let world = World::new();
    world.make_pool("6G", "");
    world.make_thin(0, "vol", 6_291_456);
    world.make_thin(9, "beside", 524_288);
    // One mounted beside it must not be taken for it: what btrfs's tools know of a loop device is its file's name.
    world.sh(
        "mkfs.btrfs -q $M/beside; mkdir beside; mount $M/beside beside
         mkfs.btrfs -q $M/vol; mkdir mnt; mount $M/vol mnt
         tar -C /usr/share -cf tree.tar --sort=name doc perl zoneinfo
         tar -C mnt -xf tree.tar; sync -f mnt
         dmsetup suspend vol; dmsetup message pool 0 'create_snap 1 0'; dmsetup resume vol
         rm -rf mnt/doc; umount mnt; btrfs check $M/vol
         dmsetup remove vol
         dmsetup create snap --table \"0 6291456 thin $M/pool 1\"
         mount $M/snap mnt; tar -C mnt -df tree.tar; umount mnt
         btrfs check $M/snap; umount beside
         dmsetup remove snap; dmsetup remove beside; dmsetup remove pool
         thin_check meta.img",
    );
    world.end();
}
