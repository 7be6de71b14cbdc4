//! What a person meets first: directories that cannot be used, odd names, a daemon that does not start.

use crate::world::{World, can_make_block_devices};

#[test]
fn a_daemon_that_cannot_start_is_reported_at_once_with_the_reason() {
    if !can_make_block_devices("a_daemon_that_cannot_start_is_reported_at_once_with_the_reason") {
        return;
    }
    let world = World::new();
    for command in [
        "dmsetup ls",
        "thinmap daemon --detach",
        "thinmap ls-exports",
    ] {
        let error = world.fails(&format!(
            "THINMAP_DEV_DIR=/proc/no-such-place timeout 20 {command}"
        ));
        assert!(error.contains("/proc/no-such-place"), "{command}: {error}");
        assert_eq!(
            error.matches("No such file or directory").count(),
            1,
            "{command}: {error}"
        );
    }
    // Detached it serves when the command returns.
    world.sh("thinmap daemon --detach; thinmap ping; THINMAP_NO_AUTOSTART=1 dmsetup create z --table '0 8 zero'");
    let error = world.fails("timeout 20 thinmap daemon --detach");
    assert!(error.contains("another daemon serves"), "{error}");
    world.sh("dmsetup remove z");
    world.end();
}

#[test]
fn a_run_directory_that_others_may_change_is_refused() {
    if !can_make_block_devices("a_run_directory_that_others_may_change_is_refused") {
        return;
    }
    let world = World::new();
    // The sticky bit keeps nobody from putting files there that are not there yet.
    for mode in ["0777", "1777"] {
        let error = world.fails(&format!(
            "mkdir -m {mode} open-{mode}; THINMAP_RUN_DIR=$PWD/open-{mode} dmsetup ls"
        ));
        assert!(error.contains(&format!("(mode {mode})")), "{error}");
    }
    let error = world.fails("THINMAP_RUN_DIR=$PWD/$(printf 'd%.0s' $(seq 120)) dmsetup ls");
    assert!(error.contains("107 bytes"), "{error}");
    world.end();
}

#[test]
fn devices_with_odd_names_are_found_by_them() {
    if !can_make_block_devices("devices_with_odd_names_are_found_by_them") {
        return;
    }
    let world = World::new();
    // Without block devices there is no node to go by.
    world.sh("printf '[block_devices]\nenabled = false\n' > config.toml
         thinmap daemon --detach --config config.toml");
    for name in ["a b", "größe", "q\"$uo'te"] {
        std::fs::write(world.path().join("name"), name).expect("a file");
        world.sh(
            "name=$(cat name); dmsetup create \"$name\" --table '0 8 zero'
             thinmap ls-exports \"$name\" > exports
             nbdinfo --size \"$(sed -n 's/.*nbd: //p' exports)\" | grep -qx 4096
             mangled=$(dmsetup info -c --noheadings -o mangled_name \"$name\")
             dmsetup create above --table \"0 8 linear $M/$mangled 0\"
             dmsetup info -c --noheadings -o open \"$name\" | grep -qx 1
             dmsetup remove above \"$name\"",
        );
    }
    let error = world.fails("dmsetup create $'not-\\xff-text' --table '0 8 zero'");
    assert!(error.contains("not UTF-8"), "{error}");
    world.end();
}

/// A terminal or a log reader that goes away must not take the daemon's I/O, nor its end, with it.
#[test]
fn a_daemon_whose_log_nobody_reads_serves_and_ends() {
    if !can_make_block_devices("a_daemon_whose_log_nobody_reads_serves_and_ends") {
        return;
    }
    let world = World::new();
    world.sh(
        "(THINMAP_LOG=debug thinmap daemon 2>&1 >/dev/null </dev/null | true) >/dev/null 2>&1 &
         for i in $(seq 100); do thinmap ping >/dev/null 2>&1 && break; sleep 0.1; done
         export THINMAP_NO_AUTOSTART=1
         dmsetup create z --table '0 8 zero'; dmsetup remove z
         kill -TERM $(thinmap ping | sed -n 's/process: *//p')
         timeout 20 flock $RUN/control.lock true",
    );
    world.end();
}
