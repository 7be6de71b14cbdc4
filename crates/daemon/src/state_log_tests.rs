//! The file through removals, full directories and torn lines.

use std::os::fd::BorrowedFd;

use thinmap_block::QueueLimits;

use super::*;

fn saved(minor: u32, name: &str) -> SavedDevice {
    SavedDevice {
        name: name.to_owned(),
        uuid: None,
        major: 7,
        minor,
        file: 2,
        made_node: false,
        event_nr: 0,
        suspended: false,
        frozen: false,
        deferred_remove: false,
        nbd_clients: false,
        live: None,
        inactive: None,
        limits: QueueLimits::STACKING,
    }
}

/// A successor's log, with nothing held.
fn open(run_dir: &Path, keeper: &str) -> io::Result<(StateLog, Vec<SavedDevice>)> {
    open_with(run_dir, keeper, None, true)
}

fn open_with(
    run_dir: &Path,
    keeper: &str,
    holder: Option<Arc<Holder>>,
    is_successor: bool,
) -> io::Result<(StateLog, Vec<SavedDevice>)> {
    let file = holder.as_ref().and_then(|holder| holder.0.lock().take());
    let holder = holder.map(|holder| holder as Arc<dyn DescriptorKeeper>);
    let before = Before { file, is_successor };
    StateLog::open(run_dir, keeper, holder, before)
}

/// A keeper, as far as the log sees it.
#[derive(Default)]
struct Holder(Mutex<Option<OwnedFd>>);

impl DescriptorKeeper for Holder {
    fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        assert_eq!(name, HELD_AS);
        *self.0.lock() = Some(fd.try_clone_to_owned()?);
        Ok(())
    }
}

fn names(devices: &[SavedDevice]) -> Vec<(u32, &str)> {
    devices.iter().map(|d| (d.minor, d.name.as_str())).collect()
}

#[test]
fn the_last_word_on_each_device_counts() {
    let run = tempfile::tempdir().expect("a directory");
    let (log, none) = open(run.path(), "k").expect("open");
    assert_eq!(names(&none), []);
    for (minor, name) in [(2, "two"), (1, "one"), (3, "three"), (1, "renamed")] {
        log.put(saved(minor, name)).expect("put");
    }
    let mode = std::fs::metadata(run.path().join("state.log"))
        .expect("file")
        .mode();
    assert_eq!(mode & 0o777, 0o600, "others may not read it");
    log.remove(DevNo::new(7, 2));
    log.remove(DevNo::new(7, 9));
    drop(log);
    for _ in 0..2 {
        let (_, devices) = open(run.path(), "k").expect("open");
        assert_eq!(names(&devices), [(1, "renamed"), (3, "three")]);
    }
    let (_, devices) = open(run.path(), "another").expect("open");
    assert_eq!(names(&devices), []);
}

#[test]
fn a_line_without_its_end_was_not_answered_for() {
    let run = tempfile::tempdir().expect("a directory");
    let (log, _) = open(run.path(), "k").expect("open");
    log.put(saved(1, "one")).expect("put");
    let path = run.path().join("state.log");
    let before = std::fs::read(&path).expect("read");
    log.put(saved(1, "renamed")).expect("put");
    drop(log);
    let after = std::fs::read(&path).expect("read");
    for cut in before.len()..=after.len() {
        std::fs::write(&path, &after[..cut]).expect("write");
        let (_, devices) = open(run.path(), "k").expect("open");
        let name = if cut == after.len() { "renamed" } else { "one" };
        assert_eq!(names(&devices), [(1, name)]);
    }
}

#[test]
fn the_file_stays_small() {
    let run = tempfile::tempdir().expect("a directory");
    let (log, _) = open(run.path(), "k").expect("open");
    for number in 0..20_000 {
        log.put(saved(number % 3, &format!("name{number}")))
            .expect("put");
    }
    let size = std::fs::metadata(run.path().join("state.log")).expect("size");
    assert!(size.len() < 2 << 20, "{} bytes", size.len());
    drop(log);
    let (_, devices) = open(run.path(), "k").expect("open");
    let expected = [(0, "name19998"), (1, "name19999"), (2, "name19997")];
    assert_eq!(names(&devices), expected);
}

#[test]
fn a_file_that_somebody_removed_is_written_anew_or_read_from_the_keeper() {
    let run = tempfile::tempdir().expect("a directory");
    let path = run.path().join("state.log");
    let holder = Arc::new(Holder::default());
    let open = || open_with(run.path(), "k", Some(holder.clone()), true).expect("open");
    let (log, _) = open();
    log.put(saved(1, "one")).expect("put");
    std::fs::remove_file(&path).expect("removed");
    // Nothing was noted since: only the keeper has it.
    drop(log);
    let (log, devices) = open();
    assert_eq!(names(&devices), [(1, "one")]);
    assert!(path.exists(), "written anew");
    std::fs::remove_file(&path).expect("removed");
    log.put(saved(2, "two")).expect("put");
    assert!(path.exists(), "written anew");
    // Another file in its place is neither read nor added to.
    let put_another = || {
        std::fs::write(path.with_extension("other"), "{}\n").expect("written");
        std::fs::rename(path.with_extension("other"), &path).expect("renamed");
    };
    put_another();
    drop(log);
    let (log, devices) = open();
    assert_eq!(names(&devices), [(1, "one"), (2, "two")]);
    put_another();
    log.remove(DevNo::new(7, 1));
    drop(log);
    *holder.0.lock() = None;
    assert_eq!(names(&open().1), [(2, "two")]);
}

#[test]
fn a_removed_device_is_not_brought_back_by_what_is_written_later() {
    let run = tempfile::tempdir().expect("a directory");
    let (log, _) = open(run.path(), "k").expect("open");
    log.put(saved(1, "one")).expect("put");
    log.put(saved(2, "two")).expect("put");
    let away = run.path().with_extension("away");
    std::fs::rename(run.path(), &away).expect("renamed");
    log.remove(DevNo::new(7, 1));
    log.put(saved(3, "three")).expect_err("no directory");
    std::fs::rename(&away, run.path()).expect("renamed");
    log.put(saved(2, "renamed")).expect("put");
    drop(log);
    let (_, devices) = open(run.path(), "k").expect("open");
    assert_eq!(names(&devices), [(2, "renamed")]);
}

#[test]
fn a_successor_that_can_write_nothing_has_what_it_read() {
    let run = tempfile::tempdir().expect("a directory");
    let holder = Arc::new(Holder::default());
    let (log, _) = open_with(run.path(), "k", Some(holder.clone()), false).expect("open");
    log.put(saved(1, "one")).expect("put");
    drop(log);
    let away = run.path().with_extension("away");
    std::fs::rename(run.path(), &away).expect("renamed");
    let (log, devices) = open_with(run.path(), "k", Some(holder), true).expect("goes on");
    assert_eq!(names(&devices), [(1, "one")]);
    log.put(saved(2, "two")).expect_err("no directory");
    log.remove(DevNo::new(7, 1));
    // Without devices, too; a first daemon says so and does not start.
    assert_eq!(names(&open(run.path(), "k").expect("goes on").1), []);
    assert!(open_with(run.path(), "k", None, false).is_err());
    std::fs::rename(&away, run.path()).expect("renamed");
    log.put(saved(2, "two")).expect("put");
    drop(log);
    let (_, devices) = open(run.path(), "k").expect("open");
    assert_eq!(names(&devices), [(2, "two")]);
}
