//! Runs seeds and counts: `thinmap-simulator 0..1000`. Ends in a line "N passed, N failed".
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use thinmap_simulator::{Kind, run, run_alone, run_mirrored, run_short, set_log};

/// Simulates the daemon, one seed a run.
#[derive(Parser)]
struct Args {
    /// Seeds: one, or `first..end`.
    seeds: String,
    /// Stop at the first seed that fails.
    #[arg(long)]
    first: bool,
    /// Print every request and command.
    #[arg(long)]
    log: bool,
    /// Short lives, every cut with every subset of a few unflushed writes.
    #[arg(long)]
    short: bool,
    /// The pool's data lie on a mirror, of which a leg may fail.
    #[arg(long, conflicts_with = "short")]
    mirror: bool,
    /// No pool: one target by itself.
    #[arg(long, conflicts_with_all = ["short", "mirror"])]
    target: Option<Kind>,
    /// Print a line of figures every so many seconds.
    #[arg(long, default_value_t = 10)]
    every: u64,
}

#[derive(Default)]
struct Figures {
    seeds: u64,
    failed: u64,
    steps: u64,
    lives: u64,
    looks: u64,
    fault_runs: u64,
    /// Hashes of the cut images seen: the same one in two runs counts once.
    images: HashSet<u64>,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    set_log(args.log);
    let seeds = match args.seeds.split_once("..") {
        Some((first, end)) => first.parse::<u64>()?..end.parse()?,
        None => {
            let seed = args.seeds.parse()?;
            seed..seed + 1
        }
    };
    if seeds.clone().count() > 1 {
        // Told of once, beside the seed. For where it came from run that seed alone.
        std::panic::set_hook(Box::new(|_| {}));
    }
    let mut figures = Figures::default();
    let begin = Instant::now();
    let mut last = begin;
    for seed in seeds.clone() {
        let outcome = if let Some(kind) = args.target {
            run_alone(kind, seed)
        } else if args.short {
            run_short(seed)
        } else if args.mirror {
            run_mirrored(seed)
        } else {
            run(seed)
        };
        figures.seeds += 1;
        figures.steps += outcome.steps;
        figures.lives += u64::from(outcome.lives);
        figures.looks += outcome.images.len() as u64;
        figures.fault_runs += u64::from(outcome.fault_run);
        figures.images.extend(outcome.images);
        if let Some(failure) = outcome.failure {
            figures.failed += 1;
            println!("seed {seed} FAILED: {failure}");
            if args.first {
                break;
            }
        }
        if last.elapsed() >= Duration::from_secs(args.every) {
            last = Instant::now();
            figures.print(seed + 1, begin.elapsed());
        }
    }
    figures.print(seeds.start + figures.seeds, begin.elapsed());
    println!(
        "{} passed, {} failed",
        figures.seeds - figures.failed,
        figures.failed
    );
    Ok(ExitCode::from(u8::from(figures.failed > 0)))
}

impl Figures {
    fn print(&self, next: u64, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64().max(0.001);
        let a_second = |n: u64| n as f64 / seconds;
        println!(
            "before seed {next}: {} seeds ({:.0}/s), {} lives, {} steps ({:.0}/s), {} crash points ({:.0}/s; {} looks), {} fault runs, {} failed, {:.0} s",
            self.seeds,
            a_second(self.seeds),
            self.lives,
            self.steps,
            a_second(self.steps),
            self.images.len(),
            a_second(self.images.len() as u64),
            self.looks,
            self.fault_runs,
            self.failed,
            seconds,
        );
    }
}
