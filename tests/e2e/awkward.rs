//! Deaths, upgrades and ends at awkward moments: commands that wait, a full run directory, a broken configuration, a backing that is
//! not there, a binary that cannot be started.

use std::process::Stdio;

use crate::world::{Ended, World, can_make_block_devices, kill_and_wait};

fn world() -> World {
    let world = World::new();
    world.sh("printf '[continuity]\ndeaths_max = 0\n' > config.toml
         thinmap daemon --detach --config config.toml; truncate -s 16M low.img other.img
         dmsetup create low --table \"0 32768 linear $PWD/low.img 0\"
         dmsetup create up --table \"0 32768 linear $M/low 0\"
         dmsetup create other --table \"0 32768 linear $PWD/other.img 0\"");
    world
}

/// A write to `up` that waits below it, and a suspend of `up` that waits for the write.
fn a_suspend_that_waits(world: &World) -> [Ended; 2] {
    world.sh("dmsetup suspend low");
    let write = world.start("dd if=/dev/zero of=$M/up bs=4k count=1 oflag=direct");
    world.sh("sleep 0.5");
    let suspend = world.start("dmsetup suspend --noflush --nolockfs up");
    world.sh("sleep 0.5");
    [write, suspend]
}

#[test]
fn an_upgrade_does_not_wait_for_a_command_that_waits() {
    if !can_make_block_devices("an_upgrade_does_not_wait_for_a_command_that_waits") {
        return;
    }
    let world = world();
    let [mut write, mut suspend] = a_suspend_that_waits(&world);
    world.sh("timeout 60 thinmap upgrade");
    assert!(!suspend.0.wait().expect("dmsetup").success());
    assert!(write.0.try_wait().expect("dd").is_none(), "it waits still");
    world.sh("timeout 20 dmsetup resume low");
    assert!(write.0.wait().expect("dd").success());
    world.sh("dmsetup remove up low other");
    world.end();
}

#[test]
fn a_stop_by_force_does_not_wait_for_a_command_that_waits() {
    if !can_make_block_devices("a_stop_by_force_does_not_wait_for_a_command_that_waits") {
        return;
    }
    let world = world();
    let children = a_suspend_that_waits(&world);
    world.sh("timeout 60 thinmap stop --force");
    for mut child in children {
        child.0.wait().expect("it ends");
    }
    let left = world.leftovers();
    assert!(left.is_empty(), "{left:#?}");
}

