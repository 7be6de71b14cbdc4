//! dockerd 20.10 with deferred removal and deletion: what is in use when its container goes.

use crate::docker::{DOCKER, NEEDS, POOL};
use crate::docker_file_systems::LOOK;
use crate::support::turn;

/// `hold` opens the file `big` of the one container in another mount namespace, until `let_go`.
const HOLD: &str = r#"
    # Until a command says so, or for a minute.
    until_says() {
        local wanted=$1; shift
        for try in $(seq 300); do [ "$("$@")" = "$wanted" ] && return 0; sleep 0.2; done
        echo "$* says $("$@"), not $wanted"
    }
    holder=
    hold() {
        local big=$(echo $D/root/devicemapper/mnt/*/rootfs/big)
        rm -f is_held
        unshare --mount --propagation private sh -c "exec 3<$big; touch is_held; exec sleep 1000" >/dev/null 2>&1 &
        holder=$!
        until [ -e is_held ]; do kill -0 $holder; sleep 0.05; done
    }
    let_go() {
        [ -n "$holder" ] || return 0
        kill $holder; wait $holder 2>/dev/null || true
        holder=
    }
    trap 'let_go; down' EXIT
    deferred="--storage-opt dm.use_deferred_removal=true --storage-opt dm.use_deferred_deletion=true"
"#;

/// A program that started while a container ran has a file of it open, in another mount namespace. (A mere mount there goes with
/// its directory, which dockerd removes.) The device can go only when that one lets go.
#[test]
fn a_removed_container_with_an_open_file_leaves_no_device() {
    let name = "a_removed_container_with_an_open_file_leaves_no_device";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let script = r#"
        start $on_pool $deferred
        image
        info 'Deferred Removal Enabled'; info 'Deferred Deletion Enabled'
        before=$(used)
        d run -d --network none --name held bb /bin/sh -c 'dd if=/dev/urandom of=/big bs=1M count=20 2>/dev/null; sync; exec sleep 1000' > /dev/null
        until d diff held | grep -q big; do sleep 0.1; done
        hold
        d rm -f held
        device=$(devices | grep -v POOL)
        dmsetup info $device | sed -n 's/^State: *//p'
        info 'Deferred Deleted Device Count'
        # It is whole for whom still has it.
        stat -L -c %s /proc/$holder/fd/3
        let_go
        # The device goes by itself, its blocks at the next of dockerd's rounds, every thirty seconds.
        until_says POOL devices
        until_says 0 info 'Deferred Deleted Device Count'
        test "$(used)" = $before || echo "$before blocks before, $(used) after"
        # And so it is when dockerd ends in between.
        d run -d --network none --name again bb /bin/sh -c 'echo again > /big; exec sleep 1000' > /dev/null
        until d diff again | grep -q big; do sleep 0.1; done
        hold
        d rm -f again; stop
        let_go
        start $on_pool $deferred
        until_says POOL devices
        until_says 0 info 'Deferred Deleted Device Count'
        test "$(used)" = $before || echo "$before blocks before, $(used) after"
        d rmi bb > /dev/null; stop
        dmsetup remove_all
    "#;
    let said = world.sh(&[DOCKER, LOOK, HOLD, POOL, script].concat());
    assert_eq!(
        said,
        "true\ntrue\nheld\nACTIVE (DEFERRED REMOVE)\n1\n20971520\nagain\n"
    );
    world.end();
}
