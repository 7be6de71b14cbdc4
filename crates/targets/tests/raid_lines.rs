//! raid: every wrong argument in turn, what table and status lines say, messages.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod raid_support;
mod support;

use raid_support::*;
use support::*;
use thinmap_block::{BlockDevice, Op};
use thinmap_dm::{StatusKind, SuspendFlags, WhichTable};

/// Arguments, the begin of the error's text, errno. TWO, THREE and FOUR stand for so many members.
const WRONG: &[(&str, &str, i32)] = &[
    ("", "No arguments", 22),
    ("raid7 1 64 TWO", "Unrecognised raid_type", 22),
    ("raid1", "Cannot understand number of raid parameters", 22),
    (
        "raid1 x 0 TWO",
        "Cannot understand number of raid parameters",
        22,
    ),
    (
        "raid1 99 0 TWO",
        "Cannot understand number of raid parameters",
        22,
    ),
    (
        "raid1 1 0",
        "Cannot understand number of raid devices parameters",
        22,
    ),
    (
        "raid1 1 0 x m0 d0",
        "Cannot understand number of raid devices parameters",
        22,
    ),
    (
        "raid1 1 0 0 m0 d0",
        "Cannot understand number of raid devices parameters",
        22,
    ),
    (
        "raid1 1 0 3 m0 d0 m1 d1",
        "Cannot understand number of raid devices parameters",
        22,
    ),
    ("raid6_zr 1 64 TWO", "Insufficient number of devices", 22),
    (
        "raid5_ls 1 64 1 m0 d0",
        "Insufficient number of devices",
        22,
    ),
    (
        "raid1 1 x TWO",
        "Bad numerical argument given for chunk_size",
        22,
    ),
    ("raid0 1 100 TWO", "Chunk size must be a power of 2", 22),
    ("raid0 1 0 TWO", "Chunk size must be a power of 2", 22),
    ("raid0 1 4 TWO", "Chunk size value is too small", 22),
    (
        "raid1 3 0 sync sync TWO",
        "Only one 'sync' argument allowed",
        22,
    ),
    (
        "raid1 3 0 nosync nosync TWO",
        "Only one 'nosync' argument allowed",
        22,
    ),
    (
        "raid1 3 0 sync nosync TWO",
        "sync and nosync are mutually exclusive",
        22,
    ),
    (
        "raid1 4 0 sync rebuild 0 TWO",
        "sync/nosync and rebuild are mutually exclusive",
        22,
    ),
    (
        "raid1 3 0 rebuild x TWO",
        "Bad numerical argument given in raid params",
        22,
    ),
    ("raid1 3 0 rebuild 2 TWO", "Invalid rebuild index given", 22),
    (
        "raid1 3 0 rebuild -1 TWO",
        "Invalid rebuild index given",
        22,
    ),
    (
        "raid1 5 0 rebuild 1 rebuild 1 TWO",
        "rebuild for this index already given",
        22,
    ),
    (
        "raid10 3 64 write_mostly 0 FOUR",
        "write_mostly option is only valid for RAID1",
        22,
    ),
    (
        "raid1 3 0 write_mostly 2 TWO",
        "Invalid write_mostly index given",
        22,
    ),
    (
        "raid1 5 0 write_mostly 0 write_mostly 1 TWO",
        "Can't set all raid1 devices to write_mostly",
        22,
    ),
    (
        "raid10 3 64 max_write_behind 9 FOUR",
        "max_write_behind option is only valid for RAID1",
        22,
    ),
    (
        "raid1 3 0 max_write_behind -1 TWO",
        "Max write-behind limit out of range",
        22,
    ),
    (
        "raid1 3 0 max_write_behind 32768 TWO",
        "Max write-behind limit out of range",
        22,
    ),
    (
        "raid1 5 0 max_write_behind 1 max_write_behind 1 TWO",
        "Only one max_write_behind argument pair allowed",
        22,
    ),
    (
        "raid1 3 0 daemon_sleep -1 TWO",
        "daemon sleep period out of range",
        22,
    ),
    (
        "raid1 5 0 daemon_sleep 1 daemon_sleep 1 TWO",
        "Only one daemon_sleep argument pair allowed",
        22,
    ),
    (
        "raid0 3 64 data_offset 8 TWO",
        "Bogus data_offset value",
        22,
    ),
    (
        "raid0 3 64 data_offset 33 TWO",
        "Bogus data_offset value",
        22,
    ),
    (
        "raid1 3 0 delta_disks 0 TWO",
        "Too many delta_disk requested",
        22,
    ),
    (
        "raid1 3 0 delta_disks 252 TWO",
        "Too many delta_disk requested",
        22,
    ),
    (
        "raid1 3 0 stripe_cache 9 TWO",
        "Inappropriate argument: stripe_cache",
        22,
    ),
    (
        "raid5_ls 3 64 stripe_cache -9 THREE",
        "Bogus stripe cache entries value",
        22,
    ),
    (
        "raid1 3 0 min_recovery_rate -1 TWO",
        "min_recovery_rate out of range",
        22,
    ),
    (
        "raid1 3 0 max_recovery_rate -1 TWO",
        "max_recovery_rate out of range",
        22,
    ),
    (
        "raid1 5 0 min_recovery_rate 9 max_recovery_rate 8 TWO",
        "Bogus recovery rates",
        22,
    ),
    (
        "raid1 5 0 region_size 512 region_size 512 TWO",
        "Only one region_size argument pair allowed",
        22,
    ),
    (
        "raid1 3 0 region_size 8192 TWO",
        "Supplied region size is too large",
        22,
    ),
    (
        "raid1 3 0 region_size -8 TWO",
        "Supplied region size is too large",
        22,
    ),
    (
        "raid1 3 0 region_size 1000 TWO",
        "Region size is not a power of 2",
        22,
    ),
    (
        "raid10 3 1024 region_size 512 FOUR",
        "Region size is smaller than the chunk size",
        22,
    ),
    (
        "raid10 3 64 raid10_copies 1 FOUR",
        "Bad value for 'raid10_copies'",
        22,
    ),
    (
        "raid10 3 64 raid10_copies 5 FOUR",
        "Bad value for 'raid10_copies'",
        22,
    ),
    (
        "raid10 1 64 1 m0 d0",
        "Not enough devices to satisfy specification",
        22,
    ),
    (
        "raid1 3 0 raid10_format near TWO",
        "'raid10_format' is an invalid parameter for this RAID type",
        22,
    ),
    (
        "raid10 3 64 raid10_format nearby FOUR",
        "Invalid 'raid10_format' value given",
        22,
    ),
    (
        "raid10 2 64 raid10_use_near_sets FOUR",
        "RAID10 format 'near' and 'raid10_use_near_sets' are incompatible",
        22,
    ),
    (
        "raid1 3 0 journal_dev d3 TWO",
        "'journal_dev' is an invalid parameter for this RAID type",
        22,
    ),
    (
        "raid5_ls 3 64 journal_mode writeback THREE",
        "raid4/5/6 'journal_mode' is invalid without 'journal_dev'",
        22,
    ),
    (
        "raid5_ls 3 64 journal_dev nothing THREE",
        "raid4/5/6 journal device lookup failure",
        19,
    ),
    (
        "raid5_ls 3 64 journal_dev d3 THREE",
        "No space for raid4/5/6 journal",
        28,
    ),
    ("raid1 3 0 fast 1 TWO", "Unable to parse RAID parameter", 22),
    ("raid1 2 0 fast TWO", "Unable to parse RAID parameter", 22),
    ("raid0 2 64 sync TWO", "Invalid flags combination", 22),
    (
        "raid0 3 64 region_size 512 TWO",
        "Invalid flags combination",
        22,
    ),
    ("raid6_zr 2 64 nosync FOUR", "Invalid flags combination", 22),
    (
        "raid1 3 0 raid10_copies 2 TWO",
        "Invalid flags combination",
        22,
    ),
    (
        "raid1 1 0 2 nothing d0 m1 d1",
        "RAID metadata device lookup failure",
        19,
    ),
    (
        "raid1 1 0 2 m0 nothing m1 d1",
        "RAID device lookup failure",
        19,
    ),
    (
        "raid1 1 0 2 m0 - m1 d1",
        "No data device supplied with metadata device",
        22,
    ),
    (
        "raid1 3 0 rebuild 0 2 - - m1 d1",
        "Drive designated for rebuild not specified",
        22,
    ),
    ("raid1 1 0 2 - - - -", "Invalid rdev size", 22),
    (
        "raid5_ls 1 64 FOUR",
        "Target length not divisible by number of data devices",
        22,
    ),
];

