//! Reports, trees and lists.

use super::fake::Bench;

/// `low` under `mid` under `top`, and `alone`.
fn stack() -> Bench {
    let bench = Bench::new();
    bench.ok(&["create", "low", "--table", "0 8 zero"]);
    bench.ok(&[
        "create",
        "mid",
        "-u",
        "LVM-m",
        "--table",
        "0 8 linear 253:0 0\n8 8 error",
    ]);
    bench.ok(&["create", "top", "-r", "--table", "0 8 linear 253:1 0"]);
    bench.ok(&["create", "alone", "--notable"]);
    bench
}

#[test]
fn nothing_there() {
    let bench = Bench::new();
    for args in [
        &["ls"][..],
        &["info"],
        &["info", "-c"],
        &["table"],
        &["deps"],
        &["ls", "--tree"],
    ] {
        assert_eq!(bench.ok(args), "No devices found\n", "{args:?}");
    }
    assert_eq!(
        bench.fails(&["info", "x"]),
        "Device does not exist.\nCommand failed.\n"
    );
    assert_eq!(
        bench.fails(&["status", "x"]),
        "Device does not exist.\nCommand failed.\n"
    );
    assert_eq!(
        bench.fails(&["table", "x"]),
        "device-mapper: table ioctl on x  failed: No such device or address\nCommand failed.\n"
    );
}

#[test]
fn columns() {
    let bench = stack();
    assert_eq!(
        bench.ok(&["info", "-c"]),
        "Name             Maj Min Stat Open Targ Event  UUID                            \n\
         alone            253   3 ---w    0    0      0                                 \n\
         low              253   0 L--w    0    1      0                                 \n\
         mid              253   1 L--w    0    2      0 LVM-m                           \n\
         top              253   2 L--r    0    1      0                                 \n"
    );
    assert_eq!(
        bench.ok(&[
            "info",
            "-c",
            "--noheadings",
            "-o",
            "name,tables_loaded,readonly",
            "top"
        ]),
        "top:Live:Read-only\n"
    );
    assert_eq!(
        bench.ok(&[
            "info",
            "-c",
            "--nameprefixes",
            "--noheadings",
            "-o",
            "name,minor",
            "top"
        ]),
        "DM_NAME='top':DM_MINOR='2'\n"
    );
    assert_eq!(
        bench.ok(&["info", "-c", "--rows", "-o", "name,minor", "-O", "-minor"]),
        "Name alone top mid low\nMin 3 2 1 0\n"
    );
    assert_eq!(
        bench.ok(&[
            "info",
            "-c",
            "--separator",
            ";",
            "-o",
            "name,devs_used,names_using_dev",
            "mid"
        ]),
        "Name;DevNamesUsed;RefNames\nmid;low;top\n"
    );
    assert!(
        bench
            .fails(&["info", "-c", "-o", "bad"])
            .ends_with("\nUnrecognised field: bad\n")
    );
}

#[test]
fn selections() {
    let bench = stack();
    let names =
        |selection: &str| bench.ok(&["info", "-c", "--noheadings", "-o", "name", "-S", selection]);
    assert_eq!(names("minor>=2"), "alone\ntop\n");
    assert_eq!(
        names("name=low || (segments=2 && uuid=~^LVM)"),
        "low\nmid\n"
    );
    assert_eq!(bench.ok(&["table", "-S", "name=low"]), "low: 0 8 zero \n");
    bench.ok(&["remove", "-S", "name=~^al"]);
    assert_eq!(bench.fake.names(), ["low", "mid", "top"]);
}

#[test]
fn help_for_fields_and_selections_succeeds() {
    let bench = stack();
    for (args, expected) in [
        (
            ["info", "-c", "-o", "help"],
            "  attr                  - (L)ive,",
        ),
        (["info", "-c", "-S", "help"], "Selection operators\n"),
    ] {
        let outcome = bench.run(&args);
        assert_eq!((outcome.code, outcome.out.as_str()), (0, ""));
        assert!(outcome.err.contains(expected));
    }
}

#[test]
fn trees() {
    let bench = stack();
    assert_eq!(
        bench.ok(&["ls", "--tree", "-o", "ascii"]),
        "alone (253:3)\ntop (253:2)\n `-mid (253:1)\n    `-low (253:0)\n"
    );
    assert_eq!(
        bench.ok(&["ls", "--tree", "-o", "utf,inverted,nodevice"]),
        "alone\nlow\n └─mid\n    └─top\n"
    );
    assert_eq!(
        bench.ok(&["ls", "--tree", "-o", "ascii,compact,nodevice"]),
        "alone\ntop---mid---low\n"
    );
    assert_eq!(
        bench.ok(&["ls", "--tree", "-o", "ascii,active,open,rw,uuid,nodevice"]),
        "alone [ACTIVE, RW, 0, ]\n\
         top [ACTIVE, RO, 0, ]\n \
         `-mid [ACTIVE, RW, 0, LVM-m]\n    \
         `-low [ACTIVE, RW, 0, ]\n"
    );
}

#[test]
fn lists_and_dependencies() {
    let bench = stack();
    assert_eq!(
        bench.ok(&["ls", "--target", "linear"]),
        "mid\t(253, 1)\ntop\t(253, 2)\n"
    );
    assert_eq!(bench.ok(&["deps", "top"]), "1 dependencies\t: (253, 1)\n");
    assert_eq!(
        bench.ok(&["deps", "-o", "devname", "top"]),
        "1 dependencies\t: (mid)\n"
    );
    assert_eq!(
        bench.ok(&["ls", "-o", "devname"]),
        "alone\t(253:3)\nlow\t(low)\nmid\t(mid)\ntop\t(top)\n"
    );
    assert_eq!(
        bench
            .ok(&["deps", "-o", "blkdevname", "mid", "low"])
            .lines()
            .count(),
        2
    );
    assert_eq!(
        bench.ok(&["status", "--target", "error"]),
        "mid: 8 8 error \n"
    );
    assert_eq!(
        bench.fails(&["ls", "-o", "bad"]),
        "Option not recognised: bad.\nCouldn't process command line.\n"
    );
}

#[test]
fn mknodes_puts_nodes_back() {
    let bench = stack();
    let node = bench.dir.path().join("mapper/low");
    assert_eq!(bench.ok(&["mknodes", "nosuch"]), "");
    assert!(!node.exists());
    bench.ok(&["mknodes", "low"]);
    assert!(node.exists());
    assert!(!bench.dir.path().join("mapper/mid").exists());
    bench.ok(&["mknodes"]);
    assert!(bench.dir.path().join("mapper/mid").exists());
}

#[test]
fn versions() {
    let bench = Bench::new();
    assert_eq!(
        bench.ok(&["version"]),
        "Library version:   1.02.185 (2022-05-18)\nDriver version:    4.47.0\n"
    );
    assert_eq!(
        bench.ok(&["target-version", "linear"]),
        "linear           v1.4.0\n"
    );
    assert_eq!(
        bench.ok(&["targets"]),
        "striped          v1.6.0\nlinear           v1.4.0\nerror            v1.5.0\n"
    );
    assert_eq!(
        bench.fails(&["target-version", "nope"]),
        "device-mapper: target-version ioctl on nope  failed: Invalid argument\nCommand failed.\n"
    );
}
