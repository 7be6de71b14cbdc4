//! That the simulator sees what it is there to see: a commit whose superblock is durable before the data it points to.
//!
//! `cargo test -p thinmap-simulator --features canary --test canary`

#![cfg(feature = "canary")]

#[test]
fn a_broken_order_of_commits_is_caught_within_a_thousand_seeds() {
    let caught = (0..1000).find_map(|seed| Some((seed, thinmap_simulator::run(seed).failure?)));
    let (seed, failure) = caught.expect("the canary lives");
    println!("caught at seed {seed}: {failure}");
    assert!(
        failure.contains("power cut") || failure.contains("end of a life"),
        "{failure}"
    );
}
