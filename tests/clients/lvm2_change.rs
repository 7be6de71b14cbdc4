//! lvm2: groups and volumes that are resized, renamed and moved between hosts, and what is refused.

use crate::lvm2::{NEEDS, group, script};
use crate::support::turn;

#[test]
fn a_mounted_volume_grows_with_its_file_system() {
    let needs = [NEEDS, &["/usr/sbin/mkfs.xfs", "/usr/sbin/xfs_growfs"]].concat();
    let Some((world, _turn)) = turn("a_mounted_volume_grows_with_its_file_system", &needs) else {
        return;
    };
    let said = group(
        &world,
        r#"
        l lvcreate -qq -y --type thin-pool -n pool -L 600M $VG
        l lvcreate -qq -y -n t1 -V 320M --thinpool pool $VG
        l lvcreate -qq -y -n t2 -V 100M --thinpool pool $VG
        mkfs.xfs -q $V/t1; mount $V/t1 m; random m x 20M; sum=$(sha256sum <m/x)
        before=$(df -B1M --output=size m | tail -1)
        l lvextend -qq -r -L +80M $VG/t1 >growfs
        echo $(($(df -B1M --output=size m | tail -1) - before))
        test "$(sha256sum <m/x)" = "$sum"; umount m
        # resize2fs asks the kernel for a right (CAP_SYS_RESOURCE) on a mounted file system that not every root has.
        mkfs.ext4 -q $V/t2
        if (($((0x$(sed -n 's/^CapEff:\t*//p' /proc/self/status))) >> 24 & 1)); then mount $V/t2 n; fi
        l lvextend -qq -r -L +60M $VG/t2 >growfs
        mountpoint -q n || mount $V/t2 n
        test $(df -B1M --output=size n | tail -1) -gt 130; umount n
        lvs_of lv_name,lv_size
        "#,
    );
    assert_eq!(said, "80\npool,600.00m\nt1,400.00m\nt2,160.00m\n");
    world.end();
}

#[test]
fn a_pool_over_two_volumes_is_renamed_exported_and_imported() {
    let name = "a_pool_over_two_volumes_is_renamed_exported_and_imported";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = script(
        &world,
        r#"
        pv A 400M; pv B 400M
        l pvcreate -qq $A $B; l vgcreate -qq $VG $A $B
        l lvcreate -qq -y --type thin-pool -n pool -L 700M $VG
        l lvcreate -qq -y -n t1 -V 650M --thinpool pool $VG
        # Beyond the first physical volume.
        head -c 600M /dev/urandom >x; dd if=x of=$V/t1 bs=1M oflag=direct status=none
        l lvs -a --noheadings --separator ' ' -o devices $VG/pool_tdata | sed "s|$A(|A(|; s|$B(|B(|" | tr -d ' (0-9)' | sort
        l dmsetup table thinmap--vg-pool_tdata | wc -l
        l lvrename -qq $VG t1 t2
        l lvrename -qq $VG pool tank
        test -b $V/t2; test ! -e $V/t1
        l vgrename -qq $VG $VG-2
        test ! -e $V; cmp -n 600M x $V-2/t2
        l vgrename -qq $VG-2 $VG
        l vgchange -qq -an $VG
        l vgexport -qq $VG
        refused 'is exported' vgchange -ay $VG
        l vgimport -qq $VG
        l vgchange -qq -ay $VG
        cmp -n 600M x $V/t2
        l dmsetup ls | cut -f1
        l lvreduce -qq -f -y -L 100M $VG/t2
        cmp -n 100M x $V/t2
        lvs_of lv_name,lv_size,data_percent
        # What a smaller volume no longer maps is the pool's again once it was removed.
        l lvremove -qq -y $VG/t2
        percent thinmap--vg-tank-tpool 6
        rm -f /etc/lvm/archive/$VG-2_* /etc/lvm/backup/$VG-2
        gone
        "#,
    );
    assert_eq!(
        said,
        "A\nB\n2\n\
         thinmap--vg-t2\nthinmap--vg-tank\nthinmap--vg-tank-tpool\nthinmap--vg-tank_tdata\nthinmap--vg-tank_tmeta\n\
         t2,100.00m,100.00\ntank,700.00m,85.71\n0.00\n"
    );
    world.end();
}

/// lvm2's own daemon waits for the pool's events through the shim, and extends it.
#[test]
fn the_event_daemon_extends_a_pool_that_fills() {
    let needs = [NEEDS, &["/usr/sbin/dmeventd"]].concat();
    let Some((world, _turn)) = turn("the_event_daemon_extends_a_pool_that_fills", &needs) else {
        return;
    };
    let said = group(
        &world,
        r#"
        cp -a /etc/lvm etc; export LVM_SYSTEM_DIR=$PWD/etc
        echo 'activation { thin_pool_autoextend_threshold = 70 }' >>etc/lvmlocal.conf
        l lvcreate -qq -y --type thin-pool -n pool -L 100M $VG
        l lvcreate -qq -y -n t1 -V 92M --thinpool pool $VG
        dd if=/dev/urandom of=$V/t1 bs=1M count=90 oflag=direct status=none
        for try in $(seq 300); do
            size=$(lvs_of lv_name,lv_size | grep ^pool)
            [ "$size" = pool,100.00m ] || [ "$size" = pool,120.00m ] || break
            sleep 0.1
        done
        # By how much depends on how full it was when the event daemon looked.
        size=${size#pool,}; size=${size%.00m}; test $size -gt 120 && test $size -le 156 && echo extended
        "#,
    );
    assert_eq!(said, "extended\n");
    world.end();
}

#[test]
fn what_needs_a_target_that_is_missing_is_refused_and_leaves_nothing() {
    let name = "what_needs_a_target_that_is_missing_is_refused_and_leaves_nothing";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = group(
        &world,
        r#"
        l lvcreate -qq -y -n lin -L 50M $VG
        pv PV2 200M; l pvcreate -qq $PV2; l vgextend -qq $VG $PV2
        refused 'not detected\|not found\|module' lvcreate -y --type vdo -n vdo -L 140M -V 200M $VG
        l lvs -a --noheadings -o lv_name,lv_attr $VG | awk '{ print $1, $2 }'
        l dmsetup ls | cut -f1
        "#,
    );
    assert_eq!(said, "lin -wi-a-----\nthinmap--vg-lin\n");
    world.end();
}