/// The suspend has the device's lock, and its removal waits.
#[test]
fn a_removal_that_waits_keeps_no_command_from_other_devices() {
    if !can_make_block_devices("a_removal_that_waits_keeps_no_command_from_other_devices") {
        return;
    }
    let world = world();
    world.sh("dmsetup suspend --noflush --nolockfs low");
    let client = world.start("nbdcopy \"nbd+unix:///up?socket=$RUN/nbd.sock\" null:");
    world.sh("sleep 0.5; dmsetup remove --deferred up");
    let mut suspend = world.start("dmsetup suspend --noflush --nolockfs up");
    world.sh("sleep 0.5
         timeout 10 dmsetup info other; timeout 10 dmsetup ls; timeout 10 dmsetup resume low");
    suspend.0.wait().expect("dmsetup");
    drop(client);
    world.sh(
        "until ! dmsetup info up 2>/dev/null; do dmsetup resume up || true; sleep 0.1; done
         dmsetup remove low other",
    );
    world.end();
}

#[test]
fn a_deferred_removal_waits_for_its_nbd_clients_to_come_back() {
    if !can_make_block_devices("a_deferred_removal_waits_for_its_nbd_clients_to_come_back") {
        return;
    }
    let world = world();
    // A client that is cut off by the daemon's death, and one that is there after it, as the same one would be.
    let client = || {
        world.sh("dmsetup suspend --noflush --nolockfs low");
        let client = world.start("nbdcopy \"nbd+unix:///up?socket=$RUN/nbd.sock\" null:");
        world.sh("until dmsetup info up | grep -q 'Open count: *[1-9]'; do sleep 0.05; done");
        client
    };
    let mut first = client();
    world.sh("dmsetup remove --deferred up");
    world.kill_daemon();
    world.sh("timeout 60 dmsetup ls; dmsetup info up | grep 'DEFERRED REMOVE'");
    first.0.wait().expect("nbdcopy");
    let mut second = client();
    world.sh("dmsetup resume low");
    assert!(second.0.wait().expect("nbdcopy").success());
    world.sh("while dmsetup info up 2>/dev/null; do sleep 0.1; done; dmsetup remove low other");
    world.end();
}

#[test]
fn a_full_run_directory_costs_no_device() {
    if !can_make_block_devices("a_full_run_directory_costs_no_device") {
        return;
    }
    let world = World::new();
    world.sh(
        "mkdir run; mount -t tmpfs -o size=512k,mode=700 none run; truncate -s 1M disk.img
         dmsetup create one --table \"0 2048 linear $PWD/disk.img 0\"
         dd if=/dev/zero of=run/fill bs=1k 2>/dev/null || true",
    );
    world.kill_daemon();
    world.sh("timeout 60 dd if=$M/one of=/dev/null bs=4k count=1 iflag=direct
         timeout 60 dmsetup table one | grep linear; rm run/fill; dmsetup create two --table '0 8 zero'");
    world.kill_daemon();
    world.sh("timeout 60 dmsetup table two; dmsetup remove one two");
    // Without devices, too. What a resume could not be noted for it has not done. The file is held, and so its last block cannot be used.
    world.sh(
        "dmsetup create three --notable; dmsetup load three --table '0 8 zero'; rm run/state.log
         dd if=/dev/zero of=run/fill bs=1 2>/dev/null count=1M || true",
    );
    let said = world.fails("dmsetup resume three");
    assert!(said.contains("not resumed"), "{said}");
    world.sh("dmsetup info three | grep 'Tables present.*INACTIVE'; dmsetup remove three");
    world.kill_daemon();
    world.sh("timeout 60 thinmap --no-autostart ping");
    world.fails("dmsetup create four --table '0 8 zero'");
    world.sh("rm run/fill; dmsetup remove four || true; dmsetup create four --table '0 8 zero'; dmsetup remove four
         thinmap --no-autostart stop; umount -l run");
}

#[test]
fn a_configuration_of_an_earlier_life_is_no_successors() {
    if !can_make_block_devices("a_configuration_of_an_earlier_life_is_no_successors") {
        return;
    }
    let world = World::new();
    world.sh(
        "printf '[nbd]\nunix = false\n' > config.toml; thinmap daemon --detach --config config.toml
         test -e $RUN/config.last; thinmap stop
         thinmap daemon --detach; test ! -e $RUN/config.last",
    );
    world.end();
}

#[test]
fn a_run_directory_without_state_or_that_cannot_be_written_costs_no_device() {
    let name = "a_run_directory_without_state_or_that_cannot_be_written_costs_no_device";
    if !can_make_block_devices(name) {
        return;
    }
    let world = World::new();
    let read = "timeout 60 dd if=$M/one of=/dev/null bs=4k count=1 iflag=direct status=none";
    world.sh(
        "truncate -s 1M disk.img; dmsetup create one --table \"0 2048 linear $PWD/disk.img 0\"",
    );
    // Somebody cleans up.
    world.sh("rm $RUN/state.log");
    world.kill_daemon();
    world.sh(read);
    assert!(world.daemon_log().contains("ERROR"), "it says so");
    world.sh("rm $RUN/state.log; dmsetup create two --table '0 8 zero'");
    world.kill_daemon();
    world.sh(&format!("{read}; dmsetup table two"));
    // A file system that has become read-only.
    world.sh("mount --rbind $RUN $RUN; mount -o remount,ro,bind $RUN");
    world.kill_daemon();
    world.sh(&format!("{read}; dmsetup table two"));
    let said = world.fails("dmsetup create three --table '0 8 zero'");
    assert!(said.contains("Read-only file system"), "{said}");
    world.sh("umount -l $RUN; dmsetup remove one two; dmsetup remove three || true");
    world.end();
}

#[test]
fn a_configuration_that_broke_costs_no_device() {
    if !can_make_block_devices("a_configuration_that_broke_costs_no_device") {
        return;
    }
    let world = world();
    for broken in [
        "garbage = [",
        "[access]\nadministrators = \"nobody-has-such-a-group\"",
        "[nbd]\ntcp = \"127.0.0.1:0\"\ntls_certificate = \"/nowhere\"\ntls_key = \"/nowhere\"",
        "[block_devices]\nenabled = false",
    ] {
        std::fs::write(world.path().join("config.toml"), broken).expect("written");
        world.kill_daemon();
        world.sh("timeout 60 dd if=$M/up of=/dev/null bs=4k count=1 iflag=direct; timeout 60 dmsetup table up");
        world.sh("timeout 60 thinmap upgrade; timeout 60 dd if=$M/up of=/dev/null bs=4k count=1 iflag=direct");
        assert!(world.daemon_log().contains("ERROR"), "{broken}");
    }
    world.sh("dmsetup remove up low other");
    world.end();
}

#[test]
fn a_backing_that_was_away_at_a_death_is_there_after_the_next() {
    if !can_make_block_devices("a_backing_that_was_away_at_a_death_is_there_after_the_next") {
        return;
    }
    let world = world();
    world.sh("mv other.img away.img");
    world.kill_daemon();
    world.fails("timeout 60 dd if=$M/other of=/dev/null bs=4k count=1 iflag=direct");
    world.sh(
        "timeout 60 dd if=$M/up of=/dev/null bs=4k count=1 iflag=direct; mv away.img other.img",
    );
    world.kill_daemon();
    world.sh(
        "timeout 60 dd if=$M/other of=/dev/null bs=4k count=1 iflag=direct; mv other.img away.img",
    );
    // And one that never comes back can be removed, with its node.
    world.kill_daemon();
    world.sh("timeout 60 dmsetup info other; dmsetup remove other; test ! -e $M/other; dmsetup remove up low");
    world.end();
}

/// Its bytes are not the device's, and what it holds must not be written over.
#[test]
fn a_backing_file_that_was_exchanged_is_not_taken_for_the_one_before() {
    let name = "a_backing_file_that_was_exchanged_is_not_taken_for_the_one_before";
    if !can_make_block_devices(name) {
        return;
    }
    let world = world();
    world.sh("echo another >another; truncate -s 16M another; mv other.img kept.img; cp another other.img");
    world.kill_daemon();
    world.fails("timeout 60 dd if=$M/other of=/dev/null bs=4k count=1 iflag=direct");
    world.sh(
        "grep 'cannot come back.*=other.*is another file' $RUN/daemon.log
         timeout 60 dd if=$M/up of=/dev/null bs=4k count=1 iflag=direct; cmp other.img another
         mv kept.img other.img; thinmap upgrade
         timeout 60 dd if=$M/other bs=512 count=1 iflag=direct status=none | cmp -n 512 - /dev/zero
         dmsetup remove up low other",
    );
    world.end();
}

#[test]
fn a_binary_that_cannot_be_started_for_a_moment_costs_no_device() {
    if !can_make_block_devices("a_binary_that_cannot_be_started_for_a_moment_costs_no_device") {
        return;
    }
    let world = World::new();
    world.sh(
        "cp bin/thinmap own; ./own daemon --detach; truncate -s 1M disk.img
         dmsetup create one --table \"0 2048 linear $PWD/disk.img 0\"",
    );
    let pid = world.daemon_pid().expect("a daemon");
    world.sh("chmod -x own");
    kill_and_wait(pid);
    world.sh(
        "sleep 0.3; chmod +x own; timeout 60 dd if=$M/one of=/dev/null bs=4k count=1 iflag=direct
         timeout 60 dmsetup remove one",
    );
    world.end();
}

#[test]
fn a_log_that_nobody_reads_stops_nobody() {
    if !can_make_block_devices("a_log_that_nobody_reads_stops_nobody") {
        return;
    }
    let world = World::new();
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).expect("a small one");
    let mut command = world.command("thinmap");
    command.arg("daemon").stdout(Stdio::null()).stderr(writer);
    let keeper = Ended(command.spawn().expect("thinmap runs"));
    drop(command);
    // Each refused table is a line of the log.
    world.sh("until thinmap --no-autostart ping >/dev/null 2>&1; do sleep 0.05; done
         truncate -s 1M disk.img
         for i in $(seq 100); do ! timeout 60 dmsetup create no --table '0 1 linear /nowhere 0' 2>/dev/null || exit 1; done
         timeout 60 dmsetup create one --table \"0 2048 linear $PWD/disk.img 0\"");
    let read = "timeout 60 dd if=$M/one of=/dev/null bs=4k count=1 iflag=direct";
    world.sh(read);
    world.kill_daemon();
    world.sh(read);
    world.sh("timeout 60 thinmap upgrade");
    world.sh(read);
    // What waited is said when somebody listens; what waited in the killed daemon is gone.
    let listener = std::thread::spawn(move || std::io::read_to_string(&mut reader));
    world.sh("timeout 60 dmsetup remove one; timeout 60 thinmap stop");
    let log = listener.join().expect("a thread").expect("the log");
    for said in ["/nowhere", "the daemon died", "upgrade: "] {
        assert!(log.contains(said), "{log}");
    }
    drop(keeper);
    world.end();
}
