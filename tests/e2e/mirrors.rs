//! fio verifies a mirror while its legs fail in turn, are taken out, and come back; then the daemon is killed while it is written.

use std::time::{Duration, Instant};

use crate::fio;
use crate::world::{World, can_make_block_devices};

const SECTORS: u64 = 262_144;

/// Words: a leg is a linear device `a` or `b`; `mirror LOG FIRST SECOND` is a table.
const WORDS: &str = r#"
    table() { dmsetup load "$1" --table "$2"; dmsetup suspend --noflush "$1"; dmsetup resume "$1"; }
    shows() { for try in $(seq 1200); do dmsetup status m | grep -q "$1" && return; sleep 0.05; done; dmsetup status m; false; }
    mirror() { echo "0 $SECTORS mirror $1 2 $M/$2 0 $M/$3 0 1 handle_errors"; }
"#;

#[test]
fn fio_verifies_a_mirror_whose_legs_fail_in_turn() {
    if !can_make_block_devices("fio_verifies_a_mirror_whose_legs_fail_in_turn") {
        return;
    }
    let world = World::without_keeper();
    let sh = |body: &str| world.sh(&format!("SECTORS={SECTORS}\n{WORDS}\n{body}"));
    sh("truncate -s 128M a.img b.img; truncate -s 1M log.img
        for leg in a b; do dmsetup create $leg --table \"0 $SECTORS linear $PWD/$leg.img 0\"; done
        dmsetup create m --table \"$(mirror \"disk 3 $PWD/log.img 512 nosync\" a b)\"");
    let mut rounds = 0;
    // Each leg twice, however fast fio is.
    while rounds < 4 {
        let mut load = fio::verify(
            &world,
            "m",
            &[
                "--bsrange=512-128k",
                "--fsync=32",
                "--size=96m",
                "--io_size=192m",
            ],
        );
        let began = Instant::now();
        while load.try_wait().expect("fio").is_none() {
            let late = began.elapsed() > Duration::from_secs(400);
            assert!(!late, "fio does not end: {}", world.sh("dmsetup status"));
            fail_and_repair(&sh, rounds);
            rounds += 1;
        }
        let output = load.wait_with_output().expect("fio");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}\n{}", world.daemon_log());
    }
    // Killed while it is written: the log knows where the legs may differ.
    sh(
        "dd if=/dev/urandom of=$M/m bs=64k oflag=direct status=none & sleep 0.3; kill $!; wait $! || true",
    );
    world.kill_daemon();
    sh("thinmap ls-exports >/dev/null
        for leg in a b; do dmsetup create $leg --table \"0 $SECTORS linear $PWD/$leg.img 0\"; done
        dmsetup create m --table \"$(mirror \"disk 2 $PWD/log.img 512\" a b)\"
        shows ' 512/512 '
        dmsetup remove m; dmsetup remove a; dmsetup remove b
        cmp a.img b.img");
    world.end();
}

/// A leg fails, and is taken out; it comes back, as good as empty.
fn fail_and_repair(sh: &dyn Fn(&str) -> String, round: u32) {
    let (fails, stays) = if round.is_multiple_of(2) {
        ("b", "a")
    } else {
        ("a", "b")
    };
    // Writes wait from the failure to the next table.
    sh(&format!(
        "table {fails} \"0 $SECTORS error\"
         for try in $(seq 20); do dmsetup status m | grep -q ' AA ' || break; sleep 0.05; done
         table m \"0 $SECTORS linear $M/{stays} 0\"
         table {fails} \"0 $SECTORS linear $PWD/{fails}.img 0\"
         table m \"$(mirror \"disk 3 $PWD/log.img 512 sync\" {stays} {fails})\"
         shows ' 512/512 '"
    ));
}
