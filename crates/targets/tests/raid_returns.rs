//! Members that come back, and what is believed of them.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod raid_support;
mod support;

use std::sync::atomic::Ordering::SeqCst;

use raid_support::*;
use support::*;
use thinmap_block::BlockDevice;
use thinmap_dm::SuspendFlags;
use thinmap_units::Sector;

const LEN: u64 = 16384;
const SLOW: &str = "min_recovery_rate 256 max_recovery_rate 256";
const FAST: &str = "min_recovery_rate 1000000 max_recovery_rate 1000000";

/// A new member fails in the middle of its rebuild and comes back, at a resume of the same table or of a later one.
fn fails_while_it_is_rebuilt(same_table: bool) {
    let mut lab = RaidLab::new(2, LEN);
    let line = format!("raid1 5 0 {FAST} {}", lab.members(&[0, 1]));
    let dev = lab.array(LEN, &line);
    wait_idle(&dev);
    for at in (0..LEN).step_by(1024) {
        assert!(write_fill(&*dev, at, 1024, 7).is_ok());
    }
    let new = lab.add(LEN);
    let members = lab.members(&[0, new]);
    replace(
        &dev,
        &format!("0 {LEN} raid raid1 7 0 {SLOW} rebuild 1 {members}"),
    );
    // One window is done at once, the next one comes in seconds.
    wait(&dev, |words| {
        words[2] == "recover" && !words[1].starts_with("0/")
    });
    lab.break_member(new, true);
    assert!(write_fill(&*dev, 8, 8, 9).is_ok());
    wait(&dev, |words| words[0] == "AD");
    lab.break_member(new, false);
    let table = format!("0 {LEN} raid raid1 5 0 {FAST} {members}");
    if same_table {
        dev.suspend(SuspendFlags::default()).unwrap();
        resume(&dev).unwrap();
        replace(&dev, &table);
        wait_idle(&dev);
    } else {
        dev.destroy();
        let dev = lab.world.live("s", &table);
        wait_idle(&dev);
        assert_eq!(health(&dev), "AA");
        dev.destroy();
    }
    assert!(
        content(&*lab.disks[0]) == content(&*lab.disks[new]),
        "what it never got is believed to be there; the same table: {same_table}"
    );
    if same_table {
        assert_eq!(health(&dev), "AA");
        dev.destroy();
    }
}

#[test]
fn one_that_failed_before_it_was_rebuilt_to_its_end_is_rebuilt_wholly() {
    fails_while_it_is_rebuilt(true);
    fails_while_it_is_rebuilt(false);
}

#[test]
fn another_members_bitmap_is_read_where_the_first_cannot_be() {
    let lab = RaidLab::new(2, LEN);
    let table = format!("0 {LEN} raid raid1 1 0 {}", lab.members(&[0, 1]));
    let dev = lab.world.live("r", &table);
    wait_idle(&dev);
    assert!(write_fill(&*dev, 0, 8, 7).is_ok());
    dev.destroy();
    // The superblock can be read, the bitmap behind it cannot.
    lab.metas[0].bad_sector.store(8, SeqCst);
    let dev = lab.world.live("s", &table);
    wait_idle(&dev);
    let (bytes, status) = read_bytes(&*dev, 0, 8);
    assert!(status.is_ok() && bytes.iter().all(|byte| *byte == 7));
    assert_eq!(dev.size(), Sector(LEN));
    dev.destroy();
}

#[test]
fn a_write_that_failed_on_the_only_whole_member_leaves_no_difference() {
    // Two windows.
    const LEN: u64 = 4096;
    let mut lab = RaidLab::new(2, LEN);
    let dev = lab.array(LEN, &format!("raid1 5 0 {FAST} {}", lab.members(&[0, 1])));
    wait_idle(&dev);
    let new = lab.add(LEN);
    let members = lab.members(&[0, new]);
    let table = format!("0 {LEN} raid raid1 7 0 {SLOW} rebuild 1 {members}");
    replace(&dev, &table);
    wait(&dev, |words| {
        words[2] == "recover" && !words[1].starts_with("0/")
    });
    // The first window has been rebuilt: the rebuild goes there no more.
    message(&dev, "frozen").unwrap();
    wait(&dev, |words| words[2] == "frozen");
    // Not just the next request: that may be a flush before the superblocks.
    lab.data[0].bad_write.store(8, SeqCst);
    assert!(!write_fill(&*dev, 8, 8, 9).is_ok());
    assert_eq!(health(&dev), "Aa");
    message(&dev, "idle").unwrap();
    let mut found = (Vec::new(), Vec::new());
    for _ in 0..100_000 {
        found = (part(&lab, 0), part(&lab, new));
        if found.0 == found.1 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert!(found.0 == found.1);
    dev.destroy();
}

fn part(lab: &RaidLab, member: usize) -> Vec<u8> {
    read_bytes(&*lab.disks[member], 8, 8).0
}
