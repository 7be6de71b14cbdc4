//! What a session gives back.

use crate::world::{World, can_make_block_devices};

#[test]
fn space_comes_back_after_fstrim() {
    if !can_make_block_devices("space_comes_back_after_fstrim") {
        return;
    }
    let world = World::new();
    world.make_pool("2G", "1 skip_block_zeroing");
    world.make_thin(0, "vol", 2_097_152);
    world.sh("mkfs.ext4 -q $M/vol; mkdir mnt; mount $M/vol mnt
         dd if=/dev/urandom of=mnt/big bs=1M count=300 conv=fsync");
    let used = |what: &str| -> u64 {
        world
            .sh(&format!("du -k {what} | cut -f1"))
            .trim()
            .parse()
            .expect("kilobytes")
    };
    let before = used("data.img");
    assert!(before >= 300 * 1024, "{before} KiB used");
    world.sh("rm mnt/big; sync -f mnt; fstrim mnt; umount mnt; dmsetup status pool");
    let after = used("data.img");
    assert!(after < 64 * 1024, "{after} KiB still used of {before}");
    world.sh("dmsetup remove vol; dmsetup remove pool");
    world.end();
}
