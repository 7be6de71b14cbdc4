//! Options, usage and the commands that need no daemon.

use super::fake::{Bench, Outcome};
use crate::dmsetup::Console;

/// Runs dmsetup where no daemon can be reached.
fn alone(args: &[&str]) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let paths = crate::run_paths::RunPaths {
        run_dir: dir.path().to_owned(),
        dev_dir: dir.path().to_owned(),
    };
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let console = Console {
        out: &mut out,
        err: &mut err,
    };
    let code = crate::dmsetup::run("dmsetup", &args, paths, false, console);
    Outcome {
        code,
        out: String::from_utf8(out).unwrap(),
        err: String::from_utf8(err).unwrap(),
    }
}

#[test]
fn options_follow_getopt() {
    for (args, expected) in [
        (&["--foo"][..], "dmsetup: unrecognized option '--foo'\n"),
        (&["info", "-Z"], "dmsetup: invalid option -- 'Z'\n"),
        (
            &["info", "-u"],
            "dmsetup: option requires an argument -- 'u'\n",
        ),
        (
            &["load", "x", "--table"],
            "dmsetup: option '--table' requires an argument\n",
        ),
        (
            &["--force=1"],
            "dmsetup: option '--force' doesn't allow an argument\n",
        ),
        (
            &["--conc", "--co"],
            "dmsetup: option '--co' is ambiguous; possibilities: '--columns' '--concise' '--count'\n",
        ),
        (
            &["-j", "7", "info"],
            "Please specify both major number and minor number.\n",
        ),
        (
            &["create", "x", "--table", "", "--notable"],
            "--table and --notable are incompatible.\n",
        ),
        (&["--manglename", "x"], "Unknown name mangling mode.\n"),
        (
            &["-M", "9", "create", "x"],
            "Invalid argument for --mode: 9. \n",
        ),
    ] {
        let outcome = alone(args);
        let expected = format!("{expected}Couldn't process command line.\n");
        assert_eq!((outcome.code, outcome.err), (1, expected), "{args:?}");
    }
}

#[test]
fn usage_goes_to_standard_error() {
    for args in [&[][..], &["nonsense"], &["create", "a", "b", "c"]] {
        let outcome = alone(args);
        assert_eq!((outcome.code, outcome.out.as_str()), (1, ""));
        assert!(outcome.err.contains("\tcreate <dev_name>\n"), "{args:?}");
    }
    let help = alone(&["help"]);
    assert_eq!(help.code, 0);
    assert!(
        help.err
            .starts_with("Usage:\n\ndmsetup\n        [--version]")
    );
}

/// The real one, where it is installed, tells of itself without a kernel.
#[test]
fn help_is_debians_to_the_letter() {
    let Ok(real) = std::process::Command::new("/usr/sbin/dmsetup")
        .arg("help")
        .output()
    else {
        eprintln!("skipped: /usr/sbin/dmsetup is not installed");
        return;
    };
    assert_eq!(
        alone(&["help"]).err,
        String::from_utf8(real.stderr).unwrap()
    );
}

#[test]
fn splitname() {
    let outcome = alone(&["splitname", "vg--0-lv--1-lay"]);
    assert_eq!(outcome.out, "VG   LV   LVLayer\nvg-0 lv-1 lay    \n");
    assert_eq!(
        alone(&["splitname", "vg-lv", "FOO"]).out,
        "VG   LV   LVLayer\n                 \n"
    );
    assert_eq!(
        alone(&["splitname", "--nameprefixes", "--noheadings", "vg-lv"]).out,
        "DM_VG_NAME='vg':DM_LV_NAME='lv':DM_LV_LAYER=''\n"
    );
}

#[test]
fn udev_commands_are_harmless() {
    assert_eq!(
        alone(&["udevflags", "0xd4d0003"]).out,
        "DM_UDEV_DISABLE_DM_RULES_FLAG='1'\n\
         DM_UDEV_DISABLE_DISK_RULES_FLAG='1'\n\
         DM_UDEV_DISABLE_OTHER_RULES_FLAG='1'\n\
         DM_UDEV_PRIMARY_SOURCE_FLAG='1'\n\
         DM_SUBSYSTEM_UDEV_FLAG0='1'\n\
         DM_SUBSYSTEM_UDEV_FLAG2='1'\n\
         DM_SUBSYSTEM_UDEV_FLAG3='1'\n"
    );
    assert_eq!(
        alone(&["udevcomplete", "1"]).out,
        "DM_COOKIE_COMPLETED=0x1         \n"
    );
    assert_eq!(
        alone(&["udevflags", "0"]).err,
        "Incorrect cookie value.\nCommand failed.\n"
    );
    let cookie = alone(&["udevcreatecookie"]).out;
    assert!(cookie.starts_with("0x0D4D"), "{cookie}");
    assert_eq!(alone(&["udevreleasecookie", cookie.trim()]).code, 0);
}

#[test]
fn no_daemon_is_said_plainly() {
    let outcome = alone(&["ls"]);
    assert_eq!(outcome.code, 1);
    assert!(
        outcome
            .err
            .contains("control.sock: open failed: No such file or directory\n")
    );
    assert!(outcome.err.ends_with("Command failed.\n"));
}

#[test]
fn options_may_stand_anywhere() {
    let bench = Bench::new();
    bench.ok(&["--table", "0 8 zero", "create", "-ruU-1", "a"]);
    assert_eq!(
        bench.ok(&["-co", "name,uuid", "info", "--nohead"]),
        "a:U-1\n"
    );
}
