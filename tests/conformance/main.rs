//! Conformance: every case in `cases/` run by a real kernel with the distribution's dmsetup, by thinmap with its own,
//! and by thinmap with the distribution's through the shim; the transcripts compared.
//!
//! `differences.txt` lists what may differ and why; COMPAT.md repeats each reason. With
//! CONFORMANCE_CASES="linear info" only those cases run; with CONFORMANCE_KEEP=DIR both transcripts
//! of each case are left there, the kernel's with its log.

use std::fs;
use std::path::Path;

use thinmap_tests::arm::{self, Case, Dmsetup};
use thinmap_tests::transcript::{Permitted, differences, normalise};
use thinmap_tests::uml::Uml;

#[test]
fn conformance_with_the_kernel() {
    let missing = Uml::missing().or_else(cannot_make_block_devices);
    if let Some(reason) = missing {
        println!("SKIP conformance: {reason}");
        return;
    }
    let cases = cases();
    let keep = std::env::var_os("CONFORMANCE_KEEP");
    // Cases mostly wait for something: a guest takes every other one, beside both of our arms.
    let halves = [0, 1].map(|nr| {
        cases
            .iter()
            .skip(nr)
            .step_by(2)
            .cloned()
            .collect::<Vec<_>>()
    });
    let with_log = keep.is_some();
    let boot = |half: &[Case]| arm::kernel(half, with_log, 25).expect("the kernel's arm");
    let (kernel, ours, shim) = std::thread::scope(|scope| {
        let guests = halves.each_ref().map(|half| scope.spawn(|| boot(half)));
        let ours = scope.spawn(|| arm::thinmap_arm(&cases, Dmsetup::Ours));
        let shim = arm::thinmap_arm(&cases, Dmsetup::Distributions);
        let mut halves = guests.map(|guest| guest.join().expect("guest").into_iter());
        let in_turns = |nr: usize| halves[nr % 2].next().expect("each case's transcript");
        let kernel: Vec<String> = (0..cases.len()).map(in_turns).collect();
        (
            kernel,
            ours.join().expect("thread").expect("thinmap's arm"),
            shim.expect("the shim's arm"),
        )
    });
    save(keep.as_deref(), "kernel", &cases, &kernel);
    save(keep.as_deref(), "ours", &cases, &ours);
    save(keep.as_deref(), "shim", &cases, &shim);
    let report = compare("ours", &cases, &kernel, &ours) + &compare("shim", &cases, &kernel, &shim);
    assert!(report.is_empty(), "differences:\n{report}");
}

/// What differs, under the name of the arm that is compared with the kernel's.
fn compare(arm: &str, cases: &[Case], kernel: &[String], ours: &[String]) -> String {
    let permitted = permitted().on(arm);
    let mut report = String::new();
    for ((case, kernel), ours) in cases.iter().zip(kernel).zip(ours) {
        let [kernel, ours] = [kernel, ours].map(|text| normalise(text).expect("normalise"));
        let says = kernel.lines().count();
        assert!(says > 3, "case {} says nothing", case.name);
        let found = differences(&case.name, &kernel, &ours, &permitted);
        println!(
            "{:4} differences in {} in arm {arm}",
            found.len(),
            case.name
        );
        if !found.is_empty() {
            report += &format!("arm {arm}: {}", found.concat());
        }
    }
    report
}

#[test]
fn conformance_differences_are_in_compat() {
    let compat = fs::read_to_string(arm::package().join("../COMPAT.md")).expect("COMPAT.md");
    for reason in permitted().reasons() {
        assert!(
            compat.contains(reason.trim()),
            "COMPAT.md does not say: {reason}"
        );
    }
}

fn cannot_make_block_devices() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    ["/dev/fuse", "/dev/loop-control"]
        .into_iter()
        .find(|path| !Path::new(path).exists())
        .map(|path| format!("needs {path}"))
}

fn permitted() -> Permitted {
    let file = arm::package().join("conformance/differences.txt");
    Permitted::parse(&fs::read_to_string(file).expect("differences.txt")).expect("differences.txt")
}

fn cases() -> Vec<Case> {
    let wanted = std::env::var("CONFORMANCE_CASES").unwrap_or_default();
    let mut cases: Vec<Case> = fs::read_dir(arm::package().join("conformance/cases"))
        .expect("cases")
        .map(|entry| entry.expect("case").path())
        .map(|path| Case {
            name: path
                .file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned(),
            body: fs::read_to_string(&path).expect("case"),
        })
        .filter(|case| wanted.is_empty() || wanted.split_whitespace().any(|w| w == case.name))
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases
}

fn save(directory: Option<&std::ffi::OsStr>, arm: &str, cases: &[Case], texts: &[String]) {
    let Some(directory) = directory.map(Path::new) else {
        return;
    };
    fs::create_dir_all(directory).expect("directory for transcripts");
    for (case, text) in cases.iter().zip(texts) {
        fs::write(directory.join(format!("{}.{arm}.txt", case.name)), text).expect("transcript");
    }
}
