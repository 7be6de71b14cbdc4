//! An unprivileged user gets the same over NBD, and is told what is missing.

use crate::world::{World, can_make_block_devices};

#[test]
fn a_user_without_rights_has_pools_over_nbd() {
    if !can_make_block_devices("a_user_without_rights_has_pools_over_nbd") {
        return;
    }
    let world = World::new();
    let script = "set -eu
         export THINMAP_RUN_DIR=$PWD/user/run THINMAP_DEV_DIR=$PWD/user/mapper
         cd user; truncate -s 1G data.img; truncate -s 16M meta.img
         dmsetup create pool --table \"0 2097152 thin-pool $PWD/meta.img $PWD/data.img 128 0\"
         dmsetup message pool 0 'create_thin 0'
         dmsetup create vol --table \"0 204800 thin $THINMAP_DEV_DIR/pool 0\"
         head -c 10M /dev/urandom > content
         nbdcopy content \"nbd+unix:///vol?socket=$THINMAP_RUN_DIR/nbd.sock\"
         nbdcopy \"nbd+unix:///vol?socket=$THINMAP_RUN_DIR/nbd.sock\" out
         cmp -n 10485760 content out
         dmsetup message pool 0 'create_snap 1 0'
         dmsetup status
         dmsetup remove vol; dmsetup remove pool
         thinmap stop";
    // The binary may lie where only root can go.
    world.sh(
        "mkdir user userbin; cp -L bin/thinmap userbin/thinmap; ln -s thinmap userbin/dmsetup
         chmod 755 . userbin userbin/thinmap; chown -R nobody user",
    );
    std::fs::write(world.path().join("script.sh"), script).expect("script");
    world.sh(
        "chmod 644 script.sh
         PATH=$PWD/userbin:$PATH setpriv --reuid=nobody --regid=nogroup --clear-groups bash script.sh",
    );
    world.sh("thin_check user/meta.img");
    world.sh("test ! -e user/run/control.sock");
}
