//! lvm2 through the shim: what an administrator does with volume groups and thin pools.
//!
//! `lvm2.sh` has the words that the scripts speak in.

use std::path::Path;

use crate::support::turn;
use thinmap_tests::world::World;

pub const NEEDS: &[&str] = &[
    "/usr/sbin/lvm",
    "/usr/sbin/thin_check",
    "/usr/sbin/mkfs.ext4",
];

/// What lvm2's commands say on standard error in these tests, as they would on a kernel: beginnings of lines.
const EXPECTED_NOISE: &[&str] = &[
    // Volumes promise more than the pool has, and nobody has asked lvm2 to extend it.
    "  WARNING: Sum of all thin volume sizes",
    "  WARNING: You have not turned on protection against thin pools",
    "  WARNING: Set activation/thin_pool_autoextend_threshold",
    // What a repair leaves.
    "  WARNING: LV thinmap-vg/pool_meta0 holds a backup of the unrepaired metadata",
    "  WARNING: New metadata LV thinmap-vg/pool_tmeta might use different PVs",
    // A physical volume is gone; a volume becomes a pool.
    "  PARTIAL MODE. Incomplete logical volumes will be processed.",
    "  WARNING: Couldn't find device with uuid",
    "  WARNING: VG thinmap-vg is missing PV",
    "  WARNING: VG thinmap-vg was previously updated while",
    "  WARNING: Couldn't find all devices",
    "  WARNING: Converting thinmap-vg/",
    "  WARNING: Pool zeroing and",
    "  WARNING: recovery of pools without pool metadata spare LV is not automated",
    "  THIS WILL DESTROY CONTENT",
    "  WARNING: Sum of",
    // A merge is put off.
    "  Logical volume thinmap-vg/base contains a filesystem in use",
    // No systemd has started lvm2's polling daemon.
    "  /run/lvm/lvmpolld.socket: connect failed",
    "  WARNING: Failed to connect to lvmpolld",
    "  WARNING: Check global/use_lvmpolld",
    // A volume shrinks.
    "  WARNING: Reducing active logical volume",
    "  THIS MAY DESTROY YOUR DATA",
    "  WARNING: Thin volume thinmap-vg/t2 maps 600.00 MiB while the size is only 100.00 MiB",
    // Another program removed a loop device while lvm2 looked at all of them.
    "  Device open ",
    // A leg of a mirror is gone, and back.
    "  WARNING: Couldn't find device with uuid",
    "  WARNING: VG thinmap-vg is missing PV",
    "  WARNING: VG thinmap-vg was previously updated while PV",
    "  WARNING: VG thinmap-vg has unused reappeared PV",
    "  WARNING: Trying to up-convert to 2 images",
    "  WARNING: ignoring metadata seqno",
    "  WARNING: Inconsistent metadata found for VG thinmap-vg",
    "  WARNING: updating old metadata",
    "  See vgck --updatemetadata",
    // A write cache over a volume without a file system.
    "  WARNING: unable to detect a file system block size",
    "  WARNING: using a writecache block size larger",
    "  WARNING: Logical volume thinmap-vg/fast not zeroed",
    // fsadm's helper names itself.
    "resize2fs 1.",
];

/// Runs a script in the words of `lvm2.sh`; its output. lvm2 may have said nothing that is not expected.
#[track_caller]
pub fn script(world: &World, body: &str) -> String {
    let words = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/lvm2.sh");
    // A failed test shows how far it came.
    let said = world.sh(&format!(". {}\nset -x\n{body}", words.display()));
    let noise = std::fs::read_to_string(world.path().join("noise")).expect("noise");
    for line in noise.lines() {
        let is_expected = EXPECTED_NOISE.iter().any(|begin| line.starts_with(begin));
        assert!(is_expected, "{noise}");
    }
    said
}

/// The same with a group on one physical volume of 3 GiB, which is removed at the end and leaves nothing.
#[track_caller]
pub fn group(world: &World, body: &str) -> String {
    script(
        world,
        &format!("pv PV 3G; l pvcreate -qq $PV; l vgcreate -qq $VG $PV\n{body}\ngone"),
    )
}

