//! Who may do what: `docs/security.md`, tried out as somebody else.

use crate::world::{World, can_make_block_devices};

/// The groups need not exist anywhere: a number will do.
const ADMINISTRATORS: u32 = 54_321;
const DEVICES: u32 = 54_322;

/// A pool and a volume, the binary where everybody can run it, and `as_other GROUP COMMAND...`: nobody, in that group alone.
fn world_seen_by_others() -> World {
    let world = World::new();
    world.sh(
        "mkdir otherbin; cp -L bin/thinmap otherbin/thinmap; ln -s thinmap otherbin/dmsetup
         chmod 755 . otherbin otherbin/thinmap
         cat > as_other <<'EOF'
group=$1; shift
exec setpriv --reuid=65534 --regid=\"$group\" --clear-groups env PATH=\"$PWD/otherbin:$PATH\" THINMAP_NO_AUTOSTART=1 \"$@\"
EOF",
    );
    world
}

fn with_a_volume(world: &World) {
    world.make_pool("256M", "");
    world.make_thin(0, "vol", 20_480);
}

#[test]
fn others_get_in_nowhere() {
    if !can_make_block_devices("others_get_in_nowhere") {
        return;
    }
    let world = world_seen_by_others();
    with_a_volume(&world);
    let modes = world.sh(
        "stat -c %a $RUN $RUN/control.sock $RUN/nbd.sock $RUN/daemon.log $RUN/start.lock $M/vol",
    );
    assert_eq!(
        modes.split_whitespace().collect::<Vec<_>>(),
        ["700", "600", "600", "600", "600", "600"]
    );
    // Also with the run directory open: each thing in it is closed by itself.
    world.sh("chmod 755 $RUN");
    for attempt in [
        "dmsetup ls",
        "dmsetup remove vol",
        "thinmap ping",
        "thinmap stop --force",
        "nbdinfo \"nbd+unix:///vol?socket=$RUN/nbd.sock\"",
        "head -c 512 $M/vol",
        "head -c 512 $RUN/daemon.log",
        "head -c 1 $RUN/start.lock",
        "head -c 1 $RUN/control.lock",
        "ls $RUN/fuse",
        "touch $RUN/mine",
    ] {
        world.fails(&format!("bash as_other 65534 {attempt}"));
    }
    world.sh("dmsetup status vol | grep -q thin; dmsetup remove vol; dmsetup remove pool");
    world.end();
}

#[test]
fn a_group_gets_what_it_is_given_and_no_more() {
    if !can_make_block_devices("a_group_gets_what_it_is_given_and_no_more") {
        return;
    }
    let world = world_seen_by_others();
    world.sh(&format!(
        "printf '[access]\\nadministrators = \"{ADMINISTRATORS}\"\\ndevices = \"{DEVICES}\"\\n' > thinmap.toml
         thinmap daemon --detach --config thinmap.toml"
    ));
    with_a_volume(&world);
    let admins = |command: &str| format!("bash as_other {ADMINISTRATORS} {command}");
    let users = |command: &str| format!("bash as_other {DEVICES} {command}");
    let over_nbd = "nbdinfo \"nbd+unix:///vol?socket=$RUN/nbd.sock\"";
    world.sh(&admins("dmsetup status vol"));
    world.sh(&admins("dmsetup message pool 0 'create_thin 7'"));
    world.fails(&admins("head -c 512 $M/vol"));
    world.fails(&admins(over_nbd));
    world.sh(&users("head -c 512 $M/vol"));
    world.sh(&users(over_nbd));
    world.fails(&users("dmsetup ls"));
    world.fails(&users("thinmap stop --force"));
    for stranger in [
        "dmsetup ls",
        over_nbd,
        "head -c 512 $M/vol",
        "ls $RUN",
        // Whoever can open it can hold it, and keep the daemon from starting.
        "head -c 1 $RUN/control.lock",
    ] {
        world.fails(&format!("bash as_other 65534 {stranger}"));
    }
    world.sh("dmsetup remove vol; dmsetup remove pool");
    world.sh(&admins("thinmap stop"));
    world.end();
}

