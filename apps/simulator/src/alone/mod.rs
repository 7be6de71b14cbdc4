//! One target by itself on simulated disks, over some lives with faults and power cuts between them.

mod bench;
mod caches;
mod clients;
mod desk;
mod keeper;
mod plan;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thinmap_runtime::set_simulation;
use thinmap_sim::{Loss, Medium, mix};

use self::bench::{Bench, End, Remains};
use self::desk::Desk;
pub use self::plan::Kind;
use self::plan::{MAIN, Plan, SNAP};
use crate::oracle::{Oracle, Presence};
use crate::run::{Outcome, text_of};

/// Runs a seed.
pub fn run_alone(kind: Kind, seed: u64) -> Outcome {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut plan = Plan::draw(kind, &mut rng);
    plan.draw_deaths(seed);
    let mut oracle = Oracle::new(plan.layout);
    let on_origin = plan.layout.origin > 0;
    oracle.creating(MAIN, None, plan.blocks, on_origin);
    oracle.created(MAIN, Presence::Yes);
    if matches!(kind, Kind::Snapshot | Kind::Merge) {
        oracle.creating(SNAP, Some(MAIN), plan.blocks, on_origin);
        oracle.created(SNAP, Presence::Yes);
    }
    let mut remains = Remains {
        media: plan.images().into_iter().map(Medium::from).collect(),
        oracle,
        last_request: 0,
        seen: BTreeMap::new(),
        touched: BTreeMap::new(),
        kept: None,
    };
    let mut outcome = Outcome::default();
    let mut past = Past::default();
    for life in 0..plan.faults.len() {
        let lived = catch_unwind(AssertUnwindSafe(|| {
            live(&plan, life, remains, &mut past, &mut rng)
        }));
        set_simulation(None);
        outcome.lives += 1;
        let lived = match lived {
            Ok(lived) => lived,
            Err(panic) => {
                outcome.failure = Some(format!("life {life}: {}; {plan:?}", text_of(&*panic)));
                return outcome;
            }
        };
        let (left, (steps, trace), failure) = lived;
        outcome.steps += steps;
        outcome.trace = outcome.trace.rotate_left(7) ^ trace;
        outcome.fault_run |= past.struck;
        if let Some(failure) = failure {
            outcome.failure = Some(format!("life {life}: {failure}; {plan:?}"));
            return outcome;
        }
        let media = left.media.iter();
        let hash = media.fold(0, |all, medium| mix(all ^ medium.hash()));
        outcome.images.push(hash);
        remains = left;
    }
    outcome
}

/// What earlier lives leave beside the disks.
#[derive(Default)]
struct Past {
    struck: bool,
    /// A member may be missing, or lack something.
    degraded: bool,
    is_merging: bool,
}

type Lived = (Remains, (u64, u64), Option<String>);

fn live(plan: &Plan, life: usize, remains: Remains, past: &mut Past, rng: &mut SmallRng) -> Lived {
    let last = life + 1 == plan.faults.len();
    let mut remains = remains;
    plan.clear_needs_check(&mut remains.media);
    let bench = Bench::new(plan.clone(), life, remains, rng);
    let mut desk = Desk::new(bench.clone(), past.is_merging);
    let good_order = match desk.start() {
        Ok(()) => go_about(&bench, &mut desk, past, last, rng),
        Err(error) => {
            let excused = plan.faults[life].is_some() && !plan.is_redundant;
            if !excused {
                bench.fail(format!("no device: {error}"));
            }
            false
        }
    };
    past.struck |= bench.struck();
    past.degraded |= bench.struck();
    let must_be_orderly = plan.has_write_hole && past.degraded;
    let mut end = End::default();
    if !bench.failed() {
        if good_order || must_be_orderly {
            end_in_good_order(&bench, &mut desk, last && plan.faults[life].is_none());
            past.is_merging = desk.is_merging;
            end = bench.cut(&|_| Loss::DropAll);
        } else {
            past.is_merging = desk.is_merging;
            end = match plan.deaths[life] {
                true => bench.die(desk.keeper()),
                false => bench.cut(&|rng| Loss::ALL[rng.random_range(0..4)]),
            };
            let left = desk.stop_by_force();
            if left > 0 {
                bench.fail(format!(
                    "{left} devices cannot be removed without their disks"
                ));
            }
        }
        bench.with_oracle(|oracle| match end.died {
            true => oracle.died(plan.keeper && !bench.struck()),
            false => oracle.restarted(&[MAIN, SNAP]),
        });
    }
    drop(desk);
    bench.end(end)
}

/// Whether the life is to end in good order.
fn go_about(
    bench: &Arc<Bench>,
    desk: &mut Desk,
    past: &mut Past,
    last: bool,
    rng: &mut SmallRng,
) -> bool {
    if bench.life > 0 {
        bench.read_all();
        bench.read_all();
        if past.degraded || bench.plan.has_write_hole && bench.plan.faults[bench.life].is_some() {
            desk.settle(false);
            past.degraded = bench.struck();
        }
    }
    if bench.plan.has_write_hole {
        bench.arm();
    }
    bench.go_on();
    let plan = &bench.plan;
    let cut_one_in = if last {
        0
    } else {
        [0, 50, 200, 1000][rng.random_range(0..4)]
    };
    let merges = plan.kind == Kind::Merge && bench.life >= plan.merge_in && !desk.is_merging;
    let mut merge_in = if merges { rng.random_range(1..300) } else { 0 };
    let mut commands = 12;
    while !bench.failed() {
        if cut_one_in > 0 && rng.random_range(0..cut_one_in) == 0 {
            return false;
        }
        if merge_in > 0 {
            merge_in -= 1;
            if merge_in == 0 {
                desk.merge();
            }
        }
        if commands > 0 && rng.random_range(0..plan.command_one_in) == 0 {
            commands -= 1;
            desk.act();
            continue;
        }
        if bench.clients_are_done() {
            break;
        }
        if !bench.step(None) {
            if bench.in_flight() == 0 {
                break;
            }
            if !desk.resume_all() && bench.struck() && !plan.is_redundant {
                return false;
            }
            if !bench.step(None) && bench.in_flight() > 0 {
                bench.fail("requests never end");
            }
        }
    }
    if !desk.resume_all() && !bench.failed() {
        if !bench.struck() || plan.is_redundant {
            bench.fail("it cannot be resumed");
        }
        return false;
    }
    last || rng.random()
}

fn end_in_good_order(bench: &Arc<Bench>, desk: &mut Desk, check: bool) {
    bench.stop_clients();
    // What would have been cut off may be suspended, and its requests wait.
    desk.resume_all();
    bench.drain();
    bench.quiet();
    if check && !bench.failed() {
        desk.settle(true);
        bench.read_all();
        if desk.leave() {
            bench.read_all();
        }
    }
    if bench.failed() {
        return;
    }
    if !desk.stop() {
        bench.fail("not every device could be removed");
    }
}
