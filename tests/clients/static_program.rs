//! A statically linked program that makes the ioctls itself, under `thinmap run --static`.

use crate::support::turn;
use thinmap_tests::world::World;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/programs/dm.go");
const NEEDS: &[&str] = &["/usr/bin/go", "/usr/sbin/mkfs.ext4"];

/// Builds the program as `./dm`, and makes `supervised` run something under a supervisor.
pub fn build(world: &World) {
    let script = format!(
        "export HOME=$PWD GOCACHE=$PWD/cache GOFLAGS=-mod=mod CGO_ENABLED=0
         cp {SOURCE} dm.go
         go build -o dm dm.go"
    );
    world.sh(&script);
    let needs_static = world.fails("thinmap run -- ./dm version");
    let hint = "./dm is statically linked, so nothing can be preloaded into it; try: thinmap run --static -- ./dm";
    assert!(needs_static.contains(hint), "{needs_static}");
}

/// What `d` does: our program, or the same with dmsetup.
const BY_ITSELF: &str = r#"d() { thinmap run --static -- ./dm "$@"; }"#;
const BY_DMSETUP: &str = r#"
    d() {
        case $1 in
            create) dmsetup create $2 --table "$3" ;;
            message) dmsetup message $2 0 "$3" ;;
            *) dmsetup "$@" ;;
        esac
    }"#;

/// The article's session; the answers that `d` gets are the output.
const SESSION: &str = r#"
    rm -f data meta; truncate -s 100M data; truncate -s 4M meta
    data=$(losetup -f --show data); meta=$(losetup -f --show meta)
    trap 'umount base snap 2>/dev/null || true; losetup -d $data $meta' EXIT
    d create pool "0 204800 thin-pool $meta $data 128 0"
    d message pool "create_thin 0"
    d create thin "0 204800 thin $M/pool 0"
    mkfs.ext4 -q -b 4096 $M/thin; mkdir -p base snap; mount $M/thin base; echo base > base/file; umount base
    d suspend thin
    d message pool "create_snap 1 0"
    d resume thin
    d create snap "0 204800 thin $M/pool 1"
    mount $M/snap snap; cat snap/file; echo snap > snap/file; umount snap
    mount $M/thin base; cat base/file; umount base
    sync; d status pool; d status thin; d table pool; d table snap
    d remove snap; d message pool "delete 1"; d remove thin; d remove pool
"#;

#[test]
fn a_static_program_gets_the_same_answers() {
    let Some((world, _turn)) = turn("a_static_program_gets_the_same_answers", NEEDS) else {
        return;
    };
    build(&world);
    let by_itself = world.sh(&format!("{BY_ITSELF}{SESSION}"));
    let by_dmsetup = world.sh(&format!("{BY_DMSETUP}{SESSION}"));
    let lines = |text: &str| -> Vec<String> {
        // Loop devices may be others the second time.
        let masked = regex_lite::Regex::new(r"\b7:\d+\b").expect("pattern");
        text.lines()
            .map(|line| masked.replace_all(line, "7:N").into_owned())
            .collect()
    };
    assert_eq!(lines(&by_itself), lines(&by_dmsetup));
    assert!(by_itself.starts_with("base\nbase\n"), "{by_itself}");
    world.end();
}

#[test]
fn static_errors_threads_children_and_signals() {
    let Some((world, _turn)) = turn("static_errors_threads_children_and_signals", NEEDS) else {
        return;
    };
    build(&world);
    let errors = world.sh("thinmap run --static -- ./dm errno nobody");
    let expected =
        "6 no such device or address\n14 bad address\n25 inappropriate ioctl for device\n";
    assert_eq!(errors, expected);
    assert_eq!(world.sh("thinmap run --static -- ./dm threads"), "done\n");
    assert_eq!(world.sh("thinmap run --static -- ./dm ls"), "");
    // Its own exit status, its own process, and no child that it does not know.
    let script = r#"
        rc=0; thinmap run --static -- ./dm nonsense 2>/dev/null || rc=$?; echo $rc
        thinmap run --static -- sh -c 'echo $$ > pid; exec sleep 60' & pid=$!
        until [ -s pid ]; do sleep 0.02; done
        [ "$(cat pid)" = $pid ] && echo same
        ps -o comm= --ppid $pid || echo childless
        kill -TERM $pid; rc=0; wait $pid || rc=$?; echo $rc"#;
    assert_eq!(world.sh(script), "3\nsame\nchildless\n143\n");
    // Who waits for an event gets it; a signal with a handler ends the wait; a deadly one ends the program.
    let script = r#"
        ./bin/dmsetup create w --table "0 8 zero "
        thinmap run --static -- ./dm wait w 0 > waited & pid=$!
        sleep 0.3; ./bin/dmsetup reload w --table "0 8 error "; ./bin/dmsetup suspend w; ./bin/dmsetup resume w
        kill -0 $pid && echo waits
        kill -KILL $pid; wait $pid 2>/dev/null || echo killed
        ./bin/dmsetup remove w"#;
    assert_eq!(world.sh(script), "waits\nkilled\n");
    // What outlives the program is served on; with the last of them the supervisor ends.
    let script = r#"
        thinmap run --static -- sh -c '(sleep 0.5; ./dm version > later) >/dev/null 2>&1 & exit 0'
        until [ -s later ]; do sleep 0.05; done; cat later
        for try in $(seq 100); do pgrep -f "run-dir $RUN .*supervise" >/dev/null || { echo gone; break; }; sleep 0.05; done"#;
    assert_eq!(world.sh(script), "4.47\ngone\n");
    world.end();
}
