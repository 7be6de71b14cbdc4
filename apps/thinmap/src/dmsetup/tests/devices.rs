//! Commands that make, change and remove devices.

use super::fake::Bench;

#[test]
fn create_makes_a_live_device() {
    let bench = Bench::new();
    assert_eq!(
        bench.ok(&["create", "a", "-u", "U-1", "--table", "0 8 zero\n8 8 error"]),
        ""
    );
    assert_eq!(bench.ok(&["table"]), "a: 0 8 zero \na: 8 8 error \n");
    assert_eq!(bench.ok(&["table", "a"]), "0 8 zero \n8 8 error \n");
    assert_eq!(
        bench.ok(&["info", "a"]),
        "Name:              a\n\
         State:             ACTIVE\n\
         Read Ahead:        256\n\
         Tables present:    LIVE\n\
         Open count:        0\n\
         Event number:      0\n\
         Major, minor:      253, 0\n\
         Number of targets: 2\n\
         UUID: U-1\n\n"
    );
}

#[test]
fn a_refused_table_takes_the_device_back_and_says_what_the_kernel_logs() {
    let bench = Bench::new();
    assert_eq!(
        bench.fails(&["create", "g", "--table", "0 8 nosuch"]),
        "device-mapper: reload ioctl on g (253:0) failed: Invalid argument\n\
         thinmap: device-mapper: table: 253:0: nosuch: unknown target type\n\
         Command failed.\n"
    );
    assert!(bench.fake.names().is_empty());
}

#[test]
fn create_refuses_what_dmsetup_refuses() {
    let bench = Bench::new();
    bench.ok(&["create", "a", "--notable"]);
    for (args, expected) in [
        (
            &["create", "a", "--notable"][..],
            "device-mapper: create ioctl on a  failed: Device or resource busy\n",
        ),
        (&["create"], "Please provide a name for the new device.\n"),
        (
            &["create", "x/y", "--notable"],
            "Name \"x/y\" invalid. It contains \"/\".\n",
        ),
        (
            &["create", "x", "/nowhere"],
            "Couldn't open '/nowhere' for reading.\n",
        ),
        (
            &["create", "x", "--table", "0 8"],
            "Invalid format on line 1 of table .\n",
        ),
    ] {
        assert_eq!(
            bench.fails(args),
            format!("{expected}Command failed.\n"),
            "{args:?}"
        );
    }
    assert_eq!(bench.fake.names(), ["a"]);
}

#[test]
fn create_reads_a_file_and_a_concise_list() {
    let bench = Bench::new();
    let file = bench.dir.path().join("table");
    std::fs::write(&file, "# comment\n0 8 zero\n").unwrap();
    bench.ok(&["create", "f", file.to_str().unwrap()]);
    bench.ok(&[
        "create",
        "--concise",
        "x,U,,ro,0 8 zero,8 8 error;y,,7,,0 8 error",
    ]);
    assert_eq!(
        bench.ok(&["table", "--concise"]),
        "f,,0,rw,0 8 zero ;x,U,1,ro,0 8 zero ,8 8 error ;y,,7,rw,0 8 error \n"
    );
    assert_eq!(
        bench.fails(&["create", "--concise", "z"]),
        "Five comma-separated fields are required for each device\n\
         Parsed 1 fields: name: z uuid: (null) minor: (null) flags: (null) table: (null)\n\
         Command failed.\n"
    );
}

#[test]
fn load_suspend_resume_clear() {
    let bench = Bench::new();
    bench.ok(&["create", "a", "--notable"]);
    let attr = || bench.ok(&["info", "-c", "--noheadings", "-o", "attr", "a"]);
    assert_eq!(attr(), "---w\n");
    bench.ok(&["load", "a", "--table", "0 8 zero", "-r"]);
    assert_eq!(attr(), "-I-w\n");
    bench.ok(&["resume", "a"]);
    assert_eq!(attr(), "L--r\n");
    bench.ok(&["reload", "a", "--table", "0 8 error"]);
    bench.ok(&["suspend", "a"]);
    assert_eq!(attr(), "LIsr\n");
    assert_eq!(bench.ok(&["table", "--inactive", "a"]), "0 8 error \n");
    bench.ok(&["clear", "a"]);
    assert_eq!(attr(), "L-sr\n");
    assert_eq!(
        bench.fails(&["suspend"]),
        "No device specified.\nCommand failed.\n"
    );
}

#[test]
fn busy_devices_stay_unless_deferred() {
    let bench = Bench::new();
    bench.ok(&["create", "a", "--table", "0 8 zero"]);
    bench.fake.open("a", 1);
    assert_eq!(
        bench.fails(&["remove", "a"]),
        "device-mapper: remove ioctl on a  failed: Device or resource busy\nCommand failed.\n"
    );
    bench.ok(&["remove", "--deferred", "a"]);
    assert!(
        bench
            .ok(&["info", "a"])
            .contains("State:             ACTIVE (DEFERRED REMOVE)\n")
    );
    bench.ok(&["message", "a", "0", "@cancel_deferred_remove"]);
    assert!(
        bench
            .ok(&["info", "a"])
            .contains("State:             ACTIVE\n")
    );
    // By force: the table becomes the error target, though the device cannot go.
    bench.fails(&["remove", "--force", "a"]);
    assert_eq!(bench.ok(&["table", "a"]), "0 8 error \n");
    assert_eq!(bench.ok(&["remove_all"]), "");
    assert_eq!(bench.fake.names(), ["a"]);
    bench.fake.open("a", 0);
    bench.ok(&["remove", "a"]);
    assert_eq!(bench.ok(&["ls"]), "No devices found\n");
}

