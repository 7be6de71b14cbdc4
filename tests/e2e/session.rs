//! The article's session, word for word, with `dmsetup` being ours and the default directories.

use crate::world::{World, can_make_block_devices};

#[test]
fn the_articles_session_verbatim() {
    if !can_make_block_devices("the_articles_session_verbatim") {
        return;
    }
    let world = World::with_default_directories();
    if world.daemon_pid().is_some() {
        println!(
            "SKIP the_articles_session_verbatim: a thinmap daemon already runs on this machine"
        );
        return;
    }
    let loops = LoopDevices;
    world.sh(
        "dd if=/dev/zero of=data.img bs=1K count=1 seek=10M
         dd if=/dev/zero of=meta.data.img bs=1K count=1 seek=1G
         losetup /dev/loop2015 data.img
         losetup /dev/loop2016 meta.data.img
         dmsetup create hchen-thin-pool --table '0 20971522 thin-pool /dev/loop2016 /dev/loop2015 128 65536 1 skip_block_zeroing'
         dmsetup message /dev/mapper/hchen-thin-pool 0 'create_thin 0'
         dmsetup create hchen-thin-volumn-001 --table '0 2097152 thin /dev/mapper/hchen-thin-pool 0'
         mkfs.ext4 -q /dev/mapper/hchen-thin-volumn-001
         mkdir base snap1 snap2
         mount /dev/mapper/hchen-thin-volumn-001 base
         echo 'hello world, I am a base' > base/id.txt
         dmsetup suspend /dev/mapper/hchen-thin-volumn-001
         dmsetup message /dev/mapper/hchen-thin-pool 0 'create_snap 1 0'
         dmsetup resume /dev/mapper/hchen-thin-volumn-001
         dmsetup create mysnap1 --table '0 2097152 thin /dev/mapper/hchen-thin-pool 1'
         mount /dev/mapper/mysnap1 snap1
         echo 'I am snap1' >> snap1/id.txt
         echo 'I am snap1' > snap1/snap1.txt
         dmsetup suspend /dev/mapper/mysnap1
         dmsetup message /dev/mapper/hchen-thin-pool 0 'create_snap 2 1'
         dmsetup resume /dev/mapper/mysnap1
         dmsetup create mysnap2 --table '0 2097152 thin /dev/mapper/hchen-thin-pool 2'
         mount /dev/mapper/mysnap2 snap2
         echo 'I am snap2' > snap2/snap2.txt",
    );
    let ids = world.sh("cat base/id.txt; echo --; cat snap1/id.txt; echo --; cat snap2/id.txt");
    assert_eq!(
        ids,
        "hello world, I am a base\n--\nhello world, I am a base\nI am snap1\n--\nhello world, I am a base\nI am snap1\n"
    );
    let files = world.sh("for d in base snap1 snap2; do (cd $d; echo *.txt); done");
    assert_eq!(
        files,
        "id.txt\nid.txt snap1.txt\nid.txt snap1.txt snap2.txt\n"
    );

    let status = world.sh("dmsetup status hchen-thin-pool");
    let fields: Vec<&str> = status.split_whitespace().collect();
    assert_eq!(fields[..4], ["0", "20971522", "thin-pool", "0"], "{status}");
    // 1 TiB of metadata device, of which the format uses at most 255 bitmaps' worth of blocks.
    assert!(fields[4].ends_with("/4161600"), "{status}");
    assert!(fields[5].ends_with("/163840"), "{status}");
    assert_eq!(
        fields[6..],
        [
            "-",
            "rw",
            "discard_passdown",
            "queue_if_no_space",
            "-",
            "1024"
        ],
        "{status}"
    );
    assert_eq!(
        world.sh("dmsetup table hchen-thin-pool"),
        "0 20971522 thin-pool 7:2016 7:2015 128 65536 1 skip_block_zeroing \n"
    );

    world.sh("umount base snap1 snap2
         for v in hchen-thin-volumn-001 mysnap1 mysnap2; do fsck.ext4 -fn /dev/mapper/$v; done
         dmsetup remove mysnap2
         dmsetup remove mysnap1
         dmsetup remove hchen-thin-volumn-001
         dmsetup remove hchen-thin-pool
         losetup -d /dev/loop2015
         losetup -d /dev/loop2016
         thin_check --skip-mappings meta.data.img || true
         thinmap stop");
    drop(loops);
    world.try_sh("thinmap --no-autostart stop");
}

struct LoopDevices;

impl Drop for LoopDevices {
    fn drop(&mut self) {
        for number in [2015, 2016] {
            let device = format!("/dev/loop{number}");
            let attached =
                std::path::Path::new(&format!("/sys/block/loop{number}/loop/backing_file"))
                    .exists();
            if attached {
                let _ = std::process::Command::new("losetup")
                    .args(["-d", &device])
                    .status();
            }
        }
    }
}

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
