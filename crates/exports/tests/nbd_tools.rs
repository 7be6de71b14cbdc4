//! Clients that people use: libnbd's and QEMU's tools (Debian: libnbd-bin, qemu-utils).
#![allow(clippy::unwrap_used, reason = "tests")]

mod nbd_support;

use std::process::Command;

use nbd_support::{Fixture, MIB};

/// Output of a command that must succeed; `None`, with the reason printed, when it is not installed.
fn run(program: &str, args: &[&str]) -> Option<String> {
    let output = match Command::new(program).args(args).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: {program} is not installed");
            return None;
        }
        output => output.unwrap(),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {args:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(text)
}

#[test]
fn libnbd_lists_maps_and_copies() {
    let fixture = Fixture::with_disk(16);
    let uri = format!("nbd+unix:///disk?socket={}", fixture.socket.display());
    let Some(info) = run("nbdinfo", &[&uri]) else {
        return;
    };
    for line in [
        "can_multi_conn: true",
        "can_fast_zero: true",
        "block_size_minimum: 512",
    ] {
        assert!(info.contains(line), "{line} in {info}");
    }
    assert!(run("nbdinfo", &["--map", &uri]).unwrap().contains("data"));
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let data: Vec<u8> = (0..16 * MIB).map(|i| (i / 4096 % 253) as u8).collect();
    std::fs::write(&from, &data).unwrap();
    run("nbdcopy", &[from.to_str().unwrap(), &uri]);
    run("nbdcopy", &[&uri, to.to_str().unwrap()]);
    assert!(std::fs::read(&to).unwrap() == data);
}

#[test]
fn qemu_io_writes_and_verifies() {
    let fixture = Fixture::with_disk(16);
    let uri = format!("nbd+unix:///disk?socket={}", fixture.socket.display());
    let script = [
        "write -P 5 4k 8k",
        "write -f -P 6 1M 3M",
        "write -z -u 8k 4k",
        "discard 2M 64k",
        "flush",
        "read -P 5 4k 4k",
        "read -P 0 8k 4k",
        "read -P 6 1M 1M",
    ];
    let mut args = vec!["-f", "raw"];
    script.iter().for_each(|step| args.extend(["-c", step]));
    args.push(&uri);
    if let Some(output) = run("qemu-io", &args) {
        assert!(!output.contains("failed"), "{output}");
        run("qemu-img", &["info", &uri]);
    }
}
