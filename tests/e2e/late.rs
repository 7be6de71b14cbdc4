//! A daemon dies, and a backing does not answer the next one: its devices wait for it, all others do not.

use crate::world::{World, can_make_block_devices};

/// A world with a device that devices of a second world stand on, and that can be made to hang.
struct Below {
    world: World,
    path: String,
}

impl Below {
    fn new() -> Self {
        let world = World::new();
        let path = world.sh(
            "truncate -s 64M low.img
             dmsetup create low --table \"0 131072 linear $PWD/low.img 0\" >&2; readlink -f $M/low",
        );
        let path = path.trim().to_owned();
        Self { world, path }
    }

    /// Until the answer is dropped.
    fn hang(&self) -> Hang<'_> {
        Hang::of(&self.world, "low")
    }

    fn end(self) {
        self.world.sh("dmsetup remove low");
        self.world.end();
    }
}

/// A device of a world that hangs.
struct Hang<'a>(&'a World, &'static str);

impl<'a> Hang<'a> {
    fn of(world: &'a World, device: &'static str) -> Self {
        world.sh(&format!("dmsetup suspend {device}"));
        Self(world, device)
    }
}

impl Drop for Hang<'_> {
    fn drop(&mut self) {
        self.0.try_sh(&format!("dmsetup resume {}", self.1));
    }
}

/// Worlds for a test of this name: one that stands on the other.
fn worlds(test: &str) -> Option<(Below, World)> {
    can_make_block_devices(test).then(|| (Below::new(), World::lasting()))
}

const READ: &str = "timeout 60 dd of=/dev/null bs=4k count=1 iflag=direct status=none if=$M";
const WAITS: &str = "does not answer";

#[test]
fn devices_wait_for_a_backing_that_hangs_and_others_do_not() {
    let Some((below, world)) = worlds("devices_wait_for_a_backing_that_hangs_and_others_do_not")
    else {
        return;
    };
    let low = &below.path;
    // A snapshot whose exceptions only memory has, a pool with a mounted volume, and a device by itself.
    let tables = world.sh(&format!(
        "truncate -s 64M data.img; truncate -s 16M other.img cow.img
         dmsetup create part --table '0 8192 linear {low} 0'
         dmsetup create meta --table '0 16384 linear {low} 8192'
         dmsetup create origin --table '0 32768 linear {low} 32768'
         dmsetup create snap --table \"0 32768 snapshot $M/origin $PWD/cow.img N 8\"
         dmsetup create pool --table \"0 131072 thin-pool $M/meta $PWD/data.img 128 0\"
         dmsetup message pool 0 'create_thin 0'; dmsetup create vol --table \"0 65536 thin $M/pool 0\"
         dmsetup create other --table \"0 32768 linear $PWD/other.img 0\"
         dmsetup create stopped --table \"0 8 linear {low} 0\"; dmsetup suspend stopped
         head -c 1M /dev/urandom >content
         dd if=content of=$M/snap bs=64k oflag=direct status=none
         mkfs.ext4 -q $M/vol; mkdir mnt; mount $M/vol mnt; cp content mnt; sync mnt/content
         dmsetup table"
    ));
    let hang = below.hang();
    for deaths in 1..=2 {
        world.kill_daemon();
        world.sh(&format!("{READ}/other; timeout 60 dmsetup ls | grep vol"));
        let log = world.daemon_log();
        assert_eq!(log.matches(WAITS).count(), deaths * 7, "{log}");
    }
    let mut readers =
        ["part", "snap", "vol", "stopped"].map(|name| world.start(&format!("{READ}/{name}")));
    let mut over_nbd = world.start("nbdcopy \"nbd+unix:///part?socket=$RUN/nbd.sock\" part.img");
    world.sh("sleep 1; dmsetup info stopped | grep SUSPENDED; dmsetup info part | grep ACTIVE");
    for verb in ["suspend part", "resume stopped"] {
        world.fails(&format!("timeout 60 dmsetup {verb}"));
    }
    for reader in readers.iter_mut().chain([&mut over_nbd]) {
        assert!(reader.0.try_wait().expect("a child").is_none(), "it waits");
    }
    drop(hang);
    for reader in readers[..3].iter_mut().chain([&mut over_nbd]) {
        assert!(reader.0.wait().expect("a child").success());
    }
    assert!(
        readers[3].0.try_wait().expect("a child").is_none(),
        "suspended as before"
    );
    assert_eq!(world.sh("dmsetup resume stopped; dmsetup table"), tables);
    assert!(readers[3].0.wait().expect("a child").success());
    world.sh(
        "cmp -n 1048576 content $M/snap; cmp -n 4194304 part.img $M/part
         cp content mnt/again; umount mnt; fsck.ext4 -fn $M/vol
         dmsetup remove vol pool snap; dmsetup remove origin meta part stopped other",
    );
    world.end();
    below.end();
}

