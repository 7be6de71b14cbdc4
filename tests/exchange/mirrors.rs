//! Exchange of mirrors: a log written by the kernel is believed, changed and recovered from by thinmap, and the reverse.
//!
//! `mirrors.sh` is the one body that both arms run; images travel between them.

use crate::{Arm, images_for, kernel, run_step, thinmap};

#[test]
fn mirrors_from_the_kernel_to_thinmap_and_back() {
    exchange(
        "mirrors_from_the_kernel_to_thinmap_and_back",
        kernel,
        thinmap,
    );
}

#[test]
fn mirrors_from_thinmap_to_the_kernel_and_back() {
    exchange(
        "mirrors_from_thinmap_to_the_kernel_and_back",
        thinmap,
        kernel,
    );
}

/// `first` makes legs and log, `second` uses them and leaves them as after a power cut, `first` recovers.
fn exchange(test: &str, first: Arm, second: Arm) {
    let Some(images) = images_for(test) else {
        return;
    };
    let step = |arm: Arm, name: &str, words: &str| {
        let output = run_step("exchange/mirrors.sh", arm, images.path(), name, words);
        let wrong = ["= ", "WRONG", "NOT"].iter().any(|w| output.contains(w));
        assert!(!wrong, "{name}: {output}");
        output
    };
    let all = format!("bits {}", "ff".repeat(32));
    // The region of sectors 4000 to 4007 is number 62.
    let but_one = format!("bits {}bf{}", "ff".repeat(7), "ff".repeat(24));
    let made = step(first, "made", "make_images");
    assert!(
        made.contains("legs : right") && made.contains(&all),
        "{made}"
    );
    let used = step(second, "used", "check_images; crash");
    assert!(used.contains(" 256/256 1 AA 3 disk "), "{used}");
    assert!(used.contains("/256 1 AD 3 disk "), "{used}");
    assert!(used.contains(&all) && used.contains(&but_one), "{used}");
    let back = step(first, "back", "recover; check_images; crash");
    assert!(back.contains("legs crash-: right"), "{back}");
    assert!(back.contains(&all) && back.contains(&but_one), "{back}");
    let again = step(second, "again", "recover");
    assert!(again.contains("legs crash-: right"), "{again}");
    assert!(again.contains(&all), "{again}");
}
