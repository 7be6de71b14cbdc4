//! Garbage in every field, buffers of every size, unknown commands, callers without permission: what the kernel answers, thinmap
//! answers, through the shim and under the supervisor.
//!
//! With PROBE_KEEP=DIR the transcripts are left there; PROBE_GROUPS="fuzz:7:5000" asks for other cases than these.

use std::path::Path;

use thinmap_tests::uml::Uml;
use thinmap_tests::world::can_make_block_devices;

use crate::arms::{self, Transcripts};
use crate::compare::{Permitted, differences, shared};

/// Fuzz seeds are those that have found something.
const GROUPS: &str = "fields calls payloads states fuzz:1:2000 fuzz:2:2000";
/// The supervisor is the slower way to the same code: what a request is told does not depend on it, how it is fetched and
/// answered does.
const GROUPS_SUPERVISED: &str = "calls states fuzz:1:2000";

/// One difference may make all that follow it differ.
const REPORTED_MAX: usize = 60;

fn permitted() -> Permitted {
    Permitted::read(&arms::probe().join("differences.txt"))
}

#[test]
fn answers_are_the_kernels() {
    if let Some(reason) = Uml::missing() {
        println!("SKIP answers_are_the_kernels: {reason}");
        return;
    }
    if !can_make_block_devices("answers_are_the_kernels") {
        return;
    }
    let asked = std::env::var("PROBE_GROUPS");
    let (groups, supervised) = match &asked {
        Ok(groups) => (groups.as_str(), groups.as_str()),
        Err(_) => (GROUPS, GROUPS_SUPERVISED),
    };
    let (kernel, shim, supervisor) = std::thread::scope(|scope| {
        let kernel = scope.spawn(|| arms::kernel(groups));
        let shim = scope.spawn(|| arms::thinmap_arm("", groups));
        let supervisor = arms::thinmap_arm("--static", supervised);
        (
            kernel.join().expect("the kernel's arm"),
            shim.join().expect("the shim's arm"),
            supervisor,
        )
    });
    for (arm, transcripts) in [
        ("kernel", &kernel),
        ("shim", &shim),
        ("supervisor", &supervisor),
    ] {
        keep(arm, transcripts);
    }
    let permitted = permitted();
    let mut found = Vec::new();
    for (arm, ours) in [("shim", &shim), ("supervisor", &supervisor)] {
        let theirs = shared(&kernel.answers, &ours.answers);
        let answers = differences(&theirs, &shared(&ours.answers, &ours.answers), &permitted);
        let permission = differences(&kernel.permission, &ours.permission, &permitted);
        let dmsetup = differences(&kernel.dmsetup, &ours.dmsetup, &permitted);
        println!(
            "{arm}: {} lines compared, {} differ",
            theirs.lines().count() + kernel.permission.lines().count(),
            answers.len() + permission.len() + dmsetup.len()
        );
        found.extend([answers, permission, dmsetup].concat());
    }
    let first = &found[..found.len().min(REPORTED_MAX)];
    assert!(found.is_empty(), "{}", first.join("\n"));
    if asked.is_err() {
        assert_eq!(
            permitted.idle(),
            Vec::<&str>::new(),
            "rules that nothing needs"
        );
    }
}

#[test]
fn every_difference_is_explained_to_users() {
    let page = std::fs::read_to_string(arms::probe().join("../../COMPAT.md")).expect("COMPAT.md");
    for reason in permitted().reasons() {
        assert!(page.contains(reason), "COMPAT.md does not say: {reason}");
    }
}

fn keep(arm: &str, transcripts: &Transcripts) {
    let Some(dir) = std::env::var_os("PROBE_KEEP") else {
        return;
    };
    let dir = Path::new(&dir).join(arm);
    std::fs::create_dir_all(&dir).expect("directory for transcripts");
    for (name, text) in [
        ("answers", &transcripts.answers),
        ("permission", &transcripts.permission),
        ("dmsetup", &transcripts.dmsetup),
    ] {
        std::fs::write(dir.join(name), text).expect("transcript");
    }
}