#[test]
fn what_was_in_flight_or_frozen_is_so_until_the_backing_answers() {
    let Some((below, world)) =
        worlds("what_was_in_flight_or_frozen_is_so_until_the_backing_answers")
    else {
        return;
    };
    let low = &below.path;
    world.sh(&format!(
        "dmsetup create part --table '0 8192 linear {low} 0'
         dmsetup create fs --table '0 32768 linear {low} 32768'
         mkfs.ext4 -q $M/fs; mkdir mnt; mount $M/fs mnt; sync -f mnt; dmsetup suspend fs
         head -c 64k /dev/urandom >content"
    ));
    let hang = below.hang();
    let mut write =
        world.start("dd if=content of=$M/part bs=64k oflag=direct conv=fsync status=none");
    world.sh("sleep 0.5");
    world.kill_daemon();
    let mut frozen = world.start("echo thawed >mnt/file");
    world.sh("timeout 60 dmsetup ls; sleep 1");
    drop(hang);
    assert!(write.0.wait().expect("dd").success());
    world.sh("cmp -n 65536 content $M/part
         for i in $(seq 100); do grep -q 'have answered.*=fs' $RUN/daemon.log && break; sleep 0.1; done; sleep 0.5");
    assert!(frozen.0.try_wait().expect("bash").is_none(), "it is frozen");
    world.sh("dmsetup info fs | grep SUSPENDED; dmsetup resume fs");
    assert!(frozen.0.wait().expect("bash").success());
    // The same, but that it gets another table before.
    world.sh("sync -f mnt; dmsetup suspend fs");
    world.sh(&format!(
        "dd if={low} of=copy.img bs=1M skip=16 count=16 iflag=direct status=none"
    ));
    let hang = below.hang();
    world.kill_daemon();
    let mut frozen = world.start("echo elsewhere >mnt/file2");
    world.sh("dmsetup reload fs --table \"0 32768 linear $PWD/copy.img 0\"; timeout 60 dmsetup resume fs");
    assert!(frozen.0.wait().expect("bash").success());
    drop(hang);
    world.sh("grep thawed mnt/file; grep elsewhere mnt/file2; umount mnt; fsck.ext4 -fn $M/fs; dmsetup remove part fs");
    world.end();
    below.end();
}

#[test]
fn a_device_that_waits_can_be_given_another_table_removed_and_stopped() {
    let name = "a_device_that_waits_can_be_given_another_table_removed_and_stopped";
    let Some((below, world)) = worlds(name) else {
        return;
    };
    let low = &below.path;
    world.sh(&format!(
        "for name in removed replaced cleared kept; do dmsetup create $name --table '0 8192 linear {low} 0'; done
         dmsetup reload kept --table '0 8192 linear {low} 8192'; truncate -s 4M other.img"
    ));
    let hang = below.hang();
    world.kill_daemon();
    let mut read = world.start(&format!("{READ}/replaced"));
    world.sh("timeout 60 dmsetup remove removed; test ! -e $M/removed
         dmsetup reload replaced --table \"0 8192 linear $PWD/other.img 0\"
         dmsetup reload cleared --table '0 8192 error'; sleep 1");
    assert!(read.0.try_wait().expect("dd").is_none(), "it waits");
    world.sh(&format!(
        "timeout 60 dmsetup resume replaced; {READ}/replaced"
    ));
    assert!(read.0.wait().expect("dd").success());
    drop(hang);
    world.sh(&format!(
        "{READ}/kept; dmsetup table --inactive kept | grep 8192$
         dmsetup table replaced | grep ' 0$'; sleep 2; test $(grep -c 'have answered.*cleared' $RUN/daemon.log) = 0
         dmsetup clear cleared; {READ}/cleared; dmsetup table cleared | grep linear"
    ));

    let hang = below.hang();
    world.kill_daemon();
    let mut read = world.start(&format!("{READ}/kept"));
    world.sh("timeout 60 dmsetup ls; sleep 0.5");
    world.fails("timeout 60 thinmap stop");
    world.sh("timeout 60 thinmap stop --force");
    assert!(!read.0.wait().expect("dd").success(), "it failed");
    assert_eq!(world.leftovers(), Vec::<String>::new());
    drop(hang);
    world.end();
    below.end();
}

/// Which is not served before that device is.
#[test]
fn a_backing_may_be_a_file_on_a_device_of_the_same_daemon() {
    if !can_make_block_devices("a_backing_may_be_a_file_on_a_device_of_the_same_daemon") {
        return;
    }
    let world = World::lasting();
    world.sh(
        "truncate -s 128M low.img data.img; dmsetup create low --table \"0 262144 linear $PWD/low.img 0\"
         mkfs.ext4 -q $M/low; mkdir mnt; mount $M/low mnt; truncate -s 16M mnt/img
         dmsetup create up --table \"0 32768 linear $PWD/mnt/img 0\"
         head -c 64k /dev/urandom >content; dd if=content of=$M/up bs=64k oflag=direct status=none
         # Its beginning is not on the device.
         fallocate -l 32M mnt/img2; dmsetup create meta --table \"0 16384 linear $PWD/mnt/img2 2048\"
         dmsetup create pool --table \"0 65536 thin-pool $M/meta $PWD/data.img 128 0\"
         dmsetup message pool 0 'create_thin 0'; dmsetup create vol --table \"0 32768 thin $M/pool 0\"
         dd if=content of=$M/vol bs=64k oflag=direct status=none",
    );
    for _ in 0..2 {
        world.kill_daemon();
        world.sh(
            "dd if=$M/up bs=64k count=1 iflag=direct status=none | cmp - content
             timeout 60 dd if=$M/vol bs=64k count=1 iflag=direct status=none | cmp - content",
        );
    }
    assert!(!world.daemon_log().contains("cannot come back"));
    world.sh("for i in $(seq 100); do dmsetup suspend vol && dmsetup resume vol && break; sleep 0.1; done
         dmsetup remove vol pool meta up; umount mnt; fsck.ext4 -fn $M/low; dmsetup remove low");
    world.end();
}

#[test]
fn a_table_that_hangs_keeps_no_other_table_or_command() {
    let Some((below, world)) = worlds("a_table_that_hangs_keeps_no_other_table_or_command") else {
        return;
    };
    let low = &below.path;
    // Each reads a superblock, when it is loaded or when it is resumed.
    let tables = |a: &str, b: &str, c: &str, d: &str| {
        [
            format!("0 32768 thin-pool {a} {b} 128 0"),
            format!("0 32768 cache {a} {b} {c} 128 1 writeback default 0"),
            format!("0 32768 era {a} {b} 128"),
            format!("0 32768 clone {a} {b} {c} 8"),
            format!("0 32768 writecache s {b} {a} 4096 0"),
            format!("0 16384 integrity {a} 0 4 D 0"),
            format!("0 32768 snapshot {b} {a} P 8"),
            format!("0 32768 mirror disk 2 {a} 1024 2 {b} 0 {c} 0"),
            format!("0 32768 raid raid1 3 0 region_size 1024 2 {a} {b} {d} {c}"),
        ]
    };
    let file = |name: &str| world.path().join(name).display().to_string();
    world.sh(&format!(
        "truncate -s 32M a.img b.img c.img d.img e.img f.img g.img; dmsetup create hung --table '0 65536 linear {low} 0'"
    ));
    let hang = below.hang();
    let hung = world.sh("readlink -f $M/hung");
    let bad = tables(hung.trim(), &file("b.img"), &file("c.img"), &file("f.img"));
    let good = tables(
        &file("a.img"),
        &file("d.img"),
        &file("e.img"),
        &file("g.img"),
    );
    for (number, (bad, good)) in bad.iter().zip(good).enumerate() {
        let mut create = world.start(&format!("dmsetup create bad{number} --table '{bad}'"));
        world.sh("sleep 0.3");
        assert!(create.0.try_wait().expect("dmsetup").is_none(), "{bad}");
        world.sh(&format!(
            "timeout 20 dmsetup ls >/dev/null; timeout 20 dmsetup info bad{number}; timeout 20 thinmap ls-exports
             timeout 20 dmsetup create good --table '{good}'; timeout 20 dmsetup status good; dmsetup table
             timeout 20 dmsetup remove good; for f in a b c d e f g; do truncate -s 0 $f.img; truncate -s 32M $f.img; done"
        ));
        below.world.sh("dmsetup resume low");
        create.0.wait().expect("dmsetup");
        world.sh(&format!(
            "dmsetup remove bad{number} || true; dd if=/dev/zero of=$M/hung bs=1M count=4 oflag=direct status=none"
        ));
        below.world.sh("dmsetup suspend low");
    }
    drop(hang);
    world.sh("dmsetup remove hung");
    world.end();
    below.end();
}

/// Its old data would be gone: nobody would have copied them.
#[test]
fn an_origin_waits_for_its_snapshots() {
    let Some((below, world)) = worlds("an_origin_waits_for_its_snapshots") else {
        return;
    };
    let low = &below.path;
    world.sh(&format!(
        "head -c 16M /dev/urandom >org.img; cp org.img old; head -c 64k /dev/urandom >new; truncate -s 16M cow2.img
         dmsetup create base --table \"0 32768 linear $PWD/org.img 0\"
         dmsetup create org --table \"0 32768 snapshot-origin $M/base\"
         dmsetup create snap --table \"0 32768 snapshot $M/base {low} P 8\"
         dmsetup create snap2 --table \"0 32768 snapshot $M/base $PWD/cow2.img N 8\""
    ));
    let hang = below.hang();
    world.kill_daemon();
    let mut write = world.start("dd if=new of=$M/org bs=64k oflag=direct status=none");
    world.sh("timeout 60 cmp -n 65536 old $M/snap2; sleep 0.5");
    assert!(write.0.try_wait().expect("dd").is_none(), "it waits");
    drop(hang);
    assert!(write.0.wait().expect("dd").success());
    world.sh("cmp -n 65536 new $M/org; cmp old $M/snap; cmp old $M/snap2");
    // Nor may somebody bring the origin back before them.
    let hang = below.hang();
    world.kill_daemon();
    world.sh("timeout 60 dmsetup reload org --table \"$(dmsetup table org)\"");
    let error = world.fails("timeout 60 dmsetup resume org");
    assert!(error.contains("snap, a snapshot"), "{error}");
    // One that cannot come back at all is none any more, as its origin goes on, now or later.
    world.sh("dmsetup clear org; mv cow2.img away.img");
    world.kill_daemon();
    drop(hang);
    world.sh("timeout 60 dd if=new of=$M/org bs=64k seek=2 oflag=direct status=none; mv away.img cow2.img");
    world.kill_daemon();
    world.sh("timeout 60 cmp old $M/snap; test -z \"$(dmsetup table snap2)\"; dmsetup remove snap2; truncate -s 0 cow2.img; truncate -s 16M cow2.img
         dmsetup create snap2 --table \"0 32768 snapshot $M/base $PWD/cow2.img N 8\"; cp $M/org old2");
    world.sh("mv cow2.img away.img");
    world.kill_daemon();
    world.sh("timeout 60 dd if=new of=$M/org bs=64k seek=1 oflag=direct status=none; mv away.img cow2.img");
    world.kill_daemon();
    world.sh("timeout 60 cmp old $M/snap; test -z \"$(dmsetup table snap2)\"");
    world.sh("dmsetup remove snap snap2 org; dmsetup remove base");
    world.end();
    below.end();
}

#[test]
fn what_a_waiting_device_stands_on_is_in_use_and_messages_are_refused() {
    let name = "what_a_waiting_device_stands_on_is_in_use_and_messages_are_refused";
    let Some((below, world)) = worlds(name) else {
        return;
    };
    let low = &below.path;
    world.sh(&format!(
        "truncate -s 16M good.img data.img
         dmsetup create mid --table '0 8192 linear {low} 0'; dmsetup create up --table \"0 8192 linear $M/mid 0\"
         dmsetup create good --table \"0 8192 linear $PWD/good.img 0\"
         dmsetup create join --table \"0 8192 linear $M/good 0
8192 8192 linear {low} 8192\"; dmsetup remove --deferred good
         dmsetup create pool --table \"0 32768 thin-pool {low} $PWD/data.img 128 0\" || true
         dmsetup remove --force forced 2>/dev/null || true
         dmsetup create forced --table '0 8192 linear {low} 0'
         dmsetup create swap --table \"0 8 linear $PWD/good.img 8192\"; dmsetup reload swap --table '0 8 linear {low} 0'"
    ));
    let tables = world.sh("dmsetup table");
    let hang = below.hang();
    world.kill_daemon();
    assert_eq!(world.sh("timeout 60 dmsetup table"), tables);
    world.sh("dmsetup status up | grep '0 8192 linear'; dmsetup status >/dev/null; dmsetup deps mid | grep 1.dep");
    world.fails("timeout 20 dmsetup remove mid");
    world.sh("dmsetup info good; test $(dmsetup info -c --noheadings -o open good) = 1; thinmap ls-exports up | grep '8192 sectors'");
    let error = world.fails("timeout 20 dmsetup message pool 0 'create_thin 1'");
    assert!(error.contains("busy"), "{error}");
    // A table that was to be swapped in must not seem to have been.
    world.fails("timeout 20 dmsetup resume swap");
    let mut read = world.start(&format!("{READ}/forced"));
    world.sh("sleep 0.5");
    let _ = world.try_sh("timeout 20 dmsetup remove --force forced");
    assert!(!read.0.wait().expect("dd").success(), "an error");
    world.try_sh("dmsetup remove forced");
    drop(hang);
    world.sh(&format!(
        "{READ}/up; {READ}/join; for i in $(seq 100); do dmsetup message pool 0 'create_thin 1' && break; sleep 0.1; done
         for i in $(seq 100); do dmsetup resume swap && break; sleep 0.1; done
         dmsetup table swap | grep -v good
         dmsetup remove up mid join pool swap; for i in $(seq 50); do dmsetup info good 2>/dev/null || exit 0; sleep 0.1; done; exit 1"
    ));
    world.end();
    below.end();
}

#[test]
fn one_that_hangs_again_keeps_no_other_late_device() {
    if !can_make_block_devices("one_that_hangs_again_keeps_no_other_late_device") {
        return;
    }
    let below = Below::new();
    let second = Below::new();
    let (low, low2) = (&below.path, &second.path);
    let world = World::lasting();
    world.sh(&format!(
        "truncate -s 16M good.img
         for n in 1 2 3; do dmsetup create a$n --table '0 8192 linear {low} 0'; done
         dmsetup create up --table \"0 8192 linear $M/a3 0\""
    ));
    let hang = below.hang();
    let hang2 = second.hang();
    world.kill_daemon();
    // A load by a user that hangs on another device.
    let mut load = world.start(&format!(
        "dmsetup reload a2 --table \"0 8192 era {low2} $PWD/good.img 128\""
    ));
    // And a new table for what another one stands on.
    world.sh(&format!(
        "dmsetup reload a3 --table \"0 8192 linear $PWD/good.img 0\"; sleep 1
         timeout 60 dmsetup resume a3; {READ}/a3; {READ}/up"
    ));
    drop(hang);
    world.sh(&format!("{READ}/a1"));
    drop(hang2);
    load.0.wait().expect("dmsetup");
    world.sh(&format!(
        "dmsetup clear a2; {READ}/a2; dmsetup suspend a2; dmsetup resume a2"
    ));
    world.sh("dmsetup remove up a1 a2 a3");

    // The first sectors answer and the rest hangs: a load does that keeps its stack, and no other one, and not the daemon's end.
    world.sh(&format!(
        "dmsetup create half --table '0 8 linear {low} 0
8 16384 linear {low2} 8'
         dmsetup create era --table \"0 8192 era $M/half $PWD/good.img 128\"; dmsetup create on_era --table \"0 8192 linear $M/era 0\"
         dmsetup create with_inactive --table '0 8192 linear {low} 0'; dmsetup reload with_inactive --table '0 8192 linear {low2} 0'
         dmsetup create on_it --table \"0 8192 linear $M/with_inactive 0\"; dmsetup table >tables"
    ));
    let hang2 = second.hang();
    world.kill_daemon();
    let mut read = world.start(&format!("{READ}/on_era"));
    world.sh(&format!(
        "{READ}/on_it; {READ}/with_inactive; dmsetup table | cmp - tables"
    ));
    assert!(read.0.try_wait().expect("dd").is_none(), "it waits");
    world.sh("timeout 60 thinmap stop --force");
    assert!(!read.0.wait().expect("dd").success(), "an error");
    drop(hang2);
    world.end();
    second.end();
    below.end();
}

/// A state that a command notes meanwhile names it as the live one, which is not suspended.
#[test]
fn a_table_on_its_way_back_is_noted_as_the_live_one() {
    let Some((below, world)) = worlds("a_table_on_its_way_back_is_noted_as_the_live_one") else {
        return;
    };
    // Its first sectors answer and the rest hangs: that is where the journal begins, which a resume reads.
    let split = below.world.sh(
        "dmsetup create rest --table \"0 65536 linear $PWD/low.img 0\"
         dmsetup create split --table \"0 8 linear $PWD/low.img 0
8 65528 linear $M/rest 8\"; readlink -f $M/split",
    );
    let split = split.trim();
    world.sh(&format!(
        "dmsetup create hash --table '0 16384 integrity {split} 0 4 J 0'; dmsetup table >tables"
    ));
    let all = Hang::of(&below.world, "split");
    world.kill_daemon();
    world.sh(&format!(
        "timeout 60 dmsetup info hash; grep '{WAITS}.*=hash' $RUN/daemon.log"
    ));
    let rest = Hang::of(&below.world, "rest");
    drop(all);
    let mut read = world.start(&format!("{READ}/hash"));
    world.sh("sleep 2; timeout 60 dmsetup rename --setuuid hash its-uuid");
    assert!(read.0.try_wait().expect("dd").is_none(), "it waits");
    // It dies when the kernel's request to the backing has ended, and not before.
    let dying = world.daemon_pid().expect("a daemon");
    world.sh(&format!("kill -9 {dying}"));
    drop(rest);
    world.sh(
        "dmsetup table | cmp - tables; dmsetup info hash | grep its-uuid
         test $(dmsetup info -c --noheadings -o attr hash) = L--w",
    );
    assert!(read.0.wait().expect("dd").success());
    world.sh("dmsetup remove hash");
    world.end();
    below.world.sh("dmsetup remove split; dmsetup remove rest");
    below.end();
}

/// An era writes when it is resumed, not when it is loaded.
#[test]
fn a_table_that_a_resume_refuses_takes_requests_when_its_backing_is_well() {
    let name = "a_table_that_a_resume_refuses_takes_requests_when_its_backing_is_well";
    let Some((below, world)) = worlds(name) else {
        return;
    };
    let low = &below.path;
    let write = "timeout 60 dd if=/dev/zero bs=64k count=1 oflag=direct status=none of=$M";
    world.sh(&format!(
        "truncate -s 4M disk.img; dmsetup create era --table \"0 8192 era {low} $PWD/disk.img 128\"; {write}/era"
    ));
    let low_becomes = |target: &str, rest: &str| {
        below.world.sh(&format!(
            "dmsetup suspend low; dmsetup reload low --table \"0 131072 {target} $PWD/low.img 0 {rest}\"; dmsetup resume low"
        ))
    };
    let state = |state: &str| format!("timeout 60 dmsetup info era | grep {state}");
    let refused = || {
        low_becomes("flakey", "0 3600 1 error_writes");
        for _ in 0..2 {
            world.kill_daemon();
            world.sh(&format!(
                "{}; dmsetup table era | grep 128$",
                state("SUSPENDED")
            ));
        }
        world.fails("dmsetup resume era");
        low_becomes("linear", "");
    };
    refused();
    world.sh(&format!("dmsetup resume era; {write}/era"));
    refused();
    world.sh(&format!(
        "thinmap upgrade; {}; {write}/era",
        state("ACTIVE")
    ));
    refused();
    let suspended = state("SUSPENDED");
    world.sh(&format!("dmsetup suspend era; thinmap upgrade; {suspended}; dmsetup resume era; {write}/era; dmsetup remove era"));
    world.end();
    below.end();
}
