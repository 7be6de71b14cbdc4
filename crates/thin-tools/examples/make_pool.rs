//! Makes the metadata of a pool for tests and measurements.
//!
//!     make_pool FILE mappings COUNT [VOLUMES]
//!     make_pool FILE snapshots COUNT [MAPPINGS]
//!     make_pool FILE random SEED
#![forbid(unsafe_code)]

#[path = "../tests/support/pools.rs"]
mod pools;

use std::path::Path;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| {
        words
            .get(at)
            .map_or(default, |word| word.parse().expect("a number"))
    };
    let (Some(file), Some(kind)) = (words.first(), words.get(1)) else {
        eprintln!("usage: make_pool FILE mappings|snapshots|random NUMBER [NUMBER]");
        std::process::exit(1);
    };
    let path = Path::new(file);
    let made = match kind.as_str() {
        "mappings" => pools::many_mappings(path, number(2, 10_000_000), number(3, 10)),
        "snapshots" => pools::many_snapshots(path, number(3, 1_000_000), number(2, 10_000)),
        "random" => pools::random(path, number(2, 0)),
        other => {
            eprintln!("make_pool: {other}: mappings, snapshots or random");
            std::process::exit(1);
        }
    };
    if let Err(error) = made {
        eprintln!("make_pool: {error}");
        std::process::exit(1);
    }
}
