//! lvm2's mirrors (not its RAID): made with both kinds of log, converted, repaired after a leg is gone.

use crate::lvm2::{NEEDS, script};
use crate::support::turn;

/// Three physical volumes, each a mapped device that can be made to fail, and words.
const GROUP: &str = r#"
    # Nobody else may ask for events, or repair.
    cp -a /etc/lvm etc; export LVM_SYSTEM_DIR=$PWD/etc
    echo 'activation { monitoring = 0 }' >>etc/lvmlocal.conf
    # A test that fails leaves nothing either.
    trap 'off; thinmap run -- dmsetup remove_all --force >/dev/null 2>&1 || true' EXIT
    for name in A B C; do
        # On a file, so that lvm2 does not see each of them twice.
        truncate -s 200M $name.img
        l dmsetup create pv$name --table "0 409600 linear $PWD/$name.img 0"
        printf -v $name /dev/mapper/pv$name
    done
    l pvcreate -qq $A $B $C; l vgcreate -qq $VG $A $B $C
    in_sync() {
        for try in $(seq 300); do
            [ "$(l lvs --noheadings -o copy_percent $VG/$1 | tr -d ' ')" = 100.00 ] && return
            sleep 0.1
        done
        l lvs -a $VG; return 1
    }
    # legs NAME: both hold the same, however lvm2 calls them.
    legs() { cmp /dev/mapper/thinmap--vg-$1_mimage_$2 /dev/mapper/thinmap--vg-$1_mimage_$3; }
    # pv_of NAME: the letter of the physical volume that a volume lies on.
    pv_of() {
        local at name
        at=$(l dmsetup table thinmap--vg-$1 | awk '{ print $4 }')
        for name in A B C; do
            [ "$(l dmsetup info -c --noheadings --separator : -o major,minor pv$name)" != "$at" ] || echo $name
        done
    }
    table() { l dmsetup load $1 --table "$2"; l dmsetup suspend --noflush $1; l dmsetup resume $1; }
    fails() { table pv$1 "0 409600 error"; }
    no_group() {
        l vgremove -qq -ff -y $VG; rm -rf $V
        for name in A B C; do l dmsetup remove pv$name; done
        [ "$(l dmsetup ls)" = "No devices found" ]
    }
"#;

#[test]
fn mirrors_are_made_and_converted() {
    let Some((world, _turn)) = turn("mirrors_are_made_and_converted", NEEDS) else {
        return;
    };
    let said = script(
        &world,
        &format!(
            r#"{GROUP}
        l lvcreate -qq -y --type mirror -m1 --mirrorlog core -n core -L 40M $VG
        l lvcreate -qq -y --type mirror -m1 --mirrorlog disk -n disk -L 40M $VG
        in_sync core; in_sync disk
        lvs_of lv_name,lv_attr,mirror_log,copy_percent
        l dmsetup table | sed -n 's/^thinmap--vg-\(core\|disk\): //p' | sed 's/ 7:[0-9]*/ DEV/g' | sort
        mkfs.ext4 -q $V/disk; mount $V/disk m; random m x 20M; sum=$(sha256sum <m/x); umount m
        legs disk 0 1; legs core 0 1
        # The log on a device remembers, the one in memory does not.
        l vgchange -qq -an $VG; l vgchange -qq -ay $VG
        l lvs --noheadings -o copy_percent $VG/disk | tr -d ' '
        in_sync core
        # A third leg, while it is used; then without a mirror, and with one again.
        mount $V/disk m
        l lvconvert -qq -y -m2 --mirrorlog core $VG/disk; in_sync disk
        lvs_of lv_name,lv_attr,mirror_log,copy_percent | grep disk
        random m y 10M; sync
        legs disk 0 1; legs disk 0 2
        l lvconvert -qq -y -m0 $VG/disk $A; umount m
        l lvs --noheadings -o lv_attr $VG/disk | tr -d ' '
        l lvconvert -qq -y --type mirror -m1 --mirrorlog core $VG/disk; in_sync disk
        mount $V/disk m; test "$(sha256sum <m/x)" = "$sum"; umount m
        legs disk 0 1
        l lvremove -qq -y $VG/core
        l lvconvert -qq -y -m0 $VG/disk
        no_group
        "#
        ),
    );
    assert_eq!(
        said,
        "core,mwi-a-m---,,100.00\ndisk,mwi-a-m---,[disk_mlog],100.00\n\
         0 81920 mirror core 1 4096 2 DEV 0 DEV 0 1 handle_errors\n\
         0 81920 mirror disk 2 DEV 4096 2 DEV 0 DEV 0 1 handle_errors\n\
         100.00\ndisk,mwi-aom---,,100.00\n-wi-a-----\n"
    );
    world.end();
}

#[test]
fn a_mirror_whose_leg_is_gone_is_repaired() {
    let Some((world, _turn)) = turn("a_mirror_whose_leg_is_gone_is_repaired", NEEDS) else {
        return;
    };
    let said = script(
        &world,
        &format!(
            r#"{GROUP}
        for log in core disk; do
            l lvcreate -qq -y --type mirror -m1 --mirrorlog $log -n mir -L 40M $VG $A $B $C
            in_sync mir
            mkfs.ext4 -q $V/mir; mount $V/mir m; random m x 20M; sum=$(sha256sum <m/x)
            leg=$(pv_of mir_mimage_1)
            fails $leg
            # Held, and done when the leg was taken out.
            (dd if=/dev/zero of=m/y bs=1M count=4 oflag=direct status=none; echo written) >written &
            for try in $(seq 200); do
                l dmsetup status thinmap--vg-mir | grep -q ' AD ' && break
                sleep 0.1
            done
            l dmsetup status thinmap--vg-mir | cut -d' ' -f9
            [ ! -s written ]
            l lvconvert -qq -y --repair $VG/mir 2>>repaired
            wait; cat written
            in_sync mir
            test "$(sha256sum <m/x)" = "$sum"; umount m
            fsck.ext4 -fn $V/mir >fsck 2>&1
            l lvs --noheadings -o lv_attr $VG/mir | tr -d ' '
            for image in $(l dmsetup ls | sed -n 's/^thinmap--vg-\(mir_m[^[:space:]]*\).*/\1/p'); do pv_of $image; done | grep -c $leg || true
            table pv$leg "0 409600 linear $PWD/$leg.img 0"
            blockdev --flushbufs /dev/mapper/pv$leg
            l lvremove -qq -y $VG/mir
            # lvm2 may have taken it back by itself already, and then refuses.
            thinmap run -- vgextend -qq --restoremissing $VG /dev/mapper/pv$leg >/dev/null 2>&1 || true
        done
        no_group
        "#
        ),
    );
    let each = "AD\nwritten\nmwi-a-m---\n0\n";
    assert_eq!(said, each.repeat(2));
    world.end();
}
