//! A volume group with a thin pool that lvm2 wrote on a real kernel is activated and changed on thinmap, and the reverse; both print the same
//! about it.
//!
//! `lvm2_exchange.sh` is the one body that both sides run; the image and the list of sums travel between them.

use std::path::Path;
use std::time::Duration;

use regex_lite::Regex;
use thinmap_tests::uml::Uml;
use thinmap_tests::world::World;

use crate::support::turn;

const NEEDS: &[&str] = &[
    "/usr/sbin/lvm",
    "/usr/sbin/thin_check",
    "/usr/sbin/mkfs.ext4",
];

const MAKE: &str = "make; activate; note_sums; report; close_image";
const CHECK: &str = "open_image; activate; check_sums; report; close_image";
const CHECK_AND_CHANGE: &str =
    "open_image; activate; check_sums; report; change; activate; note_sums; report; close_image";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    Kernel,
    Thinmap,
}

#[test]
fn a_group_of_the_kernels_is_activated_and_changed_here_and_goes_back() {
    exchange(
        "a_group_of_the_kernels_is_activated_and_changed_here_and_goes_back",
        Side::Kernel,
        Side::Thinmap,
    );
}

#[test]
fn a_group_of_ours_is_activated_and_changed_by_the_kernel_and_comes_back() {
    exchange(
        "a_group_of_ours_is_activated_and_changed_by_the_kernel_and_comes_back",
        Side::Thinmap,
        Side::Kernel,
    );
}

/// `first` makes the group, `second` reads and changes it, `first` reads it again.
fn exchange(test: &str, first: Side, second: Side) {
    let Some((world, _turn)) = turn(test, NEEDS) else {
        return;
    };
    if let Some(reason) = Uml::missing() {
        println!("SKIP {test}: {reason}");
        return;
    }
    let made = step(&world, first, MAKE);
    let changed = step(&world, second, CHECK_AND_CHANGE);
    let back = step(&world, first, CHECK);
    assert_eq!(right(&changed), ["base", "s1", "s2", "t1"], "{changed}");
    assert_eq!(right(&back), ["base", "s4", "t1"], "{back}");
    let (made, changed, back) = (reports(&made), reports(&changed), reports(&back));
    assert_eq!([made.len(), changed.len(), back.len()], [1, 2, 1]);
    assert_same(&made[0], &changed[0], [first, second]);
    assert_same(&changed[1], &back[0], [second, first]);
    world.end();
}

/// Runs steps of the body on one side; what it printed. The metadata is checked afterwards.
fn step(world: &World, side: Side, steps: &str) -> String {
    let here = world.path();
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
    let body = package.join("lvm2_exchange.sh");
    let (body, images) = (body.display(), here.display());
    let output = match side {
        Side::Kernel => {
            // The guest's loop devices need a file system that can punch holes, which the host's is not for it.
            let script = format!(
                "set -eu\nmodprobe -d $MODULES dm-snapshot\n\
                 cp -a /etc/lvm /run/etc-lvm; export LVM_SYSTEM_DIR=/run/etc-lvm\n\
                 IMAGE=/run/pv.img SUMS={images}/sums\n\
                 [ ! -e {images}/pv.img ] || cp --sparse=always {images}/pv.img $IMAGE\n\
                 l() {{ \"$@\"; }}\n. {body}\n{steps}\n\
                 cp --sparse=always $IMAGE {images}/pv.img\necho finished\n"
            );
            let uml = Uml::new(Duration::from_secs(300)).expect("a guest");
            let run = uml.run(&script, &[]).expect("the guest's run");
            run.text
        }
        Side::Thinmap => {
            let words = package.join("lvm2.sh");
            let script = format!(
                "VG=exchange; . {words}\nexec 2>&1\nIMAGE={images}/pv.img SUMS={images}/sums\n\
                 trap 'end_event_daemon; forget_group; [ -z \"${{PV-}}\" ] || losetup -d $PV' EXIT\n\
                 l() {{ thinmap run -- \"$@\"; }}\n. {body}\n{steps}\nthinmap stop\necho finished\n",
                words = words.display()
            );
            let output = world.try_sh(&script);
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
    };
    println!("{side:?}: {steps}\n{output}");
    assert!(
        output.ends_with("finished\n"),
        "{side:?} did not finish:\n{output}"
    );
    check_metadata(world);
    output
}

/// The pool's metadata volume, cut out of the image by lvm2's own map of it, is clean.
fn check_metadata(world: &World) {
    let said = world.sh(r#"
        PV=$(losetup -f --show pv.img); trap 'losetup -d $PV; rm -f /etc/lvm/archive/exchange_* /etc/lvm/backup/exchange' EXIT
        # Within the image: the first extent's place, the extent size, and the metadata volume's runs of extents.
        extent=$(lvm vgs --noheadings --nosuffix --units s -o vg_extent_size exchange 2>/dev/null | tr -d ' ')
        start=$(lvm pvs --noheadings --nosuffix --units s -o pe_start $PV 2>/dev/null | tr -d ' ')
        rm -f meta.img
        for run in $(lvm lvs -a --noheadings -o seg_pe_ranges exchange/pool_tmeta 2>/dev/null); do
            first=${run##*:}; last=${first#*-}; first=${first%-*}
            dd if=$PV bs=512 skip=$((start + first * extent)) count=$(((last - first + 1) * extent)) status=none >> meta.img
        done
        thin_check meta.img && thin_dump meta.img | grep -c '<device '
        "#);
    let volumes: u32 = said
        .lines()
        .last()
        .and_then(|count| count.parse().ok())
        .expect("a number of volumes");
    assert!(volumes >= 3, "{said}");
}

fn right(output: &str) -> Vec<&str> {
    assert!(!output.contains("WRONG"), "{output}");
    output
        .lines()
        .filter_map(|line| line.strip_suffix(": right"))
        .collect()
}

/// The reports in an output, with what names a machine's own devices made the same.
fn reports(output: &str) -> Vec<String> {
    output
        .split("report begins\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("report ends\n"))
        .map(|(report, _)| without_numbers(report))
        .collect()
}

/// COMPAT: "Device numbers"; what a block device reads ahead is the host's setting for loop devices.
fn without_numbers(report: &str) -> String {
    let mut text = report.to_owned();
    for (pattern, instead) in [
        (r"/dev/loop[0-9]+", "PV"),
        (r"\b[0-9]+:[0-9]+\b", "N:N"),
        (r#""lv_kernel_(major|minor)":"[0-9]+""#, "number"),
        (r#""lv_kernel_read_ahead":"[0-9]+B""#, "read ahead"),
        (r"- currently set to +[0-9]+", "read ahead"),
        (r" +", " "),
        // A loop device that another program removed while lvm2 looked at all of them.
        (r" Device open [^\n]* has no path names.\n", ""),
    ] {
        let pattern = Regex::new(pattern).expect("pattern");
        text = pattern.replace_all(&text, instead).into_owned();
    }
    text
}

/// Line by line, for a failure that can be read: a line may have thousands of bytes.
#[track_caller]
fn assert_same(left: &str, right: &str, who: [Side; 2]) {
    for (a, b) in left.lines().zip(right.lines()) {
        let fields = |line: &str| line.split(", ").map(String::from).collect::<Vec<_>>();
        for (a, b) in fields(a).into_iter().zip(fields(b)) {
            assert_eq!(a, b, "what {who:?} print");
        }
    }
    assert_eq!(left.lines().count(), right.lines().count(), "{who:?}");
}
