//! raid1 and raid10 as mapped devices: copies, failures, rebuilds, syncs, what superblocks and bitmap say.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod raid_support;
mod support;

use std::sync::atomic::Ordering::SeqCst;

use raid_support::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::*;
use thinmap_block::{BlockDevice, Op};
use thinmap_dm::{MappedDevice, StatusKind, SuspendFlags, WhichTable};
use thinmap_runtime::IoBuf;
use thinmap_units::Sector;

const LEN: u64 = 4096;

/// Type and parameters, members, what the array has of a member, lost members that it survives.
const LEVELS: &[(&str, usize, u64, usize)] = &[
    ("raid1 3 0 region_size 128", 2, 1, 1),
    ("raid1 3 0 region_size 1024", 3, 1, 2),
    ("raid10 3 16 region_size 512", 4, 2, 1),
    ("raid10 5 32 raid10_format far region_size 1024", 4, 2, 1),
    ("raid10 5 32 raid10_format offset region_size 256", 4, 2, 1),
    ("raid10 5 8 raid10_copies 3 region_size 256", 3, 1, 2),
    ("raid4 3 16 region_size 256", 3, 2, 1),
    ("raid5_ls 3 16 region_size 512", 4, 3, 1),
    ("raid6_nc 3 32 region_size 512", 5, 3, 2),
];

fn write(dev: &dyn BlockDevice, sector: u64, bytes: &[u8]) {
    let mut buf = IoBuf::alloc(bytes.len());
    buf.as_mut_slice().copy_from_slice(bytes);
    let status = thinmap_block::write(dev, Sector(sector), buf).1;
    assert!(status.is_ok(), "a write at {sector}: {status:?}");
}

/// Writes at random, and to `model`.
fn write_some(dev: &dyn BlockDevice, rng: &mut SmallRng, model: &mut [u8], times: u32) {
    let sectors = model.len() as u64 / 512;
    for _ in 0..times {
        let len = rng.random_range(1..=64.min(sectors));
        let at = rng.random_range(0..=sectors - len);
        let bytes: Vec<u8> = (0..len * 512).map(|_| rng.random()).collect();
        write(dev, at, &bytes);
        model[(at * 512) as usize..((at + len) * 512) as usize].copy_from_slice(&bytes);
    }
}

fn holds(dev: &dyn BlockDevice, model: &[u8], what: &str) {
    let (bytes, status) = read_bytes(dev, 0, model.len() as u64 / 512);
    assert!(status.is_ok(), "{what}: {status:?}");
    let differs = bytes
        .chunks(512)
        .zip(model.chunks(512))
        .position(|(a, b)| a != b);
    assert_eq!(differs, None, "{what}: the first wrong sector");
}

/// For each level: the lab with a spare, the array, what it holds.
fn each_level(
    test: impl Fn(&mut RaidLab, &MappedDevice, &mut Vec<u8>, &(&str, usize, u64, usize)),
) {
    for level in LEVELS {
        let (line, members, factor, _) = *level;
        let mut lab = RaidLab::new(members, LEN);
        let numbers: Vec<usize> = (0..members).collect();
        let len = LEN * factor;
        let dev = lab.array(len, &format!("{line} {}", lab.members(&numbers)));
        let mut model = vec![0; (len * 512) as usize];
        let mut rng = SmallRng::seed_from_u64(7);
        write_some(&*dev, &mut rng, &mut model, 60);
        test(&mut lab, &dev, &mut model, level);
        dev.destroy();
    }
}

#[test]
fn what_was_written_is_read_and_all_copies_are_the_same() {
    each_level(|_, dev, model, (line, members, _, _)| {
        holds(dev, model, line);
        assert_eq!(check(dev), 0, "{line}");
        let [health, ratio, ..] = words(dev);
        assert_eq!(health, "A".repeat(*members));
        let (done, total) = ratio.split_once('/').unwrap();
        assert_eq!(done, total);
    });
}

