//! multipath-tools through the shim: multipathd looks after the paths of a device of ours, multipath shows them, kpartx maps partitions.
//!
//! There is no SCSI here: two linear devices on one file are the paths. What udev would know of them (a serial number) is written into a
//! database of the test's own, in a mount namespace of its own.

use std::path::Path;

use thinmap_tests::world::World;

use crate::support::turn;

const NEEDS: &[&str] = &["/usr/sbin/multipathd", "/usr/sbin/kpartx"];
const SECTORS: u64 = 131_072;
const WWID: &str = "3600thinmap0001";

/// Two paths, and a device over them under its WWID, as multipathd names it.
fn make(world: &World) {
    world.sh(&format!(
        "truncate -s {bytes} disk
         for nr in 1 2; do dmsetup create p$nr --table \"0 {SECTORS} linear $PWD/disk 0\"; done
         numbers() {{ dmsetup info -c --noheadings -o major,minor --separator : $1; }}
         dmsetup create {WWID} -u mpath-{WWID} --table \"0 {SECTORS} multipath 1 queue_if_no_path 0 2 1 \\
             round-robin 0 1 1 $(numbers p1) 1 service-time 0 1 2 $(numbers p2) 1 1\"",
        bytes = SECTORS * 512
    ));
}

#[test]
fn multipathd_fails_a_broken_path_and_brings_it_back() {
    let Some((world, _turn)) = turn("multipathd_fails_a_broken_path_and_brings_it_back", NEEDS)
    else {
        return;
    };
    if !Path::new("/etc/multipath").exists() {
        println!("SKIP multipathd: needs /etc/multipath");
        return;
    }
    make(&world);
    let script = r#"
        mount -t tmpfs none /etc/multipath; mkdir /etc/multipath/conf.d
        mkdir -p /run/udev; mount -t tmpfs none /run/udev; mkdir /run/udev/data
        for name in p1 p2; do
            number=$(dmsetup info -c --noheadings -o major,minor --separator : $name)
            printf 'I:1\nE:ID_SERIAL=WWID\n' >/run/udev/data/b$number
        done
        cat >/etc/multipath/conf.d/test.conf <<END
        defaults {
            detect_checker no
            path_checker directio
            polling_interval 1
            max_polling_interval 1
            detect_prio no
            prio const
            find_multipaths no
        }
        blacklist_exceptions {
            devnode "^loop"
            property ".*"
        }
END
        # until WORDS COMMAND...: the command's output has the words some time.
        until_says() {
            words=$1; shift
            for try in $(seq 600); do "$@" >said 2>&1 || true; grep -qE "$words" said && return 0; sleep 0.1; done
            cat said multipathd.log; return 1
        }
        show() { thinmap run -- multipathd show "$@"; }
        swap() {
            dmsetup load $1 --table "$2"; dmsetup suspend --nolockfs $1; dmsetup resume $1
        }
        thinmap run -- multipath -ll >topology 2>log
        grep -q 'WWID dm-\|^WWID' topology
        [ $(grep -c 'active ready running' topology) = 2 ]
        thinmap run -- multipathd -d -s -v2 >multipathd.log 2>&1 & daemon=$!
        trap 'kill $daemon; wait $daemon || true' EXIT
        until_says 'p.*ready|loop.*ready' show paths
        until_says ':[0-9]+ A [0-9]+ .*:[0-9]+ A [0-9]+ ' dmsetup status WWID
        swap p1 '0 SECTORS error'
        until_says ':[0-9]+ F [0-9]+ ' dmsetup status WWID
        until_says 'failed +faulty' show topology
        head -c 1M /dev/urandom >data; dd if=data of=/dev/mapper/WWID bs=64k oflag=direct status=none
        cmp -n 1M disk data
        swap p1 "0 SECTORS linear $PWD/disk 0"
        until_says ':[0-9]+ A [0-9]+ .*:[0-9]+ A [0-9]+ ' dmsetup status WWID
        until_says 'active ready' show topology
        kill $daemon; wait $daemon || true; trap - EXIT
        dmsetup status WWID
    "#;
    let script = script
        .replace("WWID", WWID)
        .replace("SECTORS", &SECTORS.to_string());
    std::fs::write(world.path().join("inside"), script).expect("script");
    world.sh("unshare -m bash -euo pipefail ./inside");
    world.sh(&format!(
        "dmsetup remove {WWID}; dmsetup remove p1; dmsetup remove p2"
    ));
    world.end();
}

#[test]
fn kpartx_maps_the_partitions_of_a_multipath_device() {
    let Some((world, _turn)) = turn("kpartx_maps_the_partitions_of_a_multipath_device", NEEDS)
    else {
        return;
    };
    make(&world);
    // Two entries of a partition table: the first sector and the length of each.
    world.sh(r#"
        printf '\x00\x02\x00\x00\x83\x02\x00\x00\x00\x08\x00\x00\x00\x80\x00\x00' | dd of=disk bs=1 seek=446 conv=notrunc status=none
        printf '\x00\x02\x00\x00\x83\x02\x00\x00\x00\x88\x00\x00\x00\x40\x00\x00' | dd of=disk bs=1 seek=462 conv=notrunc status=none
        printf '\x55\xaa' | dd of=disk bs=1 seek=510 conv=notrunc status=none
        echo here | dd of=disk bs=512 seek=34816 conv=notrunc status=none"#);
    let said = world.sh(&format!(
        "thinmap run -- kpartx -a /dev/mapper/{WWID} >&2
         dmsetup table {WWID}p1 | cut -d' ' -f1-3,5; dmsetup table {WWID}p2 | cut -d' ' -f1-3,5
         dmsetup info -c --noheadings -o uuid {WWID}p2
         head -c 4 /dev/mapper/{WWID}p2; echo
         thinmap run -- kpartx -d /dev/mapper/{WWID} >&2
         dmsetup ls | wc -l
         dmsetup remove {WWID}; dmsetup remove p1; dmsetup remove p2"
    ));
    let wanted =
        format!("0 32768 linear 2048\n0 16384 linear 34816\npart2-mpath-{WWID}\nhere\n3\n");
    assert_eq!(said, wanted);
    world.end();
}
