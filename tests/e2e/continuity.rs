//! The daemon dies, or is replaced, under a mounted file system: nobody sees an error, nothing is lost.

use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{Mode, OFlags};
use thinmap_runtime::IoBuf;

use crate::world::{Ended, World, can_make_block_devices};

const SECTORS: u64 = 2_097_152;

fn number(variable: &str, default: u32) -> u32 {
    std::env::var(variable).map_or(default, |n| n.parse().expect("a number"))
}

#[test]
fn kills_under_a_mounted_file_system_are_a_pause() {
    let name = "kills_under_a_mounted_file_system_are_a_pause";
    if can_make_block_devices(name) {
        interrupt(number("THINMAP_CONTINUITY_KILLS", 6), "kill -9", |world| {
            world.kill_daemon();
        });
    }
}

#[test]
fn upgrades_under_a_mounted_file_system_are_a_pause() {
    let name = "upgrades_under_a_mounted_file_system_are_a_pause";
    if can_make_block_devices(name) {
        interrupt(number("THINMAP_UPGRADES", 2), "upgrade", |world| {
            world.sh("timeout 300 thinmap upgrade");
        });
    }
}

/// Interrupts the daemon under fio on ext4 with snapshots coming and going, and fio over NBD.
fn interrupt(times: u32, what: &str, interruption: impl Fn(&World)) {
    let world = World::lasting();
    world.make_pool("6G", "");
    world.make_thin(0, "vol", SECTORS);
    world.make_thin(1, "probe", 131_072);
    world.make_thin(2, "net", 131_072);
    world.sh("mkfs.ext4 -q $M/vol; mkdir mnt; mount -o discard $M/vol mnt");
    let stop = AtomicBool::new(false);
    let pause = LongestPause::default();
    let mut rng = StdRng::seed_from_u64(20_261_125);
    let mut pauses = Vec::new();
    let snapshots = AtomicU64::new(0);
    let rounds = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let guard = StopAtEnd(&stop);
        let files = scope.spawn(|| write_and_verify_files(&world, &stop, &rounds));
        let snapper = scope.spawn(|| take_snapshots(&world, &stop, &snapshots));
        let prober = scope.spawn(|| pause.probe(&world, &stop));
        let network = scope.spawn(|| verify_over_nbd(&world, &stop));
        for _ in 0..times {
            std::thread::sleep(Duration::from_millis(rng.random_range(50..500)));
            pause.take();
            interruption(&world);
            // Who connects meanwhile waits for the next daemon.
            let again = world.daemon_pid();
            assert!(again.is_some(), "no next daemon: {}", world.daemon_log());
            std::thread::sleep(Duration::from_millis(50));
            pauses.push(pause.take());
            let ended = [
                files.is_finished(),
                snapper.is_finished(),
                prober.is_finished(),
                network.is_finished(),
            ];
            assert_eq!(ended, [false; 4], "a load ended: {}", world.daemon_log());
        }
        drop(guard);
    });
    pauses.sort();
    println!(
        "{times} times {what}: {} rounds of files written and verified, {} snapshots, 0 errors; pause: median {:?}, longest {:?}",
        rounds.load(Ordering::Relaxed),
        snapshots.load(Ordering::Relaxed),
        pauses[pauses.len() / 2],
        pauses[pauses.len() - 1],
    );
    world.sh("timeout 100 umount mnt; timeout 100 fsck.ext4 -fn $M/vol; timeout 100 dmsetup remove_all; thin_check meta.img");
    world.end();
}

/// Ends the loads, also when the test fails in between.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// New files, so first writes to unprovisioned blocks, through the page cache and past it; read back from the device; removed and
/// discarded.
fn write_and_verify_files(world: &World, stop: &AtomicBool, rounds: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        world.sh(
            "common='--directory=mnt --size=24m --bsrange=4k-64k --rw=randwrite --verify=crc32c --verify_fatal=1 --fallocate=none'
             fio --name=direct $common --direct=1 --ioengine=libaio --iodepth=16 \
                 --name=cached $common --direct=0 --ioengine=psync --fsync=64 --invalidate=1 > fio.out 2>&1 || { cat fio.out >&2; exit 1; }
             rm -f mnt/direct.* mnt/cached.*",
        );
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}

/// Snapshots of the frozen file system, each opened once. A command that a death has cut off is given again.
fn take_snapshots(world: &World, stop: &AtomicBool, taken: &AtomicU64) {
    let mut id = 100;
    while !stop.load(Ordering::Relaxed) {
        id += 1;
        let snapshot = format!(
            "dmsetup suspend vol && dmsetup message pool 0 'create_snap {id} 0'
             until dmsetup resume vol; do sleep 0.05; done
             dmsetup create snap --table '0 {SECTORS} thin {} {id}' && dd if=$M/snap of=/dev/null bs=1M count=1 status=none
             true",
            world.dev_dir().join("pool").display()
        );
        let _ = world.command("bash").args(["-c", &snapshot]).output();
        if world.try_sh("dmsetup info snap").status.success() {
            taken.fetch_add(1, Ordering::Relaxed);
        }
        // Until it is gone: the first try may have been cut off after it was done.
        let gone = format!(
            "until=$((SECONDS + 60))
             while [ $SECONDS -lt $until ]; do
                 if dmsetup info snap > /dev/null 2>&1; then dmsetup remove snap 2> err || sleep 0.05; continue; fi
                 dmsetup message pool 0 'delete {id}' 2> err && exit 0
                 grep -q 'No data available' err && exit 0
                 sleep 0.05
             done; cat err >&2; exit 1"
        );
        world.sh(&gone);
    }
}

