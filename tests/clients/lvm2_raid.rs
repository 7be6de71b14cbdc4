//! lvm2's raid volumes: made, checked, with legs lost, repaired, replaced, and a thin pool on one.

use crate::lvm2::{NEEDS, script};
use crate::support::turn;

/// A group on six physical volumes, and words.
const BASE: &str = r#"
    for pv in A B C D E F; do pv $pv 300M; l pvcreate -qq ${!pv}; done
    l vgcreate -qq $VG $A $B $C $D $E $F
    synced() {
        for turn in $(seq 300); do
            [ "$(l lvs --noheadings -o sync_percent $VG/$1 | tr -d ' ')" = 100.00 ] && return 0
            sleep 0.1
        done
        l lvs -a $VG >&2; return 1
    }
    fill() { dd if=/dev/urandom of=$V/$1 bs=1M count=$2 oflag=direct conv=notrunc status=none; }
    sum() { sha256sum <$V/$1; }
"#;

#[test]
fn raid_volumes_are_made_checked_and_their_legs_replaced() {
    let name = "raid_volumes_are_made_checked_and_their_legs_replaced";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = script(
        &world,
        &format!(
            r#"{BASE}
        l lvcreate -qq -y --type raid1 -m 1 -L 40M -n one $VG
        l lvcreate -qq -y --type raid5 -i 2 -L 40M -n five $VG
        l lvcreate -qq -y --type raid6 -i 3 -L 48M -n six $VG
        l lvcreate -qq -y --type raid10 -i 2 -m 1 -L 40M -n ten $VG
        for v in one five six ten; do synced $v; fill $v 40; done
        lvs_of lv_name,segtype,lv_attr,sync_percent
        for v in one five six ten; do
            sum $v >sum.$v
            l lvchange -qq --syncaction check $VG/$v; synced $v
        done
        lvs_of lv_name,raid_mismatch_count,raid_sync_action
        # One leg of each goes elsewhere.
        for v in one five six ten; do
            l lvconvert -qq -y --replace $A $VG/$v 2>/dev/null || l lvconvert -qq -y --replace $B $VG/$v
            synced $v
            test "$(sum $v)" = "$(cat sum.$v)"
        done
        l lvchange -qq --syncaction check $VG/six; synced six
        lvs_of lv_name,raid_mismatch_count,lv_health_status
        # A leg more, a leg less; more room.
        l lvconvert -qq -y -m 2 $VG/one; synced one
        l lvconvert -qq -y -m 1 $VG/one
        l lvextend -qq -L 60M $VG/one; synced one
        test "$(head -c 40M $V/one | sha256sum)" = "$(cat sum.one)"
        l vgchange -qq -an $VG; thinmap stop; l vgchange -qq -ay $VG
        test "$(sum six)" = "$(cat sum.six)"
        lvs_of lv_name,lv_size,sync_percent
        gone
        "#
        ),
    );
    assert_eq!(
        said,
        "five,raid5,rwi-a-r---,100.00\none,raid1,rwi-a-r---,100.00\nsix,raid6,rwi-a-r---,100.00\nten,raid10,rwi-a-r---,100.00\n\
         five,0,idle\none,0,idle\nsix,0,idle\nten,0,idle\n\
         five,0,\none,0,\nsix,0,\nten,0,\n\
         five,40.00m,100.00\none,60.00m,100.00\nsix,48.00m,100.00\nten,40.00m,100.00\n"
    );
    world.end();
}

#[test]
fn raid_volumes_live_without_a_physical_volume_and_are_repaired() {
    let name = "raid_volumes_live_without_a_physical_volume_and_are_repaired";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = script(
        &world,
        &format!(
            r#"{BASE}
        l lvcreate -qq -y --type raid1 -m 1 -L 40M -n one $VG $A $B
        l lvcreate -qq -y --type raid5 -i 2 -L 40M -n five $VG $A $C $D
        l lvcreate -qq -y --type raid6 -i 3 -L 48M -n six $VG $A $B $C $D $E
        # A thin pool on raid1.
        l lvcreate -qq -y --type raid1 -m 1 -L 60M -n pool $VG $A $B
        l lvcreate -qq -y --type raid1 -m 1 -L 4M -n meta $VG $A $B
        for v in one five six pool meta; do synced $v; done
        l lvconvert -qq -y --type thin-pool --poolmetadata $VG/meta --poolmetadataspare n $VG/pool
        l lvcreate -qq -y -n vol -V 40M --thinpool pool $VG
        for v in one five six; do fill $v 40; sum $v >sum.$v; done
        mkfs.ext4 -q $V/vol; mount $V/vol m; random m x 20M; (cd m; sha256sum x) >sum.vol; umount m
        l vgchange -qq -an $VG
        # A is gone.
        losetup -d $A; PVS=${{PVS/$A/}}; rm A.img
        # A pool on what is left is `partial` to lvm2, so a leg is an error target.
        l vgchange -qq -ay --activationmode partial $VG
        for v in one five six; do test "$(sum $v)" = "$(cat sum.$v)"; fill $v 3; sum $v >sum.$v; done
        lvs_of lv_name,lv_attr,lv_health_status
        for v in one five six; do
            l lvconvert -qq -y --repair $VG/$v; synced $v
            test "$(sum $v)" = "$(cat sum.$v)"
        done
        for v in pool_tdata pool_tmeta; do l lvconvert -qq -y --repair $VG/$v; done
        mount $V/vol m; (cd m; sha256sum -c --quiet ../sum.vol); umount m
        l vgreduce -qq --removemissing $VG
        lvs_of lv_name,lv_attr,lv_health_status
        gone
        "#
        ),
    );
    assert_eq!(
        said,
        "five,rwi-a-r-p-,partial\none,rwi-a-r-p-,partial\npool,twi-aotzp-,partial\nsix,rwi-a-r-p-,partial\nvol,Vwi-a-tzp-,partial\n\
         five,rwi-a-r---,\none,rwi-a-r---,\npool,twi-aotz--,\nsix,rwi-a-r---,\nvol,Vwi-a-tz--,\n"
    );
    world.end();
}