#[test]
fn every_wrong_argument_is_told_with_the_kernels_errno() {
    let lab = RaidLab::new(4, 4096);
    let dev = lab.world.mapped("r");
    for (line, reason, errno) in WRONG {
        let line = line
            .replace("TWO", &lab.members(&[0, 1]))
            .replace("THREE", &lab.members(&[0, 1, 2]))
            .replace("FOUR", &lab.members(&[0, 1, 2, 3]));
        let error = load(&dev, &format!("0 4096 raid {line}")).expect_err(&line);
        assert_eq!(error.errno(), *errno, "{line}: {error}");
        assert!(
            error.to_string().starts_with(&format!("raid: {reason}")),
            "{line}: {error}"
        );
    }
    let error = load(
        &dev,
        &format!("0 4104 raid raid1 1 0 {}", lab.members(&[0, 1])),
    );
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("Component device(s) too small")
    );
}

#[test]
fn superblocks_that_do_not_fit_are_told() {
    let mut lab = RaidLab::new(3, 4096);
    let dev = lab.array(4096, &format!("raid1 1 0 {}", lab.members(&[0, 1])));
    wait_idle(&dev);
    dev.suspend(SuspendFlags::default()).unwrap();
    let other = lab.world.mapped("s");
    let refused = |line: String| {
        let error = load(&other, &format!("0 4096 raid {line}")).expect_err(&line);
        (error.to_string(), error.errno())
    };
    let (text, errno) = refused(format!("raid1 1 0 {}", lab.members(&[0, 2])));
    assert!(text.contains("New device injected"), "{text}");
    assert_eq!(errno, 22);
    let (text, errno) = refused(format!("raid10 1 64 {}", lab.members(&[0, 1])));
    assert!(text.contains("takeover not possible"), "{text}");
    assert_eq!(errno, 22);
    // Something else on the metadata device behind the superblock.
    assert!(write_fill(&*lab.metas[0].below, 8, 1, 7).is_ok());
    let (text, _) = refused(format!("raid1 1 0 {}", lab.members(&[0, 1])));
    assert!(text.contains("bad magic"), "{text}");
    // A feature from the future.
    let (mut block, _) = read_bytes(&*lab.metas[1].below, 0, 1);
    block[144] = 1;
    let mut buf = thinmap_runtime::IoBuf::alloc(512);
    buf.as_mut_slice().copy_from_slice(&block);
    thinmap_block::write(&*lab.metas[1].below, thinmap_units::Sector(0), buf);
    let (text, _) = refused(format!("raid1 1 0 {}", lab.members(&[0, 1])));
    assert!(
        text.contains("No incompatible feature flags supported yet"),
        "{text}"
    );
    let _ = lab.add(1);
    dev.destroy();
}