/// fio on a proxy that connects to the daemon again when it must, as any NBD client does that outlives its server.
fn verify_over_nbd(world: &World, stop: &AtomicBool) {
    let mut proxy = world
        .command("nbdkit")
        .args(["--foreground", "--exit-with-parent", "--unix"])
        .arg(world.path().join("proxy.sock"))
        .args(["--filter=retry", "nbd"])
        .arg(format!("socket={}/run/nbd.sock", world.path().display()))
        .args([
            "export=net",
            "retries=50",
            "retry-delay=1",
            "retry-exponential=no",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(Ended)
        .expect("nbdkit runs");
    world.sh("for i in $(seq 200); do [ -S proxy.sock ] && exit 0; sleep 0.05; done; exit 1");
    while !stop.load(Ordering::Relaxed) {
        assert!(
            proxy.0.try_wait().expect("the proxy").is_none(),
            "nbdkit ended"
        );
        // The proxy connects again when it loses a connection, but not when a death in the handshake keeps it from one.
        world.sh("for try in 1 2 3 4 5; do
                     fio --name=net --ioengine=nbd --uri=nbd+unix:///?socket=$PWD/proxy.sock --size=16m --rw=randwrite \
                         --bsrange=4k-64k --iodepth=8 --verify=crc32c --verify_fatal=1 > net.out 2>&1 && exit 0
                     grep -q 'nbd_connect_uri: handshake' net.out || break
                 done; cat net.out >&2; exit 1");
    }
}

/// The longest time that one small direct write and read took.
#[derive(Default)]
struct LongestPause(AtomicU64);

impl LongestPause {
    fn probe(&self, world: &World, stop: &AtomicBool) {
        let fd = open(world, "probe");
        let mut buf = IoBuf::alloc(4096);
        let mut turn: u64 = 0;
        while !stop.load(Ordering::Relaxed) {
            turn += 1;
            buf.as_mut_slice().fill(turn as u8);
            let at = turn % 8192 * 4096;
            let began = Instant::now();
            assert_eq!(rustix::io::pwrite(&fd, buf.as_slice(), at), Ok(4096));
            assert_eq!(rustix::io::pread(&fd, buf.as_mut_slice(), at), Ok(4096));
            let took = u64::try_from(began.elapsed().as_micros()).expect("microseconds");
            assert!(
                buf.as_slice().iter().all(|byte| *byte == turn as u8),
                "write {turn}"
            );
            self.0.fetch_max(took, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn take(&self) -> Duration {
        Duration::from_micros(self.0.swap(0, Ordering::Relaxed))
    }
}

fn open(world: &World, name: &str) -> OwnedFd {
    let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
    rustix::fs::open(world.dev_dir().join(name), flags, Mode::empty()).expect("the volume opens")
}

/// All that a command can have set is there after a death.
#[test]
fn states_and_tables_come_back() {
    if !can_make_block_devices("states_and_tables_come_back") {
        return;
    }
    let world = World::lasting();
    world.make_pool("1G", "");
    world.make_thin(0, "vol", 204_800);
    world.sh("truncate -s 8M disk.img
         dmsetup create lin -u uuid-of-lin --table \"0 8192 linear $PWD/disk.img 0\"
         dmsetup create ro -r --table \"0 8192 linear $PWD/disk.img 8192\"
         dmsetup load lin --table '0 4096 zero'; dmsetup create empty --notable
         dmsetup suspend vol; dmsetup rename lin linear");
    let seen = "for t in '' --inactive; do dmsetup table $t; done; dmsetup ls; ls $M
         dmsetup info -c --noheadings -o name,uuid,major,minor,attr,open";
    let before = world.sh(seen);
    let write = "exec 9<> $M/vol; timeout 60 dd if=/dev/zero of=$M/vol bs=4k count=1 oflag=direct conv=notrunc status=none";
    let waiting = world.command("bash").args(["-c", write]).spawn();
    let mut waiting = waiting.map(Ended).expect("dd");
    std::thread::sleep(Duration::from_millis(200));
    world.kill_daemon();
    world.sh("timeout 60 thinmap ping");
    let open = |text: &str| text.replace(":2\n", ":0\n").replace(":3\n", ":0\n");
    assert_eq!(open(&world.sh(seen)), open(&before));
    // Suspended it still holds what waits.
    assert!(waiting.0.try_wait().expect("dd").is_none());
    world.sh("dmsetup resume vol linear");
    assert!(waiting.0.wait().expect("dd").success());
    assert_eq!(world.sh("dmsetup table linear"), "0 4096 zero \n");
    world.sh("dmsetup remove_all; thin_check meta.img");
    world.end();
}

/// What cannot come up ends in errors, not in waiting.
#[test]
fn a_daemon_that_dies_again_and_again_is_given_up() {
    if !can_make_block_devices("a_daemon_that_dies_again_and_again_is_given_up") {
        return;
    }
    let world = World::new();
    world.sh("printf '[continuity]\ndeaths_max = 2\n' > config.toml
         thinmap daemon --detach --config config.toml; truncate -s 8M disk.img
         dmsetup create lin --table \"0 8192 linear $PWD/disk.img 0\"");
    for _ in 0..3 {
        world.kill_daemon();
    }
    world.sh("timeout 60 flock $RUN/control.lock true");
    let error = world.fails("timeout 60 dd if=$M/lin of=/dev/null bs=4k count=1 iflag=direct");
    assert!(error.contains("Input/output error"), "{error}");
    assert!(
        world.daemon_log().contains("giving up: 3 deaths"),
        "{}",
        world.daemon_log()
    );
    world.sh("dmsetup ls | grep -q 'No devices'");
    world.end();
}
