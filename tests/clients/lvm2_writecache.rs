//! lvm2's write caches: put over a volume in use, tuned, flushed, taken away, made along with a volume.

use crate::lvm2::{NEEDS, script};
use crate::support::turn;

/// A slow physical volume and a fast one, and words.
const GROUP: &str = r#"
    pv SLOW 400M; pv FAST 400M
    l pvcreate -qq $SLOW $FAST; l vgcreate -qq $VG $SLOW $FAST
    # table_of NAME: without the devices.
    table_of() { l dmsetup table thinmap--vg-$1 | sed 's/ [0-9]*:[0-9]*/ DEV/g'; }
    # used NAME: blocks in the cache.
    used() { l dmsetup status thinmap--vg-$1 | awk '{ print $5 - $6 }'; }
"#;

#[test]
fn a_write_cache_is_put_over_a_volume_and_taken_away() {
    let name = "a_write_cache_is_put_over_a_volume_and_taken_away";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = script(
        &world,
        &format!(
            r#"{GROUP}
        l lvcreate -qq -y -n main -L 200M $VG $SLOW
        mkfs.ext4 -q -b 4096 $V/main; mount $V/main m; random m x 20M; sum=$(cat m/x | sha256sum); umount m
        l lvcreate -qq -y -an -n fast -L 100M $VG $FAST
        l lvconvert -qq -y --type writecache --cachevol fast --cachesettings 'block_size=4096 autocommit_time=2000' $VG/main >making
        lvs_of lv_name,segtype
        table_of main
        mount $V/main m; test "$(cat m/x | sha256sum)" = "$sum"
        random m y 20M; sync; sum=$(cat m/x m/y | sha256sum)
        [ $(used main) -gt 5000 ]
        # Its settings, while it is mounted.
        l lvchange -qq -y --cachesettings 'high_watermark=90 low_watermark=80' $VG/main
        table_of main
        umount m
        # Full, after the daemon was gone; and an orderly end.
        l vgchange -qq -an $VG; thinmap stop; l vgchange -qq -ay $VG
        [ $(used main) -gt 5000 ]
        mount $V/main m; test "$(cat m/x m/y | sha256sum)" = "$sum"; umount m
        l lvconvert -qq -y --splitcache $VG/main >splitting
        lvs_of lv_name,segtype
        mount $V/main m; test "$(cat m/x m/y | sha256sum)" = "$sum"
        # Over a mounted one, and away with it, mounted too.
        l lvconvert -qq -y --type writecache --cachevol fast --cachesettings block_size=4096 $VG/main >making
        random m z 10M; sync; sum=$(cat m/x m/y m/z | sha256sum)
        l lvconvert -qq -y --uncache $VG/main >cleaning
        grep -q 'completed cleaning' cleaning
        test "$(cat m/x m/y m/z | sha256sum)" = "$sum"; umount m
        fsck.ext4 -fn $V/main >fsck 2>&1
        lvs_of lv_name,segtype
        gone
        "#
        ),
    );
    assert_eq!(
        said,
        "main,writecache\n\
         0 409600 writecache s DEV DEV 4096 2 autocommit_time 2000\n\
         0 409600 writecache s DEV DEV 4096 6 high_watermark 90 low_watermark 80 autocommit_time 2000\n\
         fast,linear\nmain,linear\nmain,linear\n"
    );
    world.end();
}

#[test]
fn a_volume_is_made_with_a_write_cache() {
    let Some((world, _turn)) = turn("a_volume_is_made_with_a_write_cache", NEEDS) else {
        return;
    };
    let said = script(
        &world,
        &format!(
            r#"{GROUP}
        l lvcreate -qq -y --type writecache -n main -L 200M --cachedevice $FAST --cachesize 60M $VG $SLOW >making
        lvs_of lv_name,segtype
        table_of main
        mkfs.ext4 -q $V/main; mount $V/main m; random m x 90M; sync
        sum=$(cat m/x | sha256sum); umount m
        l vgchange -qq -an $VG; l vgchange -qq -ay $VG
        mount $V/main m; test "$(cat m/x | sha256sum)" = "$sum"; umount m
        l lvconvert -qq -y --uncache $VG/main >cleaning
        mount $V/main m; test "$(cat m/x | sha256sum)" = "$sum"; umount m
        lvs_of lv_name,segtype
        gone
        "#
        ),
    );
    assert_eq!(
        said,
        "main,writecache\n0 409600 writecache s DEV DEV 4096 0\nmain,linear\n"
    );
    world.end();
}