#[test]
fn linear_and_striped_volumes_hold_file_systems() {
    let Some((world, _turn)) = turn("linear_and_striped_volumes_hold_file_systems", NEEDS) else {
        return;
    };
    let said = group(
        &world,
        r#"
        pv PV2 1G
        l pvcreate -qq $PV2; l vgextend -qq $VG $PV2
        l lvcreate -qq -y -n lin -L 100M $VG
        l lvcreate -qq -y -n str -i 2 -I 64 -L 200M $VG
        for v in lin:m str:n; do
            mkfs.ext4 -q $V/${v%:*}; mount $V/${v%:*} ${v#*:}; head -c 20M /dev/urandom > ${v#*:}/x
        done
        sum=$(cat m/x n/x | sha256sum); umount m n
        l lvextend -qq -L +100M $VG/lin
        test $(blockdev --getsize64 $V/lin) = $((200 << 20))
        l vgchange -qq -an $VG; test ! -e $V/lin; test ! -e /dev/mapper/thinmap--vg-lin
        l vgchange -qq -ay $VG
        mount $V/lin m; mount $V/str n; test "$(cat m/x n/x | sha256sum)" = "$sum"; umount m n
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
        mkfs.ext4 -q $V/t1; mount $V/t1 m; head -c 60M /dev/urandom > m/x; sum=$(sha256sum < m/x); umount m
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

/// The daemon's death, unlike the kernel's, leaves everything else of the machine as it was.
#[test]
fn a_group_comes_back_after_its_daemon_was_killed() {
    let name = "a_group_comes_back_after_its_daemon_was_killed";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = group(
        &world,
        r#"
        l lvcreate -qq -y -n lin -L 50M $VG
        l lvcreate -qq -y --type thin-pool -n pool -L 300M $VG
        l lvcreate -qq -y -n t1 -V 200M --thinpool pool $VG
        mkfs.ext4 -q $V/t1; mount $V/t1 m; random m x 20M; sum=$(sha256sum <m/x); umount m
        l lvcreate -qq -y -kn -s -n s1 $VG/t1
        kill_daemon
        lvs_of lv_name,lv_active
        l vgchange -qq -ay $VG
        lvs_of lv_name,lv_active
        for v in t1 s1; do mount $V/$v m; test "$(sha256sum <m/x)" = "$sum"; umount m; done
        # In use when it happens: the file system is lost until it is mounted again, with all that was synced.
        mount $V/t1 m; random m y 5M; sync; sum=$(sha256sum <m/y)
        kill_daemon
        umount m
        l vgchange -qq -ay $VG
        mount $V/t1 m; test "$(sha256sum <m/y)" = "$sum"; umount m
        "#,
    );
    let down = "lin,\npool,\ns1,\nt1,\n";
    assert_eq!(said, format!("{down}{}", down.replace(',', ",active")));
    world.end();
}

#[test]
fn figures_are_those_of_device_mapper_and_reports_are_whole() {
    let name = "figures_are_those_of_device_mapper_and_reports_are_whole";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = group(
        &world,
        r#"
        l lvcreate -qq -y --type thin-pool -n pool -L 512M $VG
        l lvcreate -qq -y -n t1 -V 333M --thinpool pool $VG
        l lvcreate -qq -y -n t2 -V 100M --thinpool pool $VG
        mkfs.ext4 -q $V/t1; mount $V/t1 m; random m x 77M; umount m
        dd if=/dev/urandom of=$V/t2 bs=1M count=100 oflag=direct status=none
        # dmsetup's question commits, lvs's does not.
        l dmsetup status >/dev/null; lvs_of lv_name,data_percent,metadata_percent >figures; cat figures >&2
        grep -qx "pool,$(percent thinmap--vg-pool-tpool 6),$(percent thinmap--vg-pool-tpool 5)" figures
        mapped=$(l dmsetup status thinmap--vg-t1 | awk '{ printf "%.2f", 100 * $4 / $2 }')
        grep -qx "t1,$mapped," figures
        grep -qx "t2,100.00," figures
        l lvs --reportformat json -o lv_name,lv_attr -a $VG >lvs.json
        l lvs -a --noheadings --separator , -o lv_name,devices,seg_monitor $VG | sed "s|$PV|PV|; s/^ *//" | sort
        l pvs --noheadings --separator , -o vg_name,pv_attr,pv_size $PV | sed 's/^ *//'
        l vgs --noheadings --separator , -o pv_count,lv_count,vg_attr $VG | sed 's/^ *//'
        l vgck $VG
        l lvdisplay $VG/t1 | grep -E 'LV Status|LV Size|Mapped size|LV Pool' | sed "s/$mapped/MAPPED/; s/^ *//"
        mount $V/t1 m; lsblk -nro SIZE,MOUNTPOINT $V/t1 | sed "s|$PWD/||"; umount m
        "#,
    );
    assert_eq!(
        said,
        "[lvol0_pmspare],PV(0),\n[pool_tdata],PV(1),\n[pool_tmeta],PV(129),\npool,pool_tdata(0),monitored\nt1,,\nt2,,\n\
         thinmap-vg,a--,<3.00g\n\
         1,3,wz--n-\n\
         LV Pool name           pool\nLV Status              available\nLV Size                336.00 MiB\nMapped size            MAPPED%\n\
         336M m\n"
    );
    let json = std::fs::read(world.path().join("lvs.json")).expect("report");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    let volumes = json["report"][0]["lv"].as_array().expect("volumes");
    let attributes: Vec<_> = volumes
        .iter()
        .map(|lv| (lv["lv_name"].as_str(), lv["lv_attr"].as_str()))
        .collect();
    for (name, attribute) in [
        ("pool", "twi-aotz--"),
        ("t1", "Vwi-a-tz--"),
        ("[pool_tdata]", "Twi-ao----"),
        ("[pool_tmeta]", "ewi-ao----"),
        ("[lvol0_pmspare]", "ewi-------"),
    ] {
        assert!(
            attributes.contains(&(Some(name), Some(attribute))),
            "{attributes:?}"
        );
    }
    world.end();
}
