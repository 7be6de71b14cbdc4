//! lvm2's cached volumes: made, changed, split, taken away, with their data right throughout.

use crate::lvm2::{NEEDS, script};
use crate::support::turn;

/// A group on a slow and a fast physical volume, and words.
const BASE: &str = r#"
    pv A 600M; pv B 300M; l pvcreate -qq $A $B; l vgcreate -qq $VG $A $B
    check() { test "$(sha256sum <$V/$1)" = "$(cat sum.$1)"; }
    fill() { head -c $2M /dev/urandom | dd of=$V/$1 bs=1M iflag=fullblock oflag=direct conv=notrunc status=none; sha256sum <$V/$1 >sum.$1; }
    # Written again, through the page cache and past it.
    change() {
        dd if=/dev/urandom of=$V/$1 bs=64k seek=3 count=40 oflag=direct conv=notrunc status=none
        dd if=/dev/urandom of=$V/$1 bs=4k seek=5000 count=500 conv=notrunc,fsync status=none
        sha256sum <$V/$1 >sum.$1
    }
"#;

fn needs() -> Vec<&'static str> {
    [NEEDS, &["/usr/sbin/cache_check"]].concat()
}

#[test]
fn cached_volumes_are_made_changed_split_and_uncached() {
    let name = "cached_volumes_are_made_changed_split_and_uncached";
    let Some((world, _turn)) = turn(name, &needs()) else {
        return;
    };
    let said = script(
        &world,
        &format!(
            r#"{BASE}
        l lvcreate -qq -y -n slow -L 100M $VG $A
        fill slow 100
        l lvcreate -qq -y --type cache-pool -n fast -L 40M --chunksize 64k $VG $B
        l lvconvert -qq -y --type cache --cachepool $VG/fast --cachemode writeback $VG/slow
        check slow
        change slow
        lvs_of lv_name,segtype,cache_mode,cache_policy,chunk_size
        l dmsetup table thinmap--vg-slow | cut -d' ' -f3,7-
        # After a restart, and after a deactivation.
        l vgchange -qq -an $VG; thinmap stop; l vgchange -qq -ay $VG
        check slow; change slow
        for mode in writethrough passthrough writeback; do
            l lvchange -qq -y --cachemode $mode $VG/slow; check slow; change slow
            lvs_of cache_mode
        done
        l lvchange -qq -y --cachepolicy cleaner $VG/slow; check slow
        l lvchange -qq -y --cachepolicy smq $VG/slow; change slow
        # It is larger.
        l lvextend -qq -L 120M $VG/slow $A
        test "$(head -c 100M $V/slow | sha256sum)" = "$(cat sum.slow)"; change slow
        # Cache and volume apart: the data are all on the volume.
        l lvconvert -qq -y --splitcache $VG/slow
        check slow
        lvs_of lv_name,segtype
        l lvconvert -qq -y --type cache --cachepool $VG/fast $VG/slow
        change slow
        l lvconvert -qq -y --uncache $VG/slow
        check slow
        lvs_of lv_name,segtype
        gone
        "#
        ),
    );
    assert_eq!(
        said,
        "slow,cache,writeback,smq,64.00k\ncache 128 2 metadata2 writeback smq 0\n\
         writethrough\npassthrough\nwriteback\nfast,cache-pool\nslow,linear\nslow,linear\n"
    );
    world.end();
}

#[test]
fn a_cached_volume_with_a_file_system_lives_through_a_kill() {
    let name = "a_cached_volume_with_a_file_system_lives_through_a_kill";
    let Some((world, _turn)) = turn(name, &needs()) else {
        return;
    };
    let said = script(
        &world,
        &format!(
            r#"{BASE}
        l lvcreate -qq -y -n slow -L 200M $VG $A
        l lvcreate -qq -y --type cache --cachemode writeback -n fast -L 40M $VG/slow $B
        mkfs.ext4 -q $V/slow; mount $V/slow m
        random m x 60M; (cd m; sha256sum x) >sum; sync -f m/x
        kill_daemon; umount m
        l vgchange -qq -ay $VG
        mount $V/slow m; (cd m; sha256sum -c --quiet ../sum)
        random m y 20M; (cd m; sha256sum x y) >sum; umount m
        # The cache in one volume: data and metadata.
        l lvconvert -qq -y --uncache $VG/slow
        l lvcreate -qq -y -n vol -L 40M $VG $B
        l lvconvert -qq -y --type cache --cachevol $VG/vol $VG/slow
        mount $V/slow m; (cd m; sha256sum -c --quiet ../sum); random m y 20M; (cd m; sha256sum x y) >sum; umount m
        l vgchange -qq -an $VG; l vgchange -qq -ay $VG
        mount $V/slow m; (cd m; sha256sum -c --quiet ../sum); umount m
        lvs_of lv_name,segtype
        l lvconvert -qq -y --splitcache $VG/slow
        mount $V/slow m; (cd m; sha256sum -c --quiet ../sum); umount m
        gone
        "#
        ),
    );
    assert_eq!(said, "slow,cache\n");
    world.end();
}
