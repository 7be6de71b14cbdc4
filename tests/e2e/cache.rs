//! Caches under load: the daemon dies beneath a mounted file system, and caches in stacks, all verified by fio.

use std::process::Stdio;
use std::time::Duration;

use crate::fio;
use crate::world::{World, can_make_block_devices};

/// Buffered and direct files on ext4 over a cache much smaller than they are, over six deaths of the daemon.
#[test]
fn files_on_a_cache_survive_deaths_of_the_daemon() {
    if !can_make_block_devices("files_on_a_cache_survive_deaths_of_the_daemon") {
        return;
    }
    let world = World::lasting();
    world.sh(
        "truncate -s 512M origin.img; truncate -s 48M fast.img; truncate -s 4M meta.img; mkdir mnt
         dmsetup create c --table \"0 1048576 cache $PWD/meta.img $PWD/fast.img $PWD/origin.img 128 1 writeback smq 2 migration_threshold 8192\"
         mkfs.ext4 -q $M/c; mount $M/c mnt",
    );
    let load = |name: &str, direct: &str| {
        world
            .command("fio")
            .args([&format!("--name={name}"), &format!("--direct={direct}")])
            .args(["--ioengine=psync", "--rw=randwrite", "--bsrange=4k-64k"])
            .args(["--blockalign=4k", "--size=96m", "--fsync=64"])
            .args(["--verify=crc32c", "--verify_fatal=1", "--invalidate=1"])
            .arg("--directory=mnt")
            .stdout(Stdio::piped())
            .spawn()
            .expect("fio runs")
    };
    let loads = [load("buffered", "0"), load("direct", "1")];
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(400));
        world.kill_daemon();
        // The next one serves when this is answered.
        world.sh("dmsetup status c");
    }
    for load in loads {
        let output = load.wait_with_output().expect("fio");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}\n{}", world.daemon_log());
    }
    let said = world.sh(
        "sum=$(cat mnt/buffered* mnt/direct* | sha256sum); umount mnt
         fsck.ext4 -fn $M/c >fsck 2>&1
         dmsetup suspend c
         dmsetup load c --table \"0 1048576 cache $PWD/meta.img $PWD/fast.img $PWD/origin.img 128 0 cleaner 0\"
         dmsetup resume c
         for i in $(seq 300); do [ $(dmsetup status c | cut -d' ' -f14) = 0 ] && break; sleep 0.2; done
         dmsetup remove c; cache_check meta.img >/dev/null
         dmsetup create o --table \"0 1048576 linear $PWD/origin.img 0\"
         fsck.ext4 -fn $M/o >fsck 2>&1; mount -o ro $M/o mnt
         [ \"$(cat mnt/buffered* mnt/direct* | sha256sum)\" = \"$sum\" ] && echo the origin has everything
         umount mnt; dmsetup remove o",
    );
    assert_eq!(said, "the origin has everything\n");
    world.end();
}

/// A pool on a cache on a raid5, and a cipher on a write cache on a volume of that pool.
#[test]
fn caches_in_a_stack() {
    if !can_make_block_devices("caches_in_a_stack") {
        return;
    }
    let world = World::new();
    world.sh(
        "for i in 0 1 2; do truncate -s 130M leg$i.img; truncate -s 4M log$i.img; done
         truncate -s 24M fast.img; truncate -s 4M cmeta.img; truncate -s 8M pmeta.img; truncate -s 16M wc.img
         key=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n')
         dmsetup create raid --table \"0 524288 raid raid5_ls 3 128 region_size 1024 3 $PWD/log0.img $PWD/leg0.img $PWD/log1.img $PWD/leg1.img $PWD/log2.img $PWD/leg2.img\"
         dmsetup create cached --table \"0 524288 cache $PWD/cmeta.img $PWD/fast.img $M/raid 128 1 writeback smq 2 migration_threshold 8192\"
         dmsetup create pool --table \"0 524288 thin-pool $PWD/pmeta.img $M/cached 128 0\"
         dmsetup message pool 0 'create_thin 1'
         dmsetup create vol --table \"0 262144 thin $M/pool 1\"
         dmsetup create wc --table \"0 262144 writecache s $M/vol $PWD/wc.img 4096 2 pause_writeback 0\"
         dmsetup create top --table \"0 262144 crypt aes-xts-plain64 $key 0 $M/wc 0 1 sector_size:4096\"",
    );
    let load = fio::verify(
        &world,
        "top",
        &[
            "--bsrange=4k-128k",
            "--blockalign=4k",
            "--fsync=64",
            "--size=96m",
        ],
    );
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(300));
        world.sh(
            "for name in wc cached; do dmsetup suspend --noflush --nolockfs $name; dmsetup resume $name; done
             dmsetup message wc 0 flush",
        );
    }
    let output = load.wait_with_output().expect("fio");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", world.daemon_log());
    let said = world.sh(
        "dd if=$M/top bs=1M iflag=direct status=none | sha256sum >before
         dmsetup message wc 0 flush; dmsetup status wc | cut -d' ' -f4
         dmsetup suspend wc; dmsetup resume wc
         dd if=$M/top bs=1M iflag=direct status=none | sha256sum | cmp - before && echo the same
         for name in top wc vol pool cached raid; do dmsetup remove $name; done
         cache_check cmeta.img >/dev/null",
    );
    assert_eq!(said, "0\nthe same\n");
    world.end();
}
