//! Exchange of write caches: left full by the kernel, read and written back by thinmap, and the reverse; every byte right, and as many
//! blocks in use where one side ends and the other begins.

use crate::{Arm, images_for, kernel, run_step, thinmap};

#[test]
fn writecache_from_the_kernel_to_thinmap_and_back() {
    exchange(
        "writecache_from_the_kernel_to_thinmap_and_back",
        "4096",
        kernel,
        thinmap,
    );
}

#[test]
fn writecache_from_thinmap_to_the_kernel_and_back() {
    exchange(
        "writecache_from_thinmap_to_the_kernel_and_back",
        "4096",
        thinmap,
        kernel,
    );
}

#[test]
fn writecache_with_small_blocks_from_the_kernel_to_thinmap_and_back() {
    exchange(
        "writecache_with_small_blocks_from_the_kernel_to_thinmap_and_back",
        "512",
        kernel,
        thinmap,
    );
}

/// `first` begins; each side in turn writes over what the other has left; `second` writes back, `first` finds everything on the origin.
fn exchange(test: &str, block: &str, first: Arm, second: Arm) {
    let Some(images) = images_for(test) else {
        return;
    };
    let mut before: Option<String> = None;
    let mut step = |arm: Arm, name: &str, words: &str| {
        let words = format!("BLOCK={block}; {words}; close_images");
        let output = run_step("exchange/writecache.sh", arm, images.path(), name, &words);
        let right = output.lines().filter(|line| *line == "data: right").count();
        let wrong = output.contains("WRONG") || output.contains("= ");
        assert!(right == 2 && !wrong, "{name}: {output}");
        let statuses: Vec<&str> = output
            .lines()
            .filter(|line| line.contains(" writecache 0 "))
            .collect();
        assert_eq!(statuses.len(), 2, "{name}: {output}");
        if let Some(before) = &before {
            assert_eq!(before, statuses[0], "{name}: as it was left");
        }
        let last = statuses[1].to_owned();
        before = Some(last.clone());
        last
    };
    let used = |status: &str| -> u64 {
        let field = |at: usize| status.split(' ').nth(at).and_then(|f| f.parse().ok());
        field(4).unwrap_or(0_u64) - field(5).unwrap_or(0)
    };
    let made = step(first, "made", "make_images; check; change 1; check");
    assert!(used(&made) > 100, "{made}");
    let changed = step(second, "changed", "open_images; check; change 2; check");
    assert!(used(&changed) > used(&made), "{changed}");
    step(first, "back", "open_images; check; change 3; check");
    let ended = step(second, "emptied", "open_images; check; written_back");
    assert_eq!(used(&ended), 0, "{ended}");
    step(first, "found", "open_images; check; written_back");
}
