//! Debian's thin-provisioning-tools, and texts compared.
#![allow(dead_code, reason = "each user takes its own part")]

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;

/// Runs a program, panics with its output if it fails, gives what it printed.
pub fn run(words: &[&str]) -> String {
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", words[0]));
    assert!(
        output.status.success(),
        "{words:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8(output.stdout).expect("text")
}

/// Compares files of any size.
pub fn same_files(ours: &Path, theirs: &Path, what: &[&str]) {
    let open = |path: &Path| File::open(path).expect("a file");
    let (mut a, mut b) = (open(ours), open(theirs));
    let length = |file: &File| file.metadata().expect("size").len();
    assert!(length(&a) > 0, "{what:?}: nothing");
    let mut pieces = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    loop {
        let n = a.read(&mut pieces.0).expect("read");
        b.read_exact(&mut pieces.1[..n])
            .unwrap_or_else(|_| panic!("{what:?}: theirs is shorter"));
        assert!(
            pieces.0[..n] == pieces.1[..n],
            "{what:?}: differ near byte {at}"
        );
        if n == 0 {
            break;
        }
        at += n;
    }
    assert_eq!(length(&a), length(&b), "{what:?}: lengths");
}
