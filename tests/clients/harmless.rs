//! The shim in programs: harmless to what is not device mapper's, and the control node in every way a descriptor can go.

use crate::support::turn;
use thinmap_tests::world::World;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/programs/harmless.c");
const NEEDS: &[&str] = &["/usr/bin/cc"];

fn build(world: &World) {
    world.sh(&format!(
        "cc -O1 -Wall -Wno-nonnull -pthread -o harmless {SOURCE}"
    ));
}

#[test]
fn ordinary_calls_give_the_same_with_and_without_the_shim() {
    let name = "ordinary_calls_give_the_same_with_and_without_the_shim";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    build(&world);
    let script = |how: &str| format!("export HARMLESS=set; {how} ./harmless ordinary");
    let plain = world.sh(&script(""));
    assert!(plain.lines().count() > 50, "{plain}");
    assert!(plain.ends_with("descriptors kept: 0\n"), "{plain}");
    for how in ["thinmap run --", "thinmap run --static --"] {
        assert_eq!(world.sh(&script(how)), plain, "{how}");
    }
    world.end();
}

#[test]
fn a_fork_amid_threads_finds_no_lock_taken() {
    let Some((world, _turn)) = turn("a_fork_amid_threads_finds_no_lock_taken", NEEDS) else {
        return;
    };
    build(&world);
    assert_eq!(world.sh("thinmap run -- ./harmless crowd"), "done\n");
    world.end();
}

#[test]
fn the_control_node_goes_over_fork_exec_dup_and_sockets() {
    let name = "the_control_node_goes_over_fork_exec_dup_and_sockets";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    build(&world);
    for how in ["thinmap run --", "thinmap run --static --"] {
        assert_eq!(
            world.sh(&format!("{how} ./harmless device")),
            "done\n",
            "{how}"
        );
    }
    world.end();
}