#[test]
fn a_member_that_fails_is_not_missed_and_comes_back_by_the_bitmap() {
    each_level(|lab, dev, model, (line, members, ..)| {
        wait_idle(dev);
        lab.break_member(1, true);
        let mut rng = SmallRng::seed_from_u64(8);
        write_some(dev, &mut rng, model, 20);
        holds(dev, model, line);
        let letters = health(dev);
        assert_eq!(letters.as_bytes()[1], b'D', "{line}: {letters}");
        assert_eq!(letters.matches('A').count(), members - 1);
        // Found again by the next resume: gets only what it has missed.
        lab.break_member(1, false);
        dev.suspend(SuspendFlags::default()).unwrap();
        resume(dev).unwrap();
        wait_idle(dev);
        assert_eq!(health(dev), "A".repeat(*members), "{line}");
        assert_eq!(check(dev), 0, "{line}");
        for lost in [0, 2].into_iter().filter(|lost| lost < members) {
            if !line.starts_with("raid1 ") || *members == 2 {
                lab.break_member(lost, true);
                holds(dev, model, line);
                lab.break_member(lost, false);
                break;
            }
        }
    });
}

#[test]
fn a_member_is_replaced_by_another_table() {
    each_level(|lab, dev, model, (line, members, factor, _)| {
        wait_idle(dev);
        lab.break_member(0, true);
        let mut rng = SmallRng::seed_from_u64(9);
        write_some(dev, &mut rng, model, 10);
        let spare = lab.add(LEN);
        let mut numbers: Vec<usize> = (0..*members).collect();
        numbers[0] = spare;
        let (name, rest) = line.split_once(' ').unwrap();
        let (count, rest) = rest.split_once(' ').unwrap();
        let count: u32 = count.parse().unwrap();
        let table = format!(
            "0 {} raid {name} {} {rest} rebuild 0 {}",
            LEN * factor,
            count + 2,
            lab.members(&numbers)
        );
        replace(dev, &table);
        write_some(dev, &mut rng, model, 10);
        wait_idle(dev);
        assert_eq!(health(dev), "A".repeat(*members), "{line}");
        holds(dev, model, line);
        assert_eq!(check(dev), 0, "{line}");
        // The new one alone of its copies holds all that it should.
        lab.break_member(1, true);
        holds(dev, model, line);
        lab.break_member(1, false);
    });
}

#[test]
fn failures_are_in_the_superblocks_before_a_write_is_answered() {
    let lab = RaidLab::new(2, LEN);
    let dev = lab.array(LEN, &format!("raid1 1 0 {}", lab.members(&[0, 1])));
    wait_idle(&dev);
    let failed = || {
        let (block, status) = read_bytes(&*lab.metas[0].below, 0, 1);
        assert!(status.is_ok());
        u64::from_le_bytes(block[24..32].try_into().unwrap())
    };
    assert_eq!(failed(), 0);
    let events = dev.event().number();
    lab.data[1].broken.store(true, SeqCst);
    assert!(write_fill(&*dev, 10, 4, 1).is_ok());
    assert_eq!(failed(), 2);
    wait(&dev, |_| dev.event().number() > events);
    // Loaded anew it is the failed one still, and gets what it lacks.
    dev.destroy();
    lab.data[1].broken.store(false, SeqCst);
    let again = lab.world.live(
        "s",
        &format!("0 {LEN} raid raid1 1 0 {}", lab.members(&[0, 1])),
    );
    wait_idle(&again);
    assert_eq!(health(&again), "AA");
    assert_eq!(failed(), 0);
    assert_eq!(content(&*lab.disks[0]), content(&*lab.disks[1]));
    again.destroy();
}

#[test]
fn the_last_copy_is_never_given_up() {
    let lab = RaidLab::new(2, LEN);
    let dev = lab.array(LEN, &format!("raid1 1 0 {}", lab.members(&[0, 1])));
    wait_idle(&dev);
    lab.data[1].broken.store(true, SeqCst);
    assert!(write_fill(&*dev, 0, 8, 1).is_ok());
    lab.data[0].broken.store(true, SeqCst);
    assert!(!write_fill(&*dev, 0, 8, 2).is_ok());
    assert!(!request(&*dev, Op::Read, 0, 8).is_ok());
    assert_eq!(health(&dev), "AD");
    lab.data[0].broken.store(false, SeqCst);
    assert!(write_fill(&*dev, 0, 8, 3).is_ok());
    assert_eq!(read_bytes(&*dev, 0, 8).0, vec![3; 4096]);
    dev.destroy();
}