#[test]
fn a_group_that_the_configuration_has_no_more_is_out_after_an_upgrade() {
    if !can_make_block_devices("a_group_that_the_configuration_has_no_more_is_out_after_an_upgrade")
    {
        return;
    }
    let world = world_seen_by_others();
    let configure = |lines: &str| world.sh(&format!("printf '[access]\\n{lines}' > thinmap.toml"));
    let groups = |administrators: u32, devices: u32| {
        format!("administrators = \"{administrators}\"\\ndevices = \"{devices}\"\\n")
    };
    configure(&groups(ADMINISTRATORS, DEVICES));
    world.sh("thinmap daemon --detach --config thinmap.toml");
    with_a_volume(&world);
    let over_nbd = "nbdinfo \"nbd+unix:///vol?socket=$RUN/nbd.sock\"";
    let allowed = [
        (ADMINISTRATORS, "dmsetup ls"),
        (DEVICES, "head -c 512 $M/vol"),
        (DEVICES, over_nbd),
    ];
    let modes = || {
        let modes =
            world.sh("stat -c %a $RUN $RUN/control.sock $RUN/control.lock $RUN/nbd.sock $M/vol");
        modes.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(modes(), "711 660 640 660 660");
    // To others, to nobody, and to a group that is no more.
    for (now, others) in [
        (groups(ADMINISTRATORS + 10, DEVICES + 10), 10),
        (String::new(), 0),
        (groups(ADMINISTRATORS, DEVICES), 0),
        ("devices = \"no-such-group\"\\n".to_owned(), 0),
    ] {
        configure(&now);
        world.sh("thinmap upgrade");
        let have_groups = now.contains("administrators");
        for (group, command) in allowed {
            let command = |group: u32| format!("bash as_other {group} {command}");
            if have_groups {
                world.sh(&command(group + others));
            }
            if others > 0 || !have_groups {
                world.fails(&command(group));
            }
        }
        let expected = match have_groups {
            true => "711 660 640 660 660",
            false => "700 600 600 600 600",
        };
        assert_eq!(modes(), expected, "{now}");
    }
    world.sh("dmsetup remove vol; dmsetup remove pool");
    world.end();
}

#[test]
fn a_group_that_is_not_there_keeps_the_daemon_from_starting() {
    if !can_make_block_devices("a_group_that_is_not_there_keeps_the_daemon_from_starting") {
        return;
    }
    let world = World::new();
    world.sh("printf '[access]\\ndevices = \"no-such-group\"\\n' > thinmap.toml");
    let said = world.fails("thinmap daemon --detach --config thinmap.toml");
    assert!(said.contains("no-such-group"), "{said}");
}

#[test]
fn the_daemon_gives_up_what_it_does_not_need() {
    if !can_make_block_devices("the_daemon_gives_up_what_it_does_not_need") {
        return;
    }
    let world = World::new();
    with_a_volume(&world);
    let pid = world.daemon_pid().expect("a daemon");
    // Bits of <linux/capability.h>: CHOWN 0, DAC_OVERRIDE 1, NET_BIND_SERVICE 10, NET_ADMIN 12, IPC_LOCK 14, SYS_PTRACE 19,
    // SYS_ADMIN 21, SYS_RESOURCE 24, MKNOD 27.
    let kept: u64 = [0, 1, 10, 12, 14, 19, 21, 24, 27]
        .iter()
        .map(|bit| 1 << bit)
        .sum();
    let mut threads = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads") {
        let status = task.expect("a thread").path().join("status");
        let Ok(status) = std::fs::read_to_string(status) else {
            continue;
        };
        threads += 1;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.expect("a field").trim().to_owned()
        };
        for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
            let has = u64::from_str_radix(&field(set), 16).expect("a mask");
            assert_eq!(has & !kept, 0, "{set} {has:x}");
        }
        assert_eq!(field("NoNewPrivs:"), "1");
    }
    assert!(threads > 3, "{threads} threads");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let core: Vec<&str> = core.expect("a limit").split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"]);
    world.sh("dmsetup remove vol; dmsetup remove pool");
    world.end();
}

