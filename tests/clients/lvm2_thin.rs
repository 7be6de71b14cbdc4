//! lvm2's thin volumes: snapshots, merges, external origins, each with its content.

use crate::lvm2::{NEEDS, group};
use crate::support::turn;

/// A pool, a volume `base` with a file system and a file, and `same VOLUME FILE`.
const POOL: &str = r#"
    l lvcreate -qq -y --type thin-pool -n pool -L 512M $VG
    l lvcreate -qq -y -n base -V 200M --thinpool pool $VG
    mkfs.ext4 -q $V/base; mount $V/base m; random m x 20M; umount m
    # files VOLUME COMMAND...: with its file system mounted, the command is run in it.
    files() { mount $V/$1 m; shift; (cd m; "$@"); umount m; }
    sum() { files $1 sha256sum $2; }
    names() { files $1 ls; }
"#;

#[test]
fn snapshots_of_snapshots_keep_what_they_saw() {
    let Some((world, _turn)) = turn("snapshots_of_snapshots_keep_what_they_saw", NEEDS) else {
        return;
    };
    let said = group(
        &world,
        &format!(
            r#"{POOL}
        seen=$(sum base x)
        l lvcreate -qq -s -n s1 $VG/base
        files base rm x
        # A snapshot is not activated unless that is asked for.
        l lvchange -qq -ay $VG/s1; test ! -e $V/s1
        l lvchange -qq -ay -K $VG/s1; test "$(sum s1 x)" = "$seen"
        files s1 random . y 5M; y=$(sum s1 y)
        l lvcreate -qq -kn -s -n s2 $VG/s1
        files s1 rm y x
        # Of a mounted volume: what was written before is in it.
        mount $V/s2 n; random n z 3M; z=$(cd n; sha256sum z)
        l lvcreate -qq -kn -s -n s3 $VG/s2
        umount n
        files s2 rm z
        test "$(sum s2 x) $(sum s2 y)" = "$seen $y"
        test "$(sum s3 x) $(sum s3 y) $(sum s3 z)" = "$seen $y $z"
        names base; names s1; names s2
        lvs_of lv_name,origin,lv_ancestors
        l vgchange -qq -an $VG; l vgchange -qq -ay -K $VG
        test "$(sum s3 x) $(sum s3 y) $(sum s3 z)" = "$seen $y $z"
        # The one in the middle goes; the last holds what came through it.
        l lvremove -qq -y $VG/s2
        test "$(sum s3 x) $(sum s3 y) $(sum s3 z)" = "$seen $y $z"
        "#
        ),
    );
    assert_eq!(
        said,
        "lost+found\nlost+found\nlost+found\nx\ny\n\
         base,,\npool,,\ns1,base,base\ns2,s1,s1,base\ns3,s2,s2,s1,base\n"
    );
    world.end();
}

#[test]
fn a_snapshot_is_merged_at_once_or_when_its_origin_is_next_activated() {
    let name = "a_snapshot_is_merged_at_once_or_when_its_origin_is_next_activated";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = group(
        &world,
        &format!(
            r#"{POOL}
        seen=$(sum base x)
        l lvcreate -qq -s -n s1 $VG/base
        files base rm x
        l lvchange -qq -an $VG/base
        l lvconvert -qq --merge $VG/s1
        l lvchange -qq -ay $VG/base
        test "$(sum base x)" = "$seen"
        lvs_of lv_name,lv_attr
        # In use: the origin stays as it is until its next activation.
        l lvcreate -qq -s -n s2 $VG/base
        mount $V/base m; rm m/x; touch m/later
        l lvconvert -qq --merge $VG/s2
        ls m
        l lvs -a --noheadings --separator , -o lv_name,lv_attr $VG | sed 's/^ *//' | grep -E 'base|s2'
        umount m
        names base
        l lvchange -qq -an $VG/base; l lvchange -qq -ay $VG/base
        test "$(sum base x)" = "$seen"
        names base
        lvs_of lv_name,lv_attr
        "#
        ),
    );
    let merged = "base,Vwi-a-tz--\npool,twi-aotz--\n";
    assert_eq!(
        said,
        format!(
            "{merged}later\nlost+found\nbase,Owi-aotz--\n[s2],Swi---tz-k\nlater\nlost+found\nlost+found\nx\n{merged}"
        )
    );
    world.end();
}

#[test]
fn a_volume_outside_of_the_pool_is_an_origin() {
    let Some((world, _turn)) = turn("a_volume_outside_of_the_pool_is_an_origin", NEEDS) else {
        return;
    };
    let said = group(
        &world,
        &format!(
            r#"{POOL}
        fill() {{ dd if=/dev/urandom of=$V/$1 bs=1M count=40 oflag=direct status=none; }}
        holds() {{ test "$(sha256sum <$V/$1)" = "$2"; }}
        l lvcreate -qq -y -n ext -L 40M $VG; fill ext; ext=$(sha256sum <$V/ext)
        refused 'Cannot use writable LV as the external origin' lvcreate -y -s --thinpool pool -n e1 $VG/ext
        l lvchange -qq -an $VG/ext; l lvchange -qq -pr $VG/ext
        l lvcreate -qq -s --thinpool pool -n e1 $VG/ext
        l lvcreate -qq -s --thinpool pool -n e2 $VG/ext
        holds e1 "$ext"; holds e2 "$ext"
        dd if=/dev/zero of=$V/e1 bs=4k seek=100 count=1 oflag=direct status=none
        cmp -n 409600 $V/e1 $V/e2; cmp -i 413696 $V/e1 $V/e2
        ! cmp -s $V/e1 $V/e2
        holds e2 "$ext"
        # A block is copied, the rest stays outside.
        lvs_of lv_name,origin,data_percent | grep '^e[12]'
        # A volume becomes thin where it is.
        l lvcreate -qq -y -n conv -L 40M $VG; fill conv; conv=$(sha256sum <$V/conv)
        l lvconvert -qq -y --type thin --thinpool pool --originname outside $VG/conv
        holds conv "$conv"
        dd if=/dev/zero of=$V/conv bs=1M count=2 oflag=direct status=none
        after=$(sha256sum <$V/conv)
        l vgchange -qq -an $VG; thinmap stop; l vgchange -qq -ay $VG
        holds conv "$after"; holds e2 "$ext"; holds ext "$ext"; holds outside "$conv"
        lvs_of lv_name,lv_attr,origin | grep -E 'e1|ext|conv|outside'
        # Nothing else is removed with a volume.
        l lvremove -qq -y $VG/conv; holds outside "$conv"
        "#
        ),
    );
    assert_eq!(
        said,
        "e1,ext,0.16\ne2,ext,0.00\n\
         conv,Vwi-a-tz--,outside\ne1,Vwi-a-tz--,ext\ne2,Vwi-a-tz--,ext\next,ori-a-----,\noutside,ori-a-----,\n"
    );
    world.end();
}
