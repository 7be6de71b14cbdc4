//! One fact each.

use super::*;

/// What Linux 6.1 left on five members: see `tests/conformance/cases/raid_parity.sh`, which wrote the same there.
#[test]
fn members_hold_what_the_kernels_do() {
    use sha2::{Digest, Sha256};
    for line in include_str!("kernel_members.txt").lines() {
        let mut words = line.split(' ');
        let mut number = || {
            words
                .next()
                .and_then(|word| word.parse().ok())
                .expect("a number")
        };
        let kind = Kind {
            level: number(),
            layout: number(),
            members: 5,
            chunk: 16,
            cache: 256,
        };
        let lab = Lab::over(kind, 64, |disk| disk);
        let lines = (1..=lab.size * 16).map(|nr| format!("seed red line {nr:020}\n"));
        let mut bytes: Vec<u8> = lines.flat_map(String::into_bytes).collect();
        bytes.truncate(lab.size as usize * 512);
        assert!(lab.write(0, &bytes).is_ok());
        for (disk, expected) in lab.disks.iter().zip(words) {
            let found = Sha256::digest(&disk.bytes.lock()[OFFSET as usize * 512..]);
            let found: String = found.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, expected, "{kind:?}");
        }
    }
}

#[test]
fn whole_rows_are_written_without_a_read() {
    for kind in kinds(7) {
        let mut rng = SmallRng::seed_from_u64(7);
        let kind = Kind { cache: 256, ..kind };
        let twin = Twin::synced(kind, &mut rng);
        let reads = |lab: &Lab| -> i64 { lab.disks.iter().map(|d| d.reads.load(SeqCst)).sum() };
        let before = reads(&twin.lab);
        assert!(
            twin.lab
                .write(0, &vec![1; twin.lab.size as usize * 512])
                .is_ok()
        );
        assert_eq!(reads(&twin.lab), before, "{kind:?}");
        assert_eq!(twin.lab.whole(SyncKind::Check), 0);
    }
}

#[test]
fn small_writes_touch_what_they_change_and_the_parity() {
    let kind = Kind {
        level: 6,
        layout: 2,
        members: 8,
        chunk: 64,
        cache: 256,
    };
    let twin = Twin::synced(kind, &mut SmallRng::seed_from_u64(8));
    for disk in &twin.lab.disks {
        disk.writes.lock().clear();
        disk.reads.store(0, SeqCst);
    }
    assert!(twin.lab.write(8, &[7; 4096]).is_ok());
    let touched = |f: &dyn Fn(&Disk) -> bool| twin.lab.disks.iter().filter(|d| f(d)).count();
    assert_eq!(
        touched(&|disk| disk.writes.lock().iter().eq([&(OFFSET + 8..OFFSET + 16)])),
        3
    );
    assert_eq!(touched(&|disk| disk.writes.lock().is_empty()), 5);
    assert_eq!(touched(&|disk| disk.reads.load(SeqCst) == 1), 3);
}

#[test]
fn a_check_counts_in_units_and_a_repair_ends_it() {
    for kind in kinds(9) {
        let mut rng = SmallRng::seed_from_u64(9);
        let twin = Twin::synced(kind, &mut rng);
        // Two sectors of one unit on one member, one of another unit on another: parity or data, it does not fit.
        for (member, sector) in [(0, 1), (0, 6), (1, 8 * (twin.lab.len() / 8 - 1))] {
            let at = (OFFSET + sector) as usize * 512;
            twin.lab.disks[member].bytes.lock()[at] ^= 1;
        }
        assert_eq!(twin.lab.whole(SyncKind::Check), 16, "{kind:?}");
        assert_eq!(twin.lab.whole(SyncKind::Repair), 16);
        assert_eq!(twin.lab.whole(SyncKind::Check), 0);
    }
}

#[test]
fn a_sector_that_cannot_be_read_is_written_anew() {
    for kind in kinds(10) {
        let mut rng = SmallRng::seed_from_u64(10);
        let twin = Twin::synced(kind, &mut rng);
        // By a reader, in every member though in no unit twice: each of them is found.
        let last_unit = twin.lab.len() / 8 - 1;
        for (member, disk) in twin.lab.disks.iter().enumerate() {
            disk.bad
                .lock()
                .push(OFFSET + 8 * (member as u64).min(last_unit) + 3);
        }
        let units = last_unit + 1 >= kind.members as u64;
        if units {
            twin.check_all();
            assert_eq!(twin.lab.lost(), 0, "{kind:?}");
            // Parity is nobody's to read: a check finds it.
            assert_eq!(twin.lab.whole(SyncKind::Check), 0);
            assert!(twin.lab.disks.iter().all(|disk| disk.bad.lock().is_empty()));
            twin.check_all();
        }
    }
}