#[test]
fn hostile_names_stay_in_the_device_directory() {
    if !can_make_block_devices("hostile_names_stay_in_the_device_directory") {
        return;
    }
    let world = World::without_keeper();
    with_a_volume(&world);
    world.sh("ln -s /etc/passwd $M/planted; echo mine > $M/afile; ls $M > before");
    // With a slash there are none; a name of somebody else's is not taken over.
    for name in ["../escape", "a/b", ".", "..", "planted", "afile"] {
        world.fails(&format!("dmsetup create '{name}' --table '0 8 zero'"));
    }
    for name in [
        "$(touch owned)",
        "-rf",
        "a b",
        "x;y",
        "new\nline",
        "back\\\\x\nslash",
        "%s%n",
    ] {
        std::fs::write(world.path().join("name"), name).expect("a file");
        world.sh("dmsetup create --manglename none -- \"$(cat name)\" --table '0 8 zero' || true");
    }
    // The next daemon takes the last one's nodes away, those and nothing else.
    world.kill_daemon();
    world.sh("thinmap daemon --detach; test ! -e owned");
    world.sh(
        "readlink $M/planted | grep -qx /etc/passwd; grep -qx mine $M/afile; test -s /etc/passwd",
    );
    world.sh("rm $M/planted $M/afile; test -z \"$(ls $M)\"");
    world.end();
}

#[test]
fn what_a_user_mounts_or_names_is_neither_frozen_nor_in_the_way() {
    if !can_make_block_devices("what_a_user_mounts_or_names_is_neither_frozen_nor_in_the_way") {
        return;
    }
    let world = World::new();
    world.sh("for name in bait victim; do
             truncate -s 64M $name.img
             dmsetup create $name --table \"0 131072 linear $PWD/$name.img 0\"
             mkfs.ext4 -q $M/$name
         done
         mkdir victim at own; mount $M/victim victim");
    let bait = world.sh("echo -n /dev/loop$(stat -c %Lr $M/bait)");
    let ready = "for i in $(seq 100); do test -e ready && break; sleep 0.1; done; rm ready";
    // In namespaces such as any user can make: a mount whose source names the device, with another file system over it.
    let user = world.start(&format!(
        "exec unshare -Urm sh -ec 'mount -t tmpfs {bait} at; mount --bind victim at; touch ready; exec sleep 600'",
    ));
    world.sh(ready);
    // Nothing of the host is frozen, or it could not be frozen and thawed here.
    world.sh("dmsetup suspend bait; fsfreeze -f victim; fsfreeze -u victim; dmsetup resume bait");
    let named = world.start(&format!(
        "exec setpriv --reuid=65534 --regid=65534 --clear-groups /usr/bin/python3 -c '
import os, sys, time
os.open(sys.argv[1], os.O_PATH); time.sleep(600)' {bait}",
    ));
    let pid = named.0.id();
    world.sh(&format!(
        "for i in $(seq 100); do
             readlink /proc/{pid}/fd/* >names || true; grep -qx {bait} names && exit; sleep 0.1
         done; exit 1"
    ));
    world.sh("dmsetup info -c --noheadings -o open bait | grep -qx 0; dmsetup remove bait");
    drop((user, named));
    world.sh("umount victim");
    // A container's mount is found.
    let container =
        world.start("exec unshare -m sh -ec 'mount $M/victim own; touch ready; exec sleep 600'");
    world.sh(ready);
    let seen = format!(
        "/proc/{}/root{}/own",
        container.0.id(),
        world.path().display()
    );
    world.sh("dmsetup suspend victim");
    let frozen = world.try_sh(&format!("fsfreeze -f {seen}"));
    world.sh("dmsetup resume victim");
    let said = String::from_utf8_lossy(&frozen.stderr).into_owned();
    assert!(said.contains("busy"), "{said}");
    drop(container);
    world.sh("for i in $(seq 100); do dmsetup remove victim 2>/dev/null && exit; sleep 0.1; done; exit 1");
    world.end();
}
