//! A world for one test: its own daemon, directories and files, all gone at the end.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// Where a test lives.
pub struct World {
    dir: tempfile::TempDir,
    run_dir: PathBuf,
    dev_dir: PathBuf,
    keeper: bool,
}

/// Whether block-device tests can run; says `SKIP` when they cannot.
pub fn can_make_block_devices(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    for (there, what) in [
        (root, "root"),
        (Path::new("/dev/fuse").exists(), "/dev/fuse"),
        (Path::new("/dev/loop-control").exists(), "/dev/loop-control"),
    ] {
        if !there {
            println!("SKIP {test}: needs {what}");
            return false;
        }
    }
    true
}

/// The binary under test.
pub fn thinmap() -> PathBuf {
    let binary = std::env::var_os("THINMAP_BIN")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/thinmap"));
    binary
        .canonicalize()
        .unwrap_or_else(|e| panic!("{}: {e}: run `make build` first", binary.display()))
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// A world with directories of its own, on the temporary file system.
    pub fn new() -> Self {
        Self::inside(&std::env::temp_dir())
    }

    /// A world whose daemons have no keeper: when one is killed, its devices go with it.
    pub fn without_keeper() -> Self {
        let mut world = Self::new();
        world.keeper = false;
        world
    }

    /// A world whose daemon, started here, may die as often as it likes.
    pub fn lasting() -> Self {
        let world = Self::new();
        world.sh("printf '[continuity]\ndeaths_max = 0\n' > config.toml
             thinmap daemon --detach --config config.toml");
        world
    }

    /// A world whose files lie under `parent`.
    pub fn inside(parent: &Path) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("thinmap-e2e.")
            .tempdir_in(parent)
            .expect("temporary directory");
        let (run_dir, dev_dir) = (dir.path().join("run"), dir.path().join("mapper"));
        Self::with_directories(dir, run_dir, dev_dir)
    }

    /// A world that uses the directories a user gets who sets nothing: /run/thinmap and /dev/mapper.
    pub fn with_default_directories() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("thinmap-e2e.")
            .tempdir()
            .expect("temporary directory");
        Self::with_directories(dir, "/run/thinmap".into(), "/dev/mapper".into())
    }

    fn with_directories(dir: tempfile::TempDir, run_dir: PathBuf, dev_dir: PathBuf) -> Self {
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).expect("bin directory");
        for name in ["dmsetup", "thinmap"] {
            std::os::unix::fs::symlink(thinmap(), bin.join(name)).expect("link to the binary");
        }
        Self {
            dir,
            run_dir,
            dev_dir,
            keeper: true,
        }
    }

    /// The world's own directory: the scripts' working directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where device nodes appear.
    pub fn dev_dir(&self) -> &Path {
        &self.dev_dir
    }

    /// A command in this world.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(program);
        command
            .current_dir(self.path())
            .env(
                "PATH",
                format!(
                    "{}:{path}:/usr/sbin:/sbin",
                    self.path().join("bin").display()
                ),
            )
            .env("THINMAP_RUN_DIR", &self.run_dir)
            .env("THINMAP_DEV_DIR", &self.dev_dir)
            .env("M", &self.dev_dir)
            .env("RUN", &self.run_dir)
            .env("THINMAP_NO_KEEPER", if self.keeper { "" } else { "1" })
            .stdin(Stdio::null());
        command
    }

    /// Runs a bash script (`set -eu`); `$M` is the device directory, `$RUN` the run directory.
    pub fn try_sh(&self, script: &str) -> Output {
        self.command("bash")
            .args(["-euo", "pipefail", "-c", script])
            .output()
            .expect("bash runs")
    }

    /// Runs a script that must succeed; its standard output.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let output = self.try_sh(script);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{script}\n{}\nstdout: {stdout}\nstderr: {}\ndaemon log: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.daemon_log(),
        );
        stdout
    }

    /// Runs a script that must fail; its standard error.
    #[track_caller]
    pub fn fails(&self, script: &str) -> String {
        let output = self.try_sh(script);
        assert!(
            !output.status.success(),
            "{script}\nsucceeded and should not"
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// The end of the daemon's log.
    pub fn daemon_log(&self) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(&self.run_dir)
            .into_iter()
            .flatten()
            .flatten()
        {
            let is_log = entry.path().extension().is_some_and(|e| e == "log");
            // `state.log` is no text for people, and long.
            if is_log && entry.file_name() != "state.log" {
                text += &std::fs::read_to_string(entry.path()).unwrap_or_default();
            }
        }
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// The daemon's process, found by its run directory (never another one's).
    pub fn daemon_pid(&self) -> Option<i32> {
        let answer = self
            .command("thinmap")
            .args(["--no-autostart", "ping"])
            .output()
            .ok()?;
        let text = String::from_utf8(answer.stdout).ok()?;
        text.lines()
            .find_map(|line| line.strip_prefix("process:"))?
            .trim()
            .parse()
            .ok()
    }

    /// A script that runs beside the test, and says nothing.
    pub fn start(&self, script: &str) -> Ended {
        let mut bash = self.command("bash");
        bash.args(["-euc", script])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ended(bash.spawn().expect("bash runs"))
    }

    /// Ends the daemon the hard way and waits until it is gone.
    pub fn kill_daemon(&self) {
        let pid = self.daemon_pid().expect("a daemon runs");
        kill_and_wait(pid);
    }

    /// A data and a metadata file and a pool on them, named `pool`, with 64 KiB blocks.
    pub fn make_pool(&self, data: &str, features: &str) {
        self.sh(&format!(
            "truncate -s {data} data.img; truncate -s 64M meta.img
             sectors=$(( $(stat -c %s data.img) / 512 ))
             dmsetup create pool --table \"0 $sectors thin-pool $PWD/meta.img $PWD/data.img 128 0 {features}\""
        ));
    }

    /// A thin volume of the pool, created and active.
    pub fn make_thin(&self, id: u32, name: &str, sectors: u64) {
        self.sh(&format!(
            "dmsetup message pool 0 'create_thin {id}'
             dmsetup create {name} --table \"0 {sectors} thin $M/pool {id}\""
        ));
    }

    /// What of this world is still in the kernel: loop devices, mounts, nodes.
    pub fn leftovers(&self) -> Vec<String> {
        let own = self.dir.path().display().to_string();
        let run = self.run_dir.display().to_string();
        let mut left = Vec::new();
        for entry in std::fs::read_dir("/sys/block")
            .into_iter()
            .flatten()
            .flatten()
        {
            let file = entry.path().join("loop/backing_file");
            let backing = std::fs::read_to_string(file).unwrap_or_default();
            if backing.starts_with(&own) || backing.starts_with(&run) {
                left.push(format!(
                    "{}: {}",
                    entry.file_name().display(),
                    backing.trim()
                ));
            }
        }
        for line in std::fs::read_to_string("/proc/self/mountinfo")
            .unwrap_or_default()
            .lines()
        {
            if line.contains(&own) || line.contains(&format!(" {run}/")) {
                left.push(format!("mount {line}"));
            }
        }
        for entry in std::fs::read_dir(&self.dev_dir)
            .into_iter()
            .flatten()
            .flatten()
        {
            // The control node is nobody's device: libdevmapper makes one where it finds a driver.
            if entry.file_name() != "control" {
                left.push(format!("node {}", entry.path().display()));
            }
        }
        left
    }

    /// Stops the daemon in good order; nothing may be left.
    #[track_caller]
    pub fn end(self) {
        self.sh("thinmap --no-autostart stop");
        let left = self.leftovers();
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A world that was ended has nothing to do here; a failed test's is taken down by force.
        let own = self.dir.path().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut points: Vec<&str> = mounts
            .lines()
            .filter_map(|l| l.split(' ').nth(4))
            .filter(|p| p.starts_with(&own) && !p.starts_with(&format!("{own}/run")))
            .collect();
        points.reverse();
        for point in points {
            let _ = Command::new("umount").args(["-l", point]).status();
        }
        let pid = self.daemon_pid();
        let _ = self
            .command("thinmap")
            .args(["--no-autostart", "stop", "--force"])
            .output();
        if let Some(pid) = pid {
            kill_and_wait(pid);
        }
        for entry in std::fs::read_dir("/sys/block")
            .into_iter()
            .flatten()
            .flatten()
        {
            let backing =
                std::fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
            if backing.starts_with(&own) {
                let _ = Command::new("losetup")
                    .arg("-d")
                    .arg(Path::new("/dev").join(entry.file_name()))
                    .status();
            }
        }
        let _ = Command::new("umount")
            .args(["-l", &format!("{own}/run/fuse")])
            .stderr(Stdio::null())
            .status();
    }
}

/// A child that does not outlive its user, also when a test fails.
pub struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends SIGKILL to a process and waits until it is gone.
pub fn kill_and_wait(pid: i32) {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else {
        return;
    };
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    for _ in 0..500 {
        // A zombie of ours or of init is as good as gone, once its other threads have let go of its files.
        let proc = format!("/proc/{}", pid.as_raw_nonzero());
        let stat = std::fs::read_to_string(format!("{proc}/stat")).unwrap_or_default();
        let is_zombie = stat
            .rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('Z'));
        let threads = std::fs::read_dir(format!("{proc}/task")).map_or(0, Iterator::count);
        if stat.is_empty() || (is_zombie && threads <= 1) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("process {} does not die", pid.as_raw_nonzero());
}
