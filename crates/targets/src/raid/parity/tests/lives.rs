//! Random lives: writes, reads, failures, rebuilds, bad sectors, in any order.

use super::*;

fn seeds() -> u64 {
    std::env::var("THINMAP_SEEDS").map_or(4, |n| n.parse().expect("THINMAP_SEEDS is a number"))
}

#[test]
fn random_lives_agree_with_a_flat_array() {
    for seed in 0..seeds() {
        for kind in kinds(seed) {
            random_life(kind, seed);
        }
    }
}

fn random_life(kind: Kind, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut twin = Twin::new(kind, &mut rng);
    twin.seed = seed;
    let mut consistent = 0;
    // Some things happen often in one life and never in another.
    let weights: Vec<u32> = (0..6).map(|_| rng.random_range(0..10)).collect();
    for _ in 0..120 {
        let members = kind.members;
        let is_synced = consistent == twin.lab.len();
        match rng.random_range(0..weights.iter().sum::<u32>() + 12) {
            0..6 => twin.write(&mut rng),
            6..12 => {
                let place = twin.somewhere(&mut rng);
                twin.check(place);
            }
            n if n < 12 + weights[0] => {
                if !is_synced {
                    let to = (consistent + 8 * rng.random_range(1..30)).min(twin.lab.len());
                    twin.lab
                        .sync(SyncKind::Resync, consistent..to)
                        .expect("in sync");
                    twin.lab.members.set_consistent_to(Sector(to));
                    consistent = to;
                }
            }
            n if n < 12 + weights[0] + weights[1] => {
                if is_synced && twin.lab.lost() + twin.lab.bad() < twin.lab.parities {
                    twin.lab.members.fail(rng.random_range(0..members));
                }
            }
            n if n < 12 + weights[0] + weights[1] + weights[2] => {
                let failed =
                    (0..members).find(|m| twin.lab.members.state(*m) == MemberState::Failed);
                if let Some(member) = failed {
                    twin.lab.replace(member, &mut rng);
                }
            }
            n if n < 12 + weights[0] + weights[1] + weights[2] + weights[3] => {
                if is_synced {
                    twin.lab.recover_some(&mut rng);
                }
            }
            n if n < 12 + weights[0] + weights[1] + weights[2] + weights[3] + weights[4] => {
                if is_synced && twin.lab.lost() + twin.lab.bad() < twin.lab.parities {
                    let member = rng.random_range(0..members);
                    let sector = OFFSET + rng.random_range(0..twin.lab.len());
                    twin.lab.disks[member].bad.lock().push(sector);
                }
            }
            _ => {
                if is_synced && twin.lab.lost() == 0 {
                    assert_eq!(twin.lab.whole(SyncKind::Check), 0, "{kind:?} seed {seed}");
                }
            }
        }
    }
    twin.check_all();
    if consistent < twin.lab.len() {
        twin.lab.whole(SyncKind::Resync);
        twin.lab.members.set_consistent_to(MAX_SECTOR);
    }
    let failed = (0..kind.members).filter(|m| twin.lab.members.state(*m) == MemberState::Failed);
    failed.for_each(|member| twin.lab.replace(member, &mut rng));
    twin.lab.recover(&mut rng);
    twin.check_all();
    assert_eq!(twin.lab.whole(SyncKind::Check), 0, "{kind:?} seed {seed}");
}
