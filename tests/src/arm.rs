//! The arms of a conformance test: the same shell cases run by the kernel and by thinmap, on which `dmsetup` is
//! thinmap's own or the distribution's.
//!
//! An arm is given a shell body; it runs it with `dmsetup` in PATH and the variables that
//! `conformance/prelude.sh` explains, and returns what the body wrote.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::uml::Uml;

/// Held by the one of the clients' tests whose turn it is.
pub const CLIENTS_TURN: &str = "/run/thinmap-clients.turn";
/// Seconds that one case may take before it is ended; only a hang ever takes so long.
const CASE_SECONDS: u32 = 150;

/// A shell body under a name of its own.
#[derive(Clone, Debug)]
pub struct Case {
    /// Unique among the cases of a run; also the name of its directory.
    pub name: String,
    /// What runs after the prelude was read.
    pub body: String,
}

/// The package's own directory, where prelude and cases lie.
pub fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The binary under test: THINMAP_BIN, or what `make build` leaves.
pub fn thinmap() -> Result<PathBuf> {
    let path = std::env::var_os("THINMAP_BIN").map_or_else(
        || package().join("../target/release/thinmap"),
        PathBuf::from,
    );
    path.canonicalize()
        .with_context(|| format!("{} (run `make build` first)", path.display()))
}

/// Runs the cases in one boot of the guest kernel. The output of each is in the same order.
pub fn kernel(cases: &[Case], kernel_log: bool, minutes: u64) -> Result<Vec<String>> {
    let outputs = tempfile::Builder::new()
        .prefix("thinmap-kernel.")
        .tempdir()?;
    let settings = "export DEVDIR=/dev/mapper VIA=";
    let script = driver(cases, outputs.path(), "/run", settings, kernel_log)?;
    let uml = Uml::new(Duration::from_secs(60 * minutes))?;
    let run = uml
        .run(&script, &[])
        .with_context(|| progress(cases, outputs.path()))?;
    if run.code != Some(0) {
        let so_far = progress(cases, outputs.path());
        bail!(
            "the guest ended early: {so_far}\n{}\n{}",
            run.text,
            run.console
        );
    }
    read_outputs(cases, outputs.path())
}

/// Which program is `dmsetup` on thinmap's side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dmsetup {
    /// thinmap's own.
    Ours,
    /// The distribution's, through the shim.
    Distributions,
}

/// Where programs of the distribution are.
const DISTRIBUTIONS: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs the cases on this machine, under a thinmap daemon of their own.
pub fn thinmap_arm(cases: &[Case], dmsetup: Dmsetup) -> Result<Vec<String>> {
    let binary = thinmap()?;
    let dir = tempfile::Builder::new().prefix("thinmap-ours.").tempdir()?;
    let at = |name: &str| dir.path().join(name);
    for name in ["bin", "run", "mapper", "work", "out"] {
        fs::create_dir(at(name))?;
    }
    match dmsetup {
        Dmsetup::Ours => std::os::unix::fs::symlink(&binary, at("bin/dmsetup"))?,
        Dmsetup::Distributions => {
            let binary = binary.display();
            let wrapper =
                format!("#!/bin/sh\nPATH={DISTRIBUTIONS}\nexec {binary} run -- dmsetup \"$@\"\n");
            fs::write(at("bin/dmsetup"), wrapper)?;
            fs::set_permissions(at("bin/dmsetup"), fs::Permissions::from_mode(0o755))?;
        }
    }
    let devices = at("mapper").display().to_string();
    let work = at("work").display().to_string();
    let settings = format!(
        "export DEVDIR={devices} 'VIA={} run --' TURN={CLIENTS_TURN}",
        binary.display()
    );
    fs::write(
        at("driver"),
        driver(cases, &at("out"), &work, &settings, false)?,
    )?;
    let path = format!("{}:{DISTRIBUTIONS}", at("bin").display());
    let with_world = |program: &Path| {
        let mut command = Command::new(program);
        command
            .env("PATH", &path)
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        command
            .env("THINMAP_RUN_DIR", at("run"))
            .env("THINMAP_DEV_DIR", at("mapper"));
        command
    };
    let status = with_world(Path::new("/bin/sh")).arg(at("driver")).status();
    let stopped = with_world(&binary).arg("stop").output();
    let outputs = read_outputs(cases, &at("out"))?;
    if !status?.success() {
        bail!("the driver script failed: {}", progress(cases, &at("out")));
    }
    let stopped = stopped?;
    if !stopped.status.success() {
        bail!("thinmap stop: {}", String::from_utf8_lossy(&stopped.stderr));
    }
    Ok(outputs
        .into_iter()
        .map(|o| o.replace(&devices, "/dev/mapper").replace(&work, "/run"))
        .collect())
}

/// Takes away the loop devices of a case that was ended before it could.
const DETACH: &str = "\
detach() {
    dmsetup remove_all --force >/dev/null 2>&1 </dev/null
    losetup --list --noheadings --output NAME,BACK-FILE | while read -r node file; do
        case $file in
        $WORK/*) losetup --detach \"$node\" ;;
        esac
    done
}
";

/// A script that runs every case in a shell of its own, each into a file of its own. `settings` sets the variables that differ
/// between the arms.
fn driver(cases: &[Case], out: &Path, work: &str, settings: &str, log: bool) -> Result<String> {
    let prelude = package().join("conformance/prelude.sh").canonicalize()?;
    let bodies = out.join("bodies");
    fs::create_dir_all(&bodies)?;
    let mut script = format!("{settings}\nexport KLOG={}\n{DETACH}", u8::from(log));
    for Case { name, body } in cases {
        let file = bodies.join(name);
        fs::write(&file, format!(". {}\n{body}\ntidy_up\n", prelude.display()))?;
        let (file, out) = (file.display(), out.join(name));
        // Who looks at all block devices meanwhile, as lvm2 does in the clients' tests, reads these too.
        let turn = match name.starts_with("cache") || name.starts_with("writecache") {
            true => "${TURN:+flock -o $TURN} ",
            false => "",
        };
        script += &format!(
            "export WORK={work}/w.{name}\nmkdir $WORK\n\
             {turn}timeout -k 5 {CASE_SECONDS} sh {file} >{out} 2>&1\n\
             [ $? = 0 ] || {{ echo '= the case did not end' >>{out}; detach; }}\nrm -rf $WORK\n",
            out = out.display(),
        );
    }
    script += "exit 0\n";
    Ok(script)
}

fn read_outputs(cases: &[Case], out: &Path) -> Result<Vec<String>> {
    cases
        .iter()
        .map(|case| {
            let bytes = fs::read(out.join(&case.name))
                .with_context(|| format!("case {} never ran", case.name))?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        })
        .collect()
}

/// Which case was the last to start, for a failure's message.
fn progress(cases: &[Case], out: &Path) -> String {
    match cases.iter().rfind(|case| out.join(&case.name).exists()) {
        Some(case) => format!(
            "the last case was {}:\n{}",
            case.name,
            fs::read_to_string(out.join(&case.name)).unwrap_or_default()
        ),
        None => "no case was started".to_owned(),
    }
}