#[test]
fn more_than_the_parity_can_mend_fails_and_nothing_else() {
    for kind in kinds(11) {
        let mut rng = SmallRng::seed_from_u64(11);
        let mut twin = Twin::synced(kind, &mut rng);
        for member in 0..=twin.lab.parities {
            twin.lab.members.fail(member);
        }
        let chunk = kind.chunk as usize * 512;
        let mut lost = 0;
        for (nr, expected) in twin.bytes.chunks(chunk).enumerate() {
            let begin = nr as u64 * kind.chunk;
            match twin.lab.read(begin..begin + kind.chunk) {
                Ok(found) => assert!(found == expected, "{kind:?}"),
                Err(_) => lost += 1,
            }
            assert_eq!(twin.lab.write(begin, &[5; 512]), BlkStatus::IoErr);
        }
        assert!(lost > 0 && lost < twin.bytes.len() / chunk);
        twin.bytes.clear();
    }
}

#[test]
fn bad_sectors_of_two_members_lose_only_what_they_share() {
    for kind in kinds(12).filter(|kind| kind.chunk >= 64 && kind.level == 5) {
        let mut rng = SmallRng::seed_from_u64(12);
        let twin = Twin::synced(kind, &mut rng);
        // In one stripe: two members in different units, and two in the same.
        for (member, sector) in [(0, 1), (1, 9), (0, 17), (1, 22)] {
            twin.lab.disks[member].bad.lock().push(OFFSET + sector);
        }
        let units = twin.lab.size / 8;
        let failed = (0..units).filter(|unit| match twin.lab.read(unit * 8..unit * 8 + 8) {
            Ok(found) => {
                let expected = &twin.bytes[*unit as usize * 4096..][..4096];
                assert!(found == expected, "{kind:?} unit {unit}");
                false
            }
            Err(_) => true,
        });
        // One of the two may be parity.
        assert!((1..=2).contains(&failed.count()), "{kind:?}");
        // The rest of a long read is not lost with them, but the read is.
        assert_eq!(twin.lab.lost(), 0);
    }
}

#[test]
fn a_member_stays_in_use_when_nothing_can_replace_what_it_holds() {
    for kind in kinds(13).filter(|kind| kind.level == 5) {
        let mut rng = SmallRng::seed_from_u64(13);
        let mut twin = Twin::synced(kind, &mut rng);
        twin.lab.members.fail(0);
        twin.lab.disks[1].bad.lock().push(OFFSET + 3);
        let mut failed = 0;
        for sector in 0..twin.lab.size {
            match twin.lab.read(sector..sector + 1) {
                Ok(found) => assert!(found == twin.bytes[sector as usize * 512..][..512]),
                Err(_) => failed += 1,
            }
        }
        // Sector 3 of member 1 and what was on member 0 there, unless that is parity.
        assert!((1..=2).contains(&failed), "{kind:?}: {failed}");
        assert_eq!(twin.lab.members.state(1), MemberState::InSync);
        twin.bytes.clear();
    }
}

#[test]
fn many_bad_sectors_do_not_cost_the_member() {
    let kind = Kind {
        level: 5,
        layout: 2,
        members: 3,
        chunk: 128,
        cache: 256,
    };
    let twin = Twin::synced(kind, &mut SmallRng::seed_from_u64(14));
    let bad = (0..90).map(|unit| OFFSET + unit * 8 + 5);
    twin.lab.disks[2].bad.lock().extend(bad);
    assert_eq!(twin.lab.whole(SyncKind::Check), 0);
    assert!(twin.lab.disks[2].bad.lock().is_empty());
    for unit in 0..90 {
        twin.lab.disks[2].bad.lock().push(OFFSET + unit * 8 + 5);
        twin.check_all();
        twin.lab.whole(SyncKind::Check);
    }
    assert_eq!(twin.lab.lost(), 0);
}
