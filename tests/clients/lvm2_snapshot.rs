//! lvm2's snapshots with a size of their own ("thick"): of linear and thin volumes, filled, merged, removed.

use crate::lvm2::{NEEDS, group};
use crate::support::turn;

/// A volume `base` with a file system and a file, and words.
const BASE: &str = r#"
    l lvcreate -qq -y -n base -L 100M $VG
    mkfs.ext4 -q $V/base; mount $V/base m; random m x 20M; umount m
    files() { mount $V/$1 m; shift; (cd m; "$@"); umount m; }
    sum() { files $1 sha256sum $2; }
    names() { files $1 ls; }
"#;

#[test]
fn a_thick_snapshot_keeps_what_it_saw_and_is_merged() {
    let name = "a_thick_snapshot_keeps_what_it_saw_and_is_merged";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = group(
        &world,
        &format!(
            r#"{BASE}
        seen=$(sum base x)
        # Mounted: what was written before is in it.
        mount $V/base n; sync
        l lvcreate -qq -s -n s1 -L 60M $VG/base
        rm n/x; random n y 10M; umount n
        l lvcreate -qq -s -n s2 -c 64k -L 60M $VG/base
        files base rm y
        test "$(sum s1 x)" = "$seen"
        names s1; names s2; names base
        lvs_of lv_name,lv_attr,origin,chunk_size
        # The figure is device mapper's.
        percent=$(l dmsetup status thinmap--vg-s1 | awk '{{ split($4, p, "/"); printf "%.2f", 100 * p[1] / p[2] }}')
        lvs_of lv_name,data_percent | grep -qx "s1,$percent"
        files s1 touch own
        l vgchange -qq -an $VG; thinmap stop; l vgchange -qq -ay $VG
        test "$(sum s1 x)" = "$seen"; names s1
        # Merged at once; the other one goes on.
        l lvconvert -qq --merge $VG/s1
        names base; test "$(sum base x)" = "$seen"
        names s2
        lvs_of lv_name,lv_attr
        l lvremove -qq -y $VG/s2
        test "$(sum base x)" = "$seen"
        l dmsetup ls | cut -f1
        l dmsetup table | cut -d' ' -f2-4
        "#
        ),
    );
    assert_eq!(
        said,
        "lost+found\nx\nlost+found\ny\nlost+found\n\
         base,owi-a-s---,,0 \ns1,swi-a-s---,base,4.00k\ns2,swi-a-s---,base,64.00k\n\
         lost+found\nown\nx\n\
         lost+found\nown\nx\nlost+found\ny\n\
         base,owi-a-s---\ns2,swi-a-s---\n\
         thinmap--vg-base\n0 204800 linear\n"
    );
    world.end();
}

#[test]
fn a_merge_waits_for_an_origin_that_is_open() {
    let name = "a_merge_waits_for_an_origin_that_is_open";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = group(
        &world,
        &format!(
            r#"{BASE}
        seen=$(sum base x)
        l lvcreate -qq -s -n s1 -L 60M $VG/base
        mount $V/base m; rm m/x; touch m/later
        l lvconvert -qq --merge $VG/s1
        ls m
        umount m
        l lvchange -qq -an $VG/base
        # Activation begins it; it goes on while the volume is used.
        l lvchange -qq -ay $VG/base
        test "$(sum base x)" = "$seen"; names base
        for try in $(seq 300); do
            [ "$(lvs_of lv_name)" = base ] && break
            sleep 0.1
        done
        test "$(sum base x)" = "$seen"
        lvs_of lv_name,lv_attr
        "#
        ),
    );
    assert_eq!(said, "later\nlost+found\nlost+found\nx\nbase,-wi-a-----\n");
    world.end();
}

#[test]
fn a_thick_snapshot_that_is_full_is_invalid_and_its_origin_goes_on() {
    let name = "a_thick_snapshot_that_is_full_is_invalid_and_its_origin_goes_on";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = group(
        &world,
        &format!(
            r#"{BASE}
        l lvcreate -qq -s -n s1 -L 12M $VG/base
        l lvcreate -qq -s -n s2 -L 12M $VG/base
        l lvextend -qq -L 60M $VG/s2
        files base random . z 30M; sum=$(sum base z)
        lvs_of lv_name,lv_attr,data_percent,lv_snapshot_invalid | cut -d, -f1,2,4
        l dmsetup status thinmap--vg-s1 | cut -d' ' -f4
        names s2
        l lvremove -qq -y $VG/s1
        test "$(sum base z)" = "$sum"
        l lvremove -qq -y $VG/s2
        lvs_of lv_name,lv_attr
        # Of a thin volume, with a size of its own.
        l lvcreate -qq -y --type thin-pool -n pool -L 200M $VG
        l lvcreate -qq -y -n t1 -V 100M --thinpool pool $VG
        dd if=/dev/urandom of=$V/t1 bs=1M count=20 oflag=direct status=none; before=$(sha256sum <$V/t1)
        l lvcreate -qq -s -n thick -L 60M $VG/t1
        dd if=/dev/urandom of=$V/t1 bs=1M count=10 oflag=direct status=none
        test "$(sha256sum <$V/thick)" = "$before"
        lvs_of lv_name,segtype,origin | grep thick
        l lvremove -qq -y $VG/thick
        "#
        ),
    );
    assert_eq!(
        said,
        "base,owi-a-s---,unknown\ns1,swi-I-s---,snapshot invalid\ns2,swi-a-s---,\n\
         Invalid\nlost+found\nx\nbase,-wi-a-----\nthick,linear,t1\n"
    );
    world.end();
}
