//! What file-system developers do with log-writes, flakey and dust, on ext4.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::world::{World, can_make_block_devices};

/// 256 MiB.
const SECTORS: u64 = 524_288;

#[test]
fn a_log_replays_to_the_file_system_at_each_mark() {
    if !can_make_block_devices("a_log_replays_to_the_file_system_at_each_mark") {
        return;
    }
    let world = World::new();
    world.sh(&format!(
        "truncate -s {bytes} dev; truncate -s 2G log; mkdir mnt
         dmsetup create w --table \"0 {SECTORS} log-writes $PWD/dev $PWD/log\"
         mkfs.ext4 -q $M/w; dmsetup message w 0 mark mkfs
         mount $M/w mnt
         for i in 1 2 3; do
             head -c 5M /dev/urandom >mnt/$i; sync -f mnt; sha256sum mnt/$i >sum.$i
             dmsetup message w 0 mark synced$i
         done
         rm mnt/2; sync -f mnt; dmsetup message w 0 mark removed
         head -c 20M /dev/urandom >mnt/never-synced
         umount mnt; dmsetup remove w",
        bytes = SECTORS * 512
    ));
    let log = world.path().join("log");
    let replayed = world.path().join("replayed");
    for (mark, there, gone) in [
        ("synced1", "1", "2 3"),
        ("synced3", "1 2 3", "never-synced"),
        ("removed", "1 3", "2"),
    ] {
        replay(&log, &replayed, mark);
        // The journal is replayed by fsck: what was synced before the mark must be there after it.
        world.sh(&format!(
            "fsck.ext4 -fy replayed || [ $? = 1 ]; fsck.ext4 -fn replayed
             mount -o loop,ro replayed mnt
             for i in {there}; do sha256sum -c sum.$i; done
             for i in {gone}; do test ! -e mnt/$i; done
             umount mnt"
        ));
    }
    world.end();
}

/// Does again what the log tells, up to a mark. `replay-log` of xfstests in short.
fn replay(log: &Path, device: &Path, mark: &str) {
    let mut log = fs::File::open(log).expect("the log");
    let mut out = fs::File::create(device).expect("the copy");
    out.set_len(SECTORS * 512).expect("its size");
    let mut head = [0; 512];
    log.read_exact(&mut head).expect("the super");
    let number = |head: &[u8], at: usize| {
        u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"))
    };
    assert_eq!(&head[..8], b"rhswfsj\0");
    for _ in 0..number(&head, 16) {
        log.read_exact(&mut head).expect("an entry");
        let [first, blocks, flags, text] = [0, 8, 16, 24].map(|at| number(&head, at));
        if flags & 8 != 0 {
            if &head[32..32 + text as usize] == mark.as_bytes() {
                return;
            }
            continue;
        }
        if flags & 4 != 0 {
            continue;
        }
        let mut data = vec![0; blocks as usize * 512];
        log.read_exact(&mut data).expect("its data");
        out.seek(SeekFrom::Start(first * 512)).expect("its place");
        out.write_all(&data).expect("written");
    }
    panic!("no mark {mark}");
}

#[test]
fn what_flakey_drops_is_gone_and_the_journal_brings_back_the_rest() {
    if !can_make_block_devices("what_flakey_drops_is_gone_and_the_journal_brings_back_the_rest") {
        return;
    }
    let world = World::new();
    world.sh(&format!(
        "truncate -s {bytes} dev; mkdir mnt
         up=\"0 {SECTORS} flakey $PWD/dev 0 180 0\"
         down=\"0 {SECTORS} flakey $PWD/dev 0 0 180 1 drop_writes\"
         dmsetup create f --table \"$up\"
         mkfs.ext4 -q $M/f; mount $M/f mnt
         head -c 5M /dev/urandom >mnt/kept; sync -f mnt; sha256sum mnt/kept >sum
         dmsetup suspend --nolockfs f; dmsetup load f --table \"$down\"; dmsetup resume f
         echo lost >mnt/lost; sync -f mnt; test -e mnt/lost
         umount mnt; dmsetup remove f
         fsck.ext4 -fy dev || [ $? = 1 ]; fsck.ext4 -fn dev
         mount -o loop,ro dev mnt; sha256sum -c sum; test ! -e mnt/lost; umount mnt",
        bytes = SECTORS * 512
    ));
    world.end();
}

#[test]
fn a_bad_block_fails_reads_until_it_is_written() {
    if !can_make_block_devices("a_bad_block_fails_reads_until_it_is_written") {
        return;
    }
    let world = World::new();
    world.sh("truncate -s 16M dev
         dmsetup create d --table \"0 32768 dust $PWD/dev 0 4096\"
         dmsetup message d 0 addbadblock 100; dmsetup message d 0 enable
         read() { dd if=$M/d of=/dev/null bs=4k skip=$1 count=1 iflag=direct status=none; }
         read 99; read 101; ! read 100
         dd if=/dev/zero of=$M/d bs=4k seek=100 count=1 oflag=direct status=none
         read 100
         dmsetup message d 0 countbadblocks | grep 'countbadblocks: 0 badblock(s) found'
         dmsetup remove d");
    world.end();
}
