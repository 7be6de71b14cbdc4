//! The fuzz targets' corpus, seeds and regressions, replayed on stable Rust.
//!
//! An input that fails is named, and kept by libFuzzer's name for it under `fuzz/regressions` once it is found.

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use thinmap_fuzzing::{ALL, corpus};

fn fuzz_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

/// Panics so far, of any thread: those of workers do not reach whoever waits for them.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, SeqCst);
            before(info);
        }));
    });
}

fn replay(name: &str) {
    count_panics();
    let target = thinmap_fuzzing::by_name(name);
    let packed = fuzz_dir().join(format!("corpus/{name}.pack"));
    let kept = corpus::read(&packed).expect("a corpus");
    assert!(!kept.is_empty(), "{}: no corpus", packed.display());
    let regressions = corpus::read_directory(&fuzz_dir().join("regressions").join(name))
        .expect("readable inputs");
    for input in (target.seeds)().iter().chain(&kept).chain(&regressions) {
        let done = std::panic::catch_unwind(|| (target.run)(input));
        let panics = PANICS.load(SeqCst);
        assert!(
            done.is_ok() && panics == 0,
            "{name}: fails on {} (a worker's panic may be an earlier input's)",
            hex(input)
        );
    }
}

fn hex(input: &[u8]) -> String {
    input.iter().map(|byte| format!("{byte:02x}")).collect()
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                replay(stringify!($name));
            }
        )*

        #[test]
        fn every_target_is_replayed() {
            let replayed = [$(stringify!($name)),*];
            for target in ALL {
                assert!(replayed.contains(&target.name), "{} is not", target.name);
                let main = fuzz_dir().join(format!("fuzz_targets/{}.rs", target.name));
                assert!(main.exists(), "{} is missing", main.display());
            }
        }
    };
}

replays! {
    metadata_image metadata_damage metadata_repair metadata_xml hostile_pool hostile_metadata table_lines dm_ioctl
    control_frames nbd fuse
}