#[test]
fn several_devices_stop_at_the_first_failure() {
    let bench = Bench::new();
    for name in ["a", "b"] {
        bench.ok(&["create", name, "--table", "0 8 zero"]);
    }
    assert_eq!(
        bench.fails(&["remove", "a", "nosuch", "b"]),
        "device-mapper: remove ioctl on nosuch  failed: No such device or address\n\
         Command failed.\n"
    );
    assert_eq!(bench.fake.names(), ["b"]);
}

#[test]
fn rename_and_set_uuid() {
    let bench = Bench::new();
    bench.ok(&["create", "a", "--notable"]);
    bench.ok(&["rename", "a", "b"]);
    bench.ok(&["rename", "--setuuid", "b", "U-b"]);
    assert_eq!(
        bench.fails(&["rename", "--setuuid", "b", "U-c"]),
        "device-mapper: rename ioctl on b  failed: Invalid argument\nCommand failed.\n"
    );
    assert_eq!(
        bench.fails(&["rename", "b", "x/y"]),
        "Name \"x/y\" invalid. It contains \"/\".\nCommand failed.\n"
    );
    // The kernel finds renames by name alone.
    assert_eq!(
        bench.fails(&["rename", "-u", "U-b", "c"]),
        "device-mapper: rename ioctl on  U-b failed: No such device or address\nCommand failed.\n"
    );
}

#[test]
fn messages_and_their_answers() {
    let bench = Bench::new();
    bench.ok(&["create", "p", "--table", "0 8 zero"]);
    assert_eq!(
        bench.ok(&["message", "p", "0", "echo", "a", "b  c"]),
        "a b c\n"
    );
    assert_eq!(bench.ok(&["message", "p", "0", "quiet"]), "");
    assert_eq!(
        bench.fails(&["message", "p", "0", "bad"]),
        "device-mapper: message ioctl on p  failed: Invalid argument\n\
         thinmap: device-mapper: thin: Unrecognised thin pool target message received\n\
         Command failed.\n"
    );
    assert_eq!(
        bench.fails(&["message", "p", "x", "m"]),
        "Invalid sector.\nCommand failed.\n"
    );
}

#[test]
fn paths_lead_to_names() {
    let bench = Bench::new();
    bench.ok(&["create", "a", "--table", "0 8 zero"]);
    let mapper = bench.dir.path().join("mapper");
    // Without a node: by the directory's name.
    for path in [mapper.join("a"), "/dev/mapper/a".into()] {
        assert_eq!(bench.ok(&["table", path.to_str().unwrap()]), "0 8 zero \n");
    }
    let absent = mapper.join("absent");
    assert_eq!(
        bench.fails(&["table", absent.to_str().unwrap()]),
        format!("Device {} not found\nCommand failed.\n", absent.display())
    );
    std::fs::write(mapper.join("a"), "").unwrap();
    let link = bench.dir.path().join("link");
    std::os::unix::fs::symlink(mapper.join("a"), &link).unwrap();
    for path in [mapper.join("a"), link] {
        assert_eq!(bench.ok(&["table", path.to_str().unwrap()]), "0 8 zero \n");
    }
    assert_eq!(
        bench.fails(&["table", "/nowhere/a"]),
        "Device /nowhere/a not found\nCommand failed.\n"
    );
    assert_eq!(
        bench.fails(&["table", "/dev/null"]),
        "Device null not found\nCommand failed.\n"
    );
}

#[test]
fn wait_ends_with_the_event() {
    let bench = Bench::new();
    bench.ok(&["create", "a", "--table", "0 8 zero"]);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| bench.run(&["wait", "a", "0"]));
        bench.fake.event("a");
        assert_eq!(waiting.join().unwrap().code, 0);
    });
    // The number has moved on, so this returns at once.
    bench.ok(&["wait", "a", "0"]);
    assert_eq!(
        bench.fails(&["wait", "nosuch"]),
        "device-mapper: waitevent ioctl on nosuch  failed: No such device or address\n\
         Command failed.\n"
    );
}

#[test]
fn names_are_mangled_for_udev() {
    let bench = Bench::new();
    bench.ok(&["create", "a b", "--notable"]);
    assert_eq!(bench.fake.names(), ["a\\x20b"]);
    assert_eq!(bench.ok(&["ls"]), "a b\t(253:0)\n");
    assert_eq!(
        bench.ok(&["mangle"]),
        "a\\x20b: [no UUID]: name already in correct form\n"
    );
    bench.ok(&["create", "--manglename", "none", "c d", "--notable"]);
    assert_eq!(
        bench.fails(&["ls"]),
        "The name \"c d\" should be mangled but it contains blacklisted characters.\n\
         Command failed.\n"
    );
    assert_eq!(bench.ok(&["mangle", "c d"]), "c d: renaming to c\\x20d\n");
    assert_eq!(bench.fake.names(), ["a\\x20b", "c\\x20d"]);
}
