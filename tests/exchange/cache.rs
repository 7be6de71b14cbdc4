//! Exchange of caches: filled by the kernel, used by thinmap, and the reverse; shut down in order and as a power cut leaves them;
//! every byte right, the same status where one side ends and the other begins, and cache_check content.

use crate::{Arm, images_for, kernel, run_step, thinmap};

#[test]
fn cache_from_the_kernel_to_thinmap_and_back() {
    for features in ["1 writeback", "2 metadata2 writeback"] {
        exchange(
            "cache_from_the_kernel_to_thinmap_and_back",
            features,
            (kernel, thinmap),
        );
    }
}

#[test]
fn cache_from_thinmap_to_the_kernel_and_back() {
    for features in ["1 writeback", "2 metadata2 writeback"] {
        exchange(
            "cache_from_thinmap_to_the_kernel_and_back",
            features,
            (thinmap, kernel),
        );
    }
}

/// Words of a status line that a clean shutdown keeps: blocks of the cache, hits and misses, dirty blocks.
fn kept(status: &str) -> Vec<&str> {
    let words: Vec<&str> = status.split(' ').collect();
    [&words[5..11], &words[13..14]].concat()
}

fn exchange(test: &str, features: &str, (first, second): (Arm, Arm)) {
    let Some(images) = images_for(test) else {
        return;
    };
    let mut before: Option<String> = None;
    let mut step = |arm: Arm, name: &str, checks: usize, words: &str| {
        let output = run_step("exchange/cache.sh", arm, images.path(), name, words);
        let right = output.lines().filter(|line| line.ends_with(": right"));
        let wrong = output.contains("WRONG") || output.lines().any(|line| line.starts_with("= "));
        assert!(right.count() == checks && !wrong, "{name}: {output}");
        let statuses: Vec<&str> = output.lines().filter(|l| l.contains(" cache ")).collect();
        // A cleaner begins at once.
        if words.starts_with("open_images")
            && let Some(before) = &before
        {
            assert_eq!(kept(before), kept(statuses[0]), "{name}: as it was left");
        }
        before = statuses.last().map(|&last| last.to_owned());
        if words.contains("crash") {
            before = None;
        }
    };
    step(
        first,
        "made",
        3,
        &format!(
            "make_images '{features}'; check; change 1; check; dmsetup status c; close_images"
        ),
    );
    step(
        second,
        "changed",
        3,
        "open_images; check; change 2; check; dmsetup status c; close_images",
    );
    step(first, "cut_off", 1, "open_images; check; change 3; crash");
    step(
        second,
        "found",
        3,
        "open_images; check; change 4; check; dmsetup status c; close_images",
    );
    step(
        first,
        "back",
        3,
        "open_images; check; change 5; check; dmsetup status c; close_images",
    );
    step(
        second,
        "cleaned",
        3,
        "attach_images; open_as '0' 'cleaner 0'; check; all_clean; open_as '0' 'cleaner 0'; close_images",
    );
    step(
        first,
        "past_it",
        3,
        "attach_images; open_as '1 passthrough' 'smq 0'; check; store 4096 777 30; check; close_images",
    );
}
