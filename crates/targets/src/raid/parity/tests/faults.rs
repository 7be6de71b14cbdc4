//! Members that fail at every request in turn.

use super::*;

/// The requests of one member, or two, fail from the n-th on or once: what the guest was told holds.
#[test]
fn faults_at_every_request_lose_nothing_that_was_promised() {
    let kinds = [
        Kind {
            level: 5,
            layout: 2,
            members: 4,
            chunk: 16,
            cache: 256,
        },
        Kind {
            level: 6,
            layout: 8,
            members: 5,
            chunk: 16,
            cache: 256,
        },
        Kind {
            level: 6,
            layout: 18,
            members: 6,
            chunk: 256,
            cache: 1,
        },
    ];
    for kind in kinds {
        for (bad, for_good) in [(1, false), (1, true), (2, false), (2, true)] {
            for n in 0.. {
                if !faulty_life(kind, bad, for_good, n) {
                    break;
                }
            }
        }
    }
}

/// Whether a fault struck.
fn faulty_life(kind: Kind, bad: usize, for_good: bool, n: i64) -> bool {
    let what = format!("{kind:?}: {bad} members, for good {for_good}, request {n}");
    let mut rng = SmallRng::seed_from_u64(n as u64);
    let mut twin = Twin::synced(kind, &mut rng);
    let first = rng.random_range(0..kind.members);
    let faulty = [first, (first + 1) % kind.members];
    for member in &faulty[..bad] {
        let disk = &twin.lab.disks[*member];
        disk.for_good.store(for_good, SeqCst);
        disk.fail_in.store(n, SeqCst);
    }
    // `None` where a write was refused.
    let mut sure = vec![true; twin.lab.size as usize];
    for _ in 0..14 {
        let place = twin.somewhere(&mut rng);
        let range = place.start as usize * 512..place.end as usize * 512;
        rng.fill(&mut twin.bytes[range.clone()]);
        let status = twin.lab.write(place.start, &twin.bytes[range]);
        let told = &mut sure[place.start as usize..place.end as usize];
        told.fill(status.is_ok());
        assert!(status.is_ok() || bad > twin.lab.parities, "{what}");
        let place = twin.somewhere(&mut rng);
        let found = twin.lab.read(place.clone());
        assert!(found.is_ok() || bad > twin.lab.parities, "{what}");
        for (sector, found) in place.zip(found.iter().flat_map(|bytes| bytes.chunks(512))) {
            let expected = &twin.bytes[sector as usize * 512..][..512];
            assert!(
                !sure[sector as usize] || found == expected,
                "{what} sector {sector}"
            );
        }
    }
    let struck = faulty[..bad]
        .iter()
        .any(|m| twin.lab.disks[*m].has_failed.load(SeqCst));
    if bad <= twin.lab.parities {
        for member in 0..kind.members {
            if twin.lab.members.state(member) == MemberState::Failed {
                twin.lab.replace(member, &mut rng);
            }
            twin.lab.disks[member].fail_in.store(-1, SeqCst);
        }
        twin.lab.recover(&mut rng);
        twin.check_all();
        assert_eq!(twin.lab.whole(SyncKind::Check), 0, "{what}");
    }
    struck
}
