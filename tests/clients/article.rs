//! The article's session, word for word, in the default directories: by our own dmsetup, by the distribution's, and by a
//! static program that makes the ioctls itself.

use crate::static_program;
use crate::support::turn;
use thinmap_tests::world::World;

const NEEDS: &[&str] = &["/usr/sbin/mkfs.ext4", "/usr/sbin/thin_check"];

#[test]
fn the_articles_session_by_our_dmsetup() {
    let Some((world, _turn)) = turn("the_articles_session_by_our_dmsetup", NEEDS) else {
        return;
    };
    session(&world, "");
    world.end();
}

#[test]
fn the_articles_session_by_debians_dmsetup() {
    let test = "the_articles_session_by_debians_dmsetup";
    let Some((world, _turn)) = turn(test, &["/usr/sbin/dmsetup", NEEDS[0], NEEDS[1]]) else {
        return;
    };
    session(
        &world,
        r#"dmsetup() { thinmap run -- /usr/sbin/dmsetup "$@"; }"#,
    );
    world.end();
}

#[test]
fn the_articles_session_by_a_static_program() {
    let test = "the_articles_session_by_a_static_program";
    let Some((world, _turn)) = turn(test, &["/usr/bin/go", NEEDS[0], NEEDS[1]]) else {
        return;
    };
    static_program::build(&world);
    // Its words are its own: no `--table`, no sector of a message, names without a directory.
    let dmsetup = r#"
        dmsetup() {
            local command=$1 name=${2##*/}; shift 2
            case $command in
                create) set -- "$2" ;;
                message) shift ;;
            esac
            thinmap run --static -- ./dm $command $name "$@"
        }"#;
    session(&world, dmsetup);
    world.end();
}

/// `dmsetup` defines the command, or nothing for our own.
fn session(world: &World, dmsetup: &str) {
    let sh = |script: &str| world.sh(&format!("{dmsetup}\n{script}"));
    let loops = LoopDevices;
    sh(
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
    let ids = sh("cat base/id.txt; echo --; cat snap1/id.txt; echo --; cat snap2/id.txt");
    assert_eq!(
        ids,
        "hello world, I am a base\n--\nhello world, I am a base\nI am snap1\n--\nhello world, I am a base\nI am snap1\n"
    );
    let files = sh("for d in base snap1 snap2; do (cd $d; echo *.txt); done");
    assert_eq!(
        files,
        "id.txt\nid.txt snap1.txt\nid.txt snap1.txt snap2.txt\n"
    );

    let status = sh("dmsetup status hchen-thin-pool");
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
        sh("dmsetup table hchen-thin-pool"),
        "0 20971522 thin-pool 7:2016 7:2015 128 65536 1 skip_block_zeroing \n"
    );

    sh("umount base snap1 snap2
         for v in hchen-thin-volumn-001 mysnap1 mysnap2; do fsck.ext4 -fn /dev/mapper/$v; done
         dmsetup remove mysnap2
         dmsetup remove mysnap1
         dmsetup remove hchen-thin-volumn-001
         dmsetup remove hchen-thin-pool
         losetup -d /dev/loop2015
         losetup -d /dev/loop2016
         thin_check meta.data.img");
    drop(loops);
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
