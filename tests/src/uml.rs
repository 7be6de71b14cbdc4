//! A real kernel for tests: Debian's user-mode-linux, booted on the host's own files.
//!
//! The guest shares the host's root file system, so every script and tool is there; it mounts its
//! own /proc, /sys, /dev and /run, and nothing of the host is changed but what a script writes on
//! purpose. A boot takes about two seconds. All that belongs to a run (console log, memory file,
//! scripts) lies in one temporary directory, and every process is in one process group that is
//! killed at the end, whatever happened.
//!
//! INVARIANT: one [`Uml::run`] leaves no process, mount or file behind on the host.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Where Debian's package keeps the guest kernel's modules, one directory for each release.
const MODULES: &str = "/usr/lib/uml/modules";
const BINARY: &str = "/usr/bin/linux.uml";
const POLL: Duration = Duration::from_millis(50);

/// A guest kernel that can be booted as often as one likes.
pub struct Uml {
    dir: tempfile::TempDir,
    shim: PathBuf,
    modules: PathBuf,
    timeout: Duration,
}

/// What a script left.
#[derive(Debug)]
pub struct Transcript {
    /// Standard output and standard error of the script, interleaved.
    pub text: String,
    /// Its exit code; `None` when the guest ended before the script did.
    pub code: Option<i32>,
    /// The guest's console, for the reader of a failed test.
    pub console: String,
}

impl Uml {
    /// Why this machine cannot boot a guest, or `None` when it can.
    pub fn missing() -> Option<String> {
        [
            (BINARY, "user-mode-linux"),
            (MODULES, "user-mode-linux"),
            ("/usr/sbin/dmsetup", "dmsetup"),
            ("/usr/bin/cc", "a C compiler"),
            ("/usr/sbin/depmod", "kmod"),
        ]
        .iter()
        .find(|(path, _)| !Path::new(path).exists())
        .map(|(path, package)| format!("{path} is not there (install {package})"))
    }

    /// Prepares a guest whose scripts may take `timeout` in all.
    pub fn new(timeout: Duration) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("thinmap-uml.").tempdir()?;
        let shim = build_shim(dir.path())?;
        let modules = link_modules(dir.path())?;
        Ok(Self {
            dir,
            shim,
            modules,
            timeout,
        })
    }

    /// Boots, runs the shell script `script` as root with `images` as /dev/ubda, /dev/ubdb, ...
    /// and powers off.
    pub fn run(&self, script: &str, images: &[PathBuf]) -> Result<Transcript> {
        let here = tempfile::Builder::new()
            .prefix("run.")
            .tempdir_in(self.dir.path())?;
        let file = |name: &str| here.path().join(name);
        fs::write(file("script"), script)?;
        fs::write(file("init"), self.init(here.path()))?;
        make_executable(&file("init"))?;

        let console = fs::File::create(file("console"))?;
        let mut command = Command::new(BINARY);
        command
            .args([
                "mem=1500M",
                "rootfstype=hostfs",
                "rootflags=/",
                "rw",
                "con=null",
            ])
            .args(["con0=null,fd:1", "quiet"])
            .arg(format!("init={}", file("init").display()))
            .arg(format!("uml_dir={}", here.path().display()))
            .env("LD_PRELOAD", &self.shim)
            .env("TMPDIR", here.path())
            .env("HOME", here.path())
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console)
            .process_group(0);
        for (letter, image) in ('a'..).zip(images) {
            command.arg(format!("ubd{letter}={}", image.display()));
        }
        let guest = command
            .spawn()
            .with_context(|| format!("cannot start {BINARY}"))?;
        let finished = wait(guest, self.timeout)?;
        let read = |name: &str| -> String {
            fs::read(file(name))
                .map(|b| String::from_utf8_lossy(&b).into_owned())
                .unwrap_or_default()
        };
        if !finished {
            bail!(
                "the guest was still at work after {:?}; so far:\n{}",
                self.timeout,
                read("output")
            );
        }
        Ok(Transcript {
            text: read("output"),
            code: read("code").trim().parse().ok(),
            console: read("console"),
        })
    }

    fn init(&self, here: &Path) -> String {
        let (modules, here) = (self.modules.display(), here.display());
        format!(
            "#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin DM_DISABLE_UDEV=1 LC_ALL=C HOME=/run MODULES={modules}
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs -o size=90% tmpfs /run
mkdir -p /dev/mapper
for module in dm-mod dm-zero dm-thin-pool dm-snapshot dm-mirror raid0 raid1 raid10 raid456 dm-raid loop; do
    modprobe -d {modules} $module
done
# Ciphers first: the key types that dm-crypt knows try theirs when they are loaded.
for module in aes_generic sha256_generic hmac cbc ecb xts essiv dm-crypt; do
    modprobe -d {modules} $module
done
for module in dm-multipath dm-round-robin dm-queue-length dm-service-time \
    dm-delay dm-flakey dm-dust dm-log-writes dm-unstripe dm-switch dm-era dm-clone \
    sha512_generic sha3_generic rmd160 dm-verity dm-writecache dm-cache dm-cache-smq \
    ctr crc32_generic dm-integrity; do
    modprobe -d {modules} $module
done
dmesg -n 1
dmesg -c >/dev/null
sh {here}/script >{here}/output 2>&1
echo $? >{here}/code
sync
echo o >/proc/sysrq-trigger
sleep 60
"
        )
    }
}

/// Compiles the shim that lets the guest run on processors with more registers than it knows.
fn build_shim(dir: &Path) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/uml_xstate.c");
    let shim = dir.join("uml_xstate.so");
    let status = Command::new("cc")
        .args(["-O2", "-shared", "-fPIC", "-o"])
        .arg(&shim)
        .arg(source)
        .status()?;
    if !status.success() {
        bail!("cc could not build the user-mode-linux shim: {status}");
    }
    Ok(shim)
}

/// Makes a module root that modprobe can read, without touching the package's directory.
fn link_modules(dir: &Path) -> Result<PathBuf> {
    let entry = fs::read_dir(MODULES)?
        .next()
        .with_context(|| format!("{MODULES} is empty"))??;
    let release = entry.file_name();
    let root = dir.join("modules");
    let private = root.join("lib/modules").join(&release);
    fs::create_dir_all(&private)?;
    std::os::unix::fs::symlink(entry.path().join("kernel"), private.join("kernel"))?;
    for list in [
        "modules.order",
        "modules.builtin",
        "modules.builtin.modinfo",
    ] {
        if entry.path().join(list).exists() {
            fs::copy(entry.path().join(list), private.join(list))?;
        }
    }
    let status = Command::new("depmod")
        .arg("-b")
        .arg(&root)
        .arg(&release)
        .status()?;
    if !status.success() {
        bail!("depmod failed: {status}");
    }
    Ok(root)
}

fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// Waits for the guest, then ends what is left of its process group. Says whether it ended itself.
fn wait(mut guest: Child, timeout: Duration) -> Result<bool> {
    let mut left = timeout;
    let finished = loop {
        if guest.try_wait()?.is_some() {
            break true;
        }
        if left.is_zero() {
            break false;
        }
        std::thread::sleep(POLL);
        left = left.saturating_sub(POLL);
    };
    if let Some(group) = rustix::process::Pid::from_raw(guest.id().cast_signed()) {
        // The group may be empty by now; then there is nothing to end.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    guest.wait()?;
    Ok(finished)
}
