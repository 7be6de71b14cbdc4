//! Where the probe runs: in a guest with the kernel's device mapper, and on thinmap through the shim and under the supervisor.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thinmap_tests::uml::Uml;
use thinmap_tests::world::{World, thinmap};

/// The loop devices tried for the probe's disk: two digits, so that texts that name one are of one length everywhere.
const LOOPS: std::ops::Range<u32> = 60..99;

/// Where the probe's Python files lie.
pub fn probe() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("probe")
}

/// What one arm wrote.
pub struct Transcripts {
    /// The answers to garbage and good requests.
    pub answers: String,
    /// What programs without permission were told.
    pub permission: String,
    /// dmsetup's words to a user who may not.
    pub dmsetup: String,
}

/// A script's beginning, which makes `$disk`.
pub fn with_disk() -> String {
    let (first, last) = (LOOPS.start, LOOPS.end - 1);
    format!(
        "truncate -s 1M probe.disk
         disk=
         for nr in $(seq {first} {last}); do
             [ -b /dev/loop$nr ] || mknod /dev/loop$nr b 7 $nr || true
             losetup /dev/loop$nr probe.disk 2>/dev/null && disk=/dev/loop$nr && break
         done
         [ -n \"$disk\" ]
         trap 'losetup -d $disk' EXIT\n"
    )
}

/// Runs everything behind `run`; the transcripts go to `out`.
fn script(run: &str, out: &Path, groups: &str) -> String {
    let (probe, out) = (probe(), out.display());
    let (probe, with_disk) = (probe.display(), with_disk());
    format!(
        "{with_disk}
         {run} /usr/bin/python3 {probe}/probe.py $disk {out}/answers {groups}
         {run} /usr/bin/python3 {probe}/permission.py {out}/permission
         for words in ls 'create x --notable' 'remove x' version targets; do
             rc=0
             {run} /usr/bin/setpriv --reuid 65534 --regid 65534 --clear-groups /usr/sbin/dmsetup $words || rc=$?
             echo \"$words: $rc\"
         done >{out}/dmsetup 2>&1"
    )
}

fn read(out: &Path) -> Transcripts {
    let file = |name: &str| std::fs::read_to_string(out.join(name)).expect(name);
    Transcripts {
        answers: file("answers"),
        permission: file("permission"),
        dmsetup: file("dmsetup"),
    }
}

/// What the kernel answers.
pub fn kernel(groups: &str) -> Transcripts {
    let dir = tempfile::Builder::new()
        .prefix("thinmap-probe.")
        .tempdir()
        .expect("temporary directory");
    let uml = Uml::new(Duration::from_secs(300)).expect("a guest");
    let script = format!("set -e; cd /run; {}", script("", dir.path(), groups));
    let run = uml.run(&script, &[]).expect("the guest runs");
    assert_eq!(run.code, Some(0), "{}\n{}", run.text, run.console);
    read(dir.path())
}

/// What thinmap answers to programs run by `thinmap run` with `option`.
pub fn thinmap_arm(option: &str, groups: &str) -> Transcripts {
    let world = World::new();
    // Another user must be able to load it.
    let open = tempfile::Builder::new()
        .prefix("thinmap-shim.")
        .tempdir()
        .expect("temporary directory");
    let shim = open.path().join("libthinmap_dm.so");
    std::fs::copy(thinmap().with_file_name("libthinmap_dm.so"), &shim).expect("the shim");
    std::fs::set_permissions(open.path(), std::fs::Permissions::from_mode(0o755)).expect("mode");
    let run = format!("THINMAP_SHIM={} thinmap run {option} --", shim.display());
    world.sh(&script(&run, world.path(), groups));
    let mut transcripts = read(world.path());
    let devices = world.dev_dir().display().to_string();
    transcripts.dmsetup = transcripts.dmsetup.replace(&devices, "/dev/mapper");
    world.end();
    transcripts
}