#[test]
fn tables_and_statuses_are_the_kernels() {
    let lab = RaidLab::new(4, 4096);
    let line = "raid1 11 0 region_size 1024 max_write_behind 100 rebuild 1 daemon_sleep 700 min_recovery_rate 9";
    let dev = lab.array(4096, &format!("{line} {}", lab.members(&[0, 1])));
    assert_eq!(
        table(&dev),
        "raid1 11 0 rebuild 1 daemon_sleep 700 min_recovery_rate 9 max_write_behind 50 region_size 1024 2 7:0 7:1 7:2 7:3"
    );
    wait_idle(&dev);
    assert_eq!(info(&dev), "raid1 2 AA 4096/4096 idle 0 0 -");
    let measured = text(&dev, StatusKind::Measurement, WhichTable::Live);
    assert_eq!(
        measured,
        "target_name=raid,target_version=1.15.1,raid_type=raid1,raid_disks=2,raid_state=idle,raid_device_0_status=A,raid_device_1_status=A;"
    );
    dev.suspend(SuspendFlags::default()).unwrap();
    assert_eq!(info(&dev), "raid1 2 AA 0/4096 frozen 0 0 -");
    resume(&dev).unwrap();
    dev.destroy();
    for meta in &lab.metas {
        assert!(write_fill(&**meta, 0, 16, 0).is_ok());
    }
    let near_sets = format!(
        "raid10 4 64 raid10_use_near_sets raid10_format far {}",
        lab.members(&[0, 1, 2, 3])
    );
    let dev = lab.world.live("n", &format!("0 8192 raid {near_sets}"));
    assert!(table(&dev).starts_with("raid10 4 64 raid10_use_near_sets raid10_format far 4 "));
    dev.destroy();
    let far = format!(
        "raid10 5 64 raid10_format far raid10_copies 2 {}",
        lab.members(&[0, 1, 2, 3])
    );
    for meta in &lab.metas {
        assert!(write_fill(&**meta, 0, 16, 0).is_ok());
    }
    let dev = lab.world.live("s", &format!("0 8192 raid {far}"));
    assert_eq!(
        table(&dev),
        "raid10 5 64 raid10_copies 2 raid10_format far 4 7:0 7:1 7:2 7:3 7:4 7:5 7:6 7:7"
    );
    wait_idle(&dev);
    assert_eq!(info(&dev), "raid10_far 4 AAAA 8192/8192 idle 0 0 -");
    assert!(request(&*dev, Op::Read, 0, 8).is_ok());
    assert_eq!(dev.size(), thinmap_units::Sector(8192));
    dev.destroy();
}
