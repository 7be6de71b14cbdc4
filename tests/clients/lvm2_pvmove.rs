//! lvm2's pvmove: volumes move from one physical volume to another while they are written.

use crate::lvm2::{NEEDS, script};
use crate::support::turn;

#[test]
fn a_mounted_volume_moves_to_another_physical_volume() {
    let Some((world, _turn)) = turn("a_mounted_volume_moves_to_another_physical_volume", NEEDS)
    else {
        return;
    };
    let said = script(
        &world,
        r#"
        # The last step of a move looks for what stands on it, also where the physical volumes are mapped devices themselves.
        trap 'umount m 2>/dev/null || true; thinmap run -- dmsetup remove_all --force >/dev/null 2>&1 || true' EXIT
        truncate -s 300M A.img
        l dmsetup create pvA --table "0 614400 linear $PWD/A.img 0"
        A=/dev/mapper/pvA; pv B 300M
        l pvcreate -qq $A $B; l vgcreate -qq $VG $A $B
        l lvcreate -qq -y -n one -L 60M $VG $A
        l lvcreate -qq -y -n two -L 40M $VG $A
        mkfs.ext4 -q $V/one; mount $V/one m; head -c 20M /dev/urandom >m/x; sum=$(sha256sum <m/x)
        head -c 40M /dev/urandom | dd of=$V/two bs=1M iflag=fullblock oflag=direct status=none; two=$(sha256sum <$V/two)
        (while [ ! -e stop ]; do head -c 1M /dev/urandom >m/y; sync m/y; done) & writer=$!
        l pvmove -qq -i 1 $A $B
        touch stop; wait $writer
        [ "$(sha256sum <m/x)" = "$sum" ]; umount m; fsck.ext4 -fn $V/one >/dev/null 2>&1
        [ "$(sha256sum <$V/two)" = "$two" ]
        l pvs --noheadings -o pv_used $A | tr -d ' '
        l pvmove -qq -i 1 -n two $B $A
        [ "$(sha256sum <$V/two)" = "$two" ]
        l lvs --noheadings -o lv_name,devices $VG | sed 's/(.*//; s/  */ /g' | sort |
            sed "s|$B\$|B|; s|/dev/mapper/pvA|A|; s|/dev/loop[0-9]*|A|"
        l dmsetup ls | cut -f1 | sort
        l vgremove -qq -ff -y $VG; rm -rf $V; l dmsetup remove pvA
        losetup -d $B
        "#,
    );
    assert_eq!(
        said,
        "0\n one B\n two A\npvA\nthinmap--vg-one\nthinmap--vg-two\n"
    );
    world.end();
}
