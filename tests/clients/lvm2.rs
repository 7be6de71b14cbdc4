//! lvm2 through the shim: what an administrator does with volume groups and thin pools.

use crate::support::turn;
use thinmap_tests::world::World;

const NEEDS: &[&str] = &[
    "/usr/sbin/lvm",
    "/usr/sbin/thin_check",
    "/usr/sbin/mkfs.ext4",
];

/// `l COMMAND` is lvm's, quiet about descriptors that the test runner left open. The group is on a loop device and goes at
/// the end, with the links and cached state that lvm makes outside of the world.
const GROUP: &str = r#"
    export LVM_SUPPRESS_FD_WARNINGS=1
    l() { thinmap run -- "$@"; }
    truncate -s 3G pv.img
    PV=$(losetup -f --show pv.img)
    VG=thinmap-vg
    V=/dev/$VG
    off() {
        l vgremove -qq -f -y $VG >/dev/null 2>&1 || true
        losetup -d $PV
        rmdir $V 2>/dev/null || true
    }
    trap off EXIT
    l pvcreate -qq $PV
    l vgcreate -qq $VG $PV
    lvs_of() { l lvs --noheadings --separator , -o "$1" $VG | sed 's/^ *//' | sort; }
"#;

fn group(world: &World, script: &str) -> String {
    world.sh(&format!("{GROUP}\n{script}"))
}

#[test]
fn linear_and_striped_volumes_hold_file_systems() {
    let Some((world, _turn)) = turn("linear_and_striped_volumes_hold_file_systems", NEEDS) else {
        return;
    };
    let said = group(
        &world,
        r#"
        truncate -s 1G pv2.img; PV2=$(losetup -f --show pv2.img); trap 'off; losetup -d $PV2' EXIT
        l pvcreate -qq $PV2; l vgextend -qq $VG $PV2
        l lvcreate -qq -y -n lin -L 100M $VG
        l lvcreate -qq -y -n str -i 2 -I 64 -L 200M $VG
        mkdir a b
        for v in lin:a str:b; do
            mkfs.ext4 -q $V/${v%:*}; mount $V/${v%:*} ${v#*:}; head -c 20M /dev/urandom > ${v#*:}/x
        done
        sum=$(cat a/x b/x | sha256sum); umount a b
        l lvextend -qq -L +100M $VG/lin
        test $(blockdev --getsize64 $V/lin) = $((200 << 20))
        l vgchange -qq -an $VG; test ! -e $V/lin; test ! -e /dev/mapper/thinmap--vg-lin
        l vgchange -qq -ay $VG
        mount $V/lin a; mount $V/str b; test "$(cat a/x b/x | sha256sum)" = "$sum"; umount a b
        l dmsetup table thinmap--vg-str | cut -d' ' -f3-5
        lvs_of lv_name,segtype,lv_size,lv_active
        "#,
    );
    assert_eq!(
        said,
        "striped 2 128\nlin,linear,200.00m,active\nlin,linear,200.00m,active\nstr,striped,200.00m,active\n"
    );
    world.end();
}

#[test]
fn a_thin_pool_grows_is_repaired_and_comes_back_after_a_restart() {
    let name = "a_thin_pool_grows_is_repaired_and_comes_back_after_a_restart";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = group(
        &world,
        r#"
        l lvcreate -qq -y --type thin-pool -n pool -L 512M $VG
        l lvcreate -qq -y --type thin -n t1 -V 1G --thinpool pool $VG
        mkdir m; mkfs.ext4 -q $V/t1; mount $V/t1 m; head -c 60M /dev/urandom > m/x; sum=$(sha256sum < m/x); umount m
        used=$(l dmsetup status thinmap--vg-pool-tpool | cut -d' ' -f6)
        percent=$(awk "BEGIN { printf \"%.2f\", 100 * ${used%/*} / ${used#*/} }")
        test "$(lvs_of data_percent | grep -c "^$percent$")" = 1
        l lvextend -qq -y -L +100M $VG/pool
        l lvextend -qq -y --poolmetadatasize +4M $VG/pool
        lvs_of lv_name,lv_size,lv_metadata_size,lv_attr | grep ^pool
        l vgchange -qq -an $VG
        thinmap stop; l vgchange -qq -ay $VG
        mount $V/t1 m; test "$(sha256sum < m/x)" = "$sum"; umount m
        l vgchange -qq -an $VG
        l lvconvert -qq -y --repair $VG/pool
        l vgchange -qq -ay $VG
        mount $V/t1 m; test "$(sha256sum < m/x)" = "$sum"; umount m
        l lvrename -qq $VG t1 renamed; test -b $V/renamed; test ! -e $V/t1
        l lvremove -qq -y $VG/renamed
        l dmsetup status thinmap--vg-pool-tpool | cut -d' ' -f6
        "#,
    );
    assert_eq!(said, "pool,612.00m,8.00m,twi-aotz--\n0/9792\n");
    world.end();
}