#[test]
fn a_sector_that_cannot_be_read_is_read_elsewhere_and_written_anew() {
    each_level(|lab, dev, model, (line, members, ..)| {
        wait_idle(dev);
        for member in 0..*members {
            lab.data[member].bad_sector.store(100, SeqCst);
            for _ in 0..2 * members {
                holds(dev, model, line);
            }
            let cured = || lab.data[member].bad_sector.load(SeqCst) < 0;
            // A copy, or parity, that nobody has read there: a check does.
            if !cured() {
                assert_eq!(check(dev), 0, "{line}");
            }
            for _ in 0..2000 {
                if cured() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            assert!(cured(), "{line}: member {member}");
        }
        assert_eq!(health(dev), "A".repeat(*members), "{line}");
        assert_eq!(check(dev), 0, "{line}");
    });
}

#[test]
fn check_counts_and_repair_makes_equal() {
    let lab = RaidLab::new(2, LEN);
    let dev = lab.array(LEN, &format!("raid1 1 0 {}", lab.members(&[0, 1])));
    assert_eq!(check(&dev), 0);
    assert!(write_fill(&*lab.disks[1], 200, 100, 9).is_ok());
    assert_eq!(check(&dev), 256);
    message(&dev, "repair").unwrap();
    wait_idle(&dev);
    assert_eq!(words(&dev)[3], "0");
    assert_eq!(content(&*lab.disks[0]), content(&*lab.disks[1]));
    assert_eq!(check(&dev), 0);
    assert_eq!(message(&dev, "nonsense"), Err(22));
    message(&dev, "frozen").unwrap();
    assert_eq!(words(&dev)[1..3], [format!("0/{LEN}"), "frozen".to_owned()]);
    message(&dev, "idle").unwrap();
    wait_idle(&dev);
    dev.destroy();
}

#[test]
fn after_a_crash_only_dirty_regions_are_synced() {
    let lab = RaidLab::new(2, LEN);
    let line = format!("raid1 3 0 region_size 128 {}", lab.members(&[0, 1]));
    let dev = lab.array(LEN, &line);
    wait_idle(&dev);
    // Clean, and then one region is written to.
    dev.suspend(SuspendFlags::default()).unwrap();
    resume(&dev).unwrap();
    assert!(write_fill(&*dev, 1000, 8, 1).is_ok());
    // What the disks hold now is what a crash leaves; one copy differs in the dirty region, and in another.
    let mut after = RaidLab::new(2, LEN);
    for (from, to) in lab
        .metas
        .iter()
        .chain(&lab.data)
        .zip(after.metas.iter().chain(&after.data))
    {
        write(&*to.below, 0, &content(&*from.below));
    }
    assert!(write_fill(&*after.disks[1], 1001, 4, 7).is_ok());
    assert!(write_fill(&*after.disks[1], 3000, 4, 7).is_ok());
    let found = after.array(LEN, &line);
    wait_idle(&found);
    assert_eq!(read_bytes(&*after.disks[1], 1000, 8).0, vec![1; 4096]);
    assert_eq!(read_bytes(&*after.disks[1], 3000, 4).0, vec![7; 2048]);
    assert_eq!(check(&found), 128);
    let _ = after.add(1);
    dev.destroy();
    found.destroy();
}

#[test]
fn an_interrupted_resync_goes_on_where_it_was() {
    let lab = RaidLab::new(2, 65536);
    assert!(write_fill(&*lab.disks[0], 60_000, 64, 5).is_ok());
    // 1 MiB a second: the first window, and long nothing.
    let slow = "raid1 5 0 region_size 2048 max_recovery_rate 1024";
    let dev = lab.array(65536, &format!("{slow} {}", lab.members(&[0, 1])));
    wait(&dev, |words| words[1] != "0/65536" && words[2] == "resync");
    assert_eq!(health(&dev), "aa");
    let busy = message(&dev, "check");
    assert_eq!(busy, Err(16));
    dev.suspend(SuspendFlags::default()).unwrap();
    assert!(info(&dev).contains("frozen"));
    let (block, _) = read_bytes(&*lab.metas[0].below, 0, 1);
    let at = u64::from_le_bytes(block[40..48].try_into().unwrap());
    assert!((1..65536).contains(&at), "{at}");
    // What lies before is not looked at again.
    assert!(write_fill(&*lab.disks[1], 0, 8, 3).is_ok());
    let table = format!(
        "0 65536 raid raid1 3 0 region_size 2048 {}",
        lab.members(&[0, 1])
    );
    replace(&dev, &table);
    wait_idle(&dev);
    assert_eq!(read_bytes(&*lab.disks[1], 0, 8).0, vec![3; 4096]);
    assert_eq!(read_bytes(&*lab.disks[1], 60_000, 64).0, vec![5; 64 * 512]);
    dev.destroy();
}

#[test]
fn growth_syncs_what_is_new_and_keeps_what_is_there() {
    let lab = RaidLab::new(2, LEN);
    let line = |len: u64| {
        format!(
            "0 {len} raid raid1 3 0 region_size 128 {}",
            lab.members(&[0, 1])
        )
    };
    let dev = lab.world.live("r", &line(LEN / 2));
    wait_idle(&dev);
    assert!(write_fill(&*dev, 0, 64, 4).is_ok());
    assert!(write_fill(&*lab.disks[0], LEN - 8, 8, 6).is_ok());
    replace(&dev, &line(LEN));
    wait_idle(&dev);
    assert_eq!(read_bytes(&*dev, 0, 64).0, vec![4; 64 * 512]);
    assert_eq!(content(&*lab.disks[0]), content(&*lab.disks[1]));
    dev.destroy();
}

#[test]
fn raid1_gains_and_loses_members() {
    let lab = RaidLab::new(3, LEN);
    let dev = lab.array(LEN, &format!("raid1 1 0 {}", lab.members(&[0, 1])));
    assert!(write_fill(&*dev, 5, 60, 8).is_ok());
    wait_idle(&dev);
    let table = format!(
        "0 {LEN} raid raid1 3 0 rebuild 2 {}",
        lab.members(&[0, 1, 2])
    );
    replace(&dev, &table);
    wait_idle(&dev);
    assert_eq!(health(&dev), "AAA");
    replace(
        &dev,
        &format!("0 {LEN} raid raid1 1 0 {}", lab.members(&[2])),
    );
    wait_idle(&dev);
    assert_eq!(read_bytes(&*dev, 5, 60).0, vec![8; 60 * 512]);
    assert_eq!(table_line(&dev), "raid1 1 0 1 7:4 7:5");
    dev.destroy();
}

fn table_line(dev: &MappedDevice) -> String {
    text(dev, StatusKind::Table, WhichTable::Live)
}

#[test]
fn write_mostly_members_are_read_only_when_nothing_else_is_left() {
    let lab = RaidLab::new(2, LEN);
    let dev = lab.array(
        LEN,
        &format!("raid1 3 0 write_mostly 0 {}", lab.members(&[0, 1])),
    );
    wait_idle(&dev);
    let before = lab.data[0].reads.load(SeqCst);
    for at in 0..20 {
        assert!(request(&*dev, Op::Read, at * 64, 8).is_ok());
    }
    assert_eq!(lab.data[0].reads.load(SeqCst), before);
    lab.break_member(1, true);
    assert!(request(&*dev, Op::Read, 0, 8).is_ok());
    dev.destroy();
}

#[test]
fn raid0_deals_chunks_out() {
    let lab = RaidLab::new(3, LEN);
    let dev = lab.array(LEN * 3, "raid0 1 16 3 - d0 - d1 - d2");
    let mut model = vec![0; (LEN * 3 * 512) as usize];
    let mut rng = SmallRng::seed_from_u64(1);
    write_some(&*dev, &mut rng, &mut model, 50);
    holds(&*dev, &model, "raid0");
    assert_eq!(content(&*lab.disks[1])[..8192], model[8192..16384]);
    assert_eq!(info(&dev), format!("raid0 3 AAA {LEN}/{LEN} idle 0 0 -"));
    assert_eq!(message(&dev, "check"), Err(22));
    dev.destroy();
}
