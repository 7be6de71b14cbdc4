//! One seed, from empty disks over some lives to the end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thinmap_runtime::set_simulation;
use thinmap_sim::{Content, Image, Loss};

use crate::commands::Administrator;
use crate::oracle::Oracle;
use crate::swarm::Swarm;
use crate::world::{Remains, Tally, World};

/// What became of a seed.
#[derive(Default)]
pub struct Outcome {
    /// Hashes of the distinct images of power cuts that were looked at.
    pub images: Vec<u64>,
    /// Of [`run_short`]: steps after which every subset was to be looked at, and after which it was.
    pub cuts: [u64; 2],
    /// Steps.
    pub steps: u64,
    /// Lives.
    pub lives: u32,
    /// Hash of all that happened.
    pub trace: u64,
    /// A fault was planned and has struck, or the metadata was damaged.
    pub fault_run: bool,
    /// What went wrong.
    pub failure: Option<String>,
}

/// Runs a seed.
pub fn run(seed: u64) -> Outcome {
    let mut rng = SmallRng::seed_from_u64(seed);
    let swarm = Swarm::draw(&mut rng);
    live_all(swarm, rng)
}

/// Runs a short life of this seed and looks at every power cut with every subset of a few unflushed writes.
pub fn run_short(seed: u64) -> Outcome {
    let mut rng = SmallRng::seed_from_u64(seed);
    let swarm = Swarm::short(&mut rng);
    live_all(swarm, rng)
}

/// Runs this seed with the pool's data on a mirror.
pub fn run_mirrored(seed: u64) -> Outcome {
    let mut rng = SmallRng::seed_from_u64(seed);
    let swarm = Swarm::mirrored(&mut rng);
    live_all(swarm, rng)
}

fn live_all(swarm: Swarm, mut rng: SmallRng) -> Outcome {
    let mut remains = Remains {
        metadata: Image::new(swarm.metadata),
        data: Image::new(swarm.data_blocks * swarm.layout.block),
        oracle: Oracle::new(swarm.layout),
        last_request: 0,
    };
    let mut outcome = Outcome::default();
    for life in 0..swarm.lives {
        let last = life + 1 == swarm.lives;
        if last && swarm.rot {
            outcome.fault_run |= rot(&mut remains, &mut rng);
        }
        remains.oracle.may_need_check |= swarm.has_faults();
        let lived = catch_unwind(AssertUnwindSafe(|| live(&swarm, remains, last, &mut rng)));
        set_simulation(None);
        outcome.lives += 1;
        let (left, tally) = match lived {
            Ok(lived) => lived,
            Err(panic) => {
                outcome.failure = Some(format!("life {life}: {}", text_of(&*panic)));
                return outcome;
            }
        };
        outcome.take(tally, life);
        if outcome.failure.is_some() {
            return outcome;
        }
        remains = left;
    }
    outcome
}

/// What a panic says.
pub fn text_of(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic")
}

impl Outcome {
    fn take(&mut self, tally: Tally, life: u32) {
        self.images.extend(tally.images);
        self.cuts = [self.cuts[0] + tally.cuts[0], self.cuts[1] + tally.cuts[1]];
        self.steps += tally.steps;
        self.trace = self.trace.rotate_left(7) ^ tally.trace;
        self.fault_run |= tally.struck;
        self.failure = tally
            .failure
            .map(|failure| format!("life {life}: {failure}"));
    }
}

fn live(swarm: &Swarm, remains: Remains, last: bool, rng: &mut SmallRng) -> (Remains, Tally) {
    let damaged = remains.oracle.damaged;
    let world = World::new(swarm.clone(), remains, rng);
    let mut administrator = Administrator::new(world.clone());
    match administrator.start() {
        Ok(()) => go_about(&world, &mut administrator, swarm, last, rng),
        Err(error) if !swarm.has_faults() => world.fail(format!("no pool: {error}")),
        Err(_) => {}
    }
    let losses: [Loss; 2] = std::array::from_fn(|_| Loss::ALL[rng.random_range(0..4)]);
    let in_good_order = last && rng.random() && !damaged;
    if !world.failed() {
        if in_good_order {
            end_in_good_order(&world, &mut administrator, swarm);
        } else {
            world.cut_power(losses);
            let left = administrator.stop_by_force();
            if left > 0 && !world.failed() {
                world.fail(format!(
                    "{left} devices cannot be removed without their disks"
                ));
            }
        }
    }
    drop(administrator);
    world.end()
}

fn go_about(
    world: &Arc<World>,
    administrator: &mut Administrator,
    swarm: &Swarm,
    last: bool,
    rng: &mut SmallRng,
) {
    let mut commands = swarm.commands;
    // Some lives end in the middle.
    let cut_one_in = if last {
        0
    } else {
        [0, 100, 400, 1500][rng.random_range(0..4)]
    };
    while !world.failed() {
        if cut_one_in > 0 && rng.random_range(0..cut_one_in) == 0 {
            return;
        }
        if commands > 0
            && (world.clients_are_done() || rng.random_range(0..swarm.command_one_in) == 0)
        {
            commands -= 1;
            administrator.act();
            continue;
        }
        if commands == 0 && world.clients_are_done() {
            return;
        }
        if !world.step(None) {
            if world.in_flight() == 0 {
                return;
            }
            administrator.resume_all();
            if !world.step(None) && world.in_flight() > 0 {
                return world.fail("requests never end");
            }
        }
    }
}

fn end_in_good_order(world: &Arc<World>, administrator: &mut Administrator, swarm: &Swarm) {
    world.stop_clients();
    administrator.resume_all();
    while world.in_flight() > 0 && !world.failed() {
        if !world.step(None) {
            return world.fail("requests never end");
        }
    }
    if !administrator.stop() {
        return world.fail("not every device could be removed");
    }
    if !swarm.has_faults() {
        world.with_oracle(Oracle::all_flushed);
    }
    world.ended_well();
}

/// Damages some of the metadata; whether there was any.
fn rot(remains: &mut Remains, rng: &mut SmallRng) -> bool {
    let image = &mut remains.metadata;
    let is_used = |sector: &u64| !matches!(image.get(*sector), Content::Word(0));
    let used: Vec<u64> = (0..image.sectors()).filter(is_used).collect();
    if used.is_empty() {
        return false;
    }
    for _ in 0..rng.random_range(1..4) {
        let sector = used[rng.random_range(0..used.len())];
        let mut bytes = [0; thinmap_sim::SECTOR];
        image.get(sector).fill(&mut bytes);
        match rng.random_range(0..3) {
            0 => bytes[rng.random_range(0..bytes.len())] ^= 1 << rng.random_range(0..8),
            1 => bytes.fill(0),
            _ => rng.fill(&mut bytes[..]),
        }
        image.set(sector, Content::new(&bytes));
    }
    remains.oracle.damaged = true;
    true
}
