//! `multipath`: requests that a path fails take another one, wait for one, or fail; each ends once, with its data.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

#[path = "thin_support/manual.rs"]
mod manual;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use manual::{ManualSpawner, ManualTime};
use parking_lot::Mutex;
use support::delayed::Delayed;
use support::*;
use thinmap_block::{BlockDevice, EndIo, Io, Op};
use thinmap_dm::{
    DeviceError, Environment, MappedDevice, Registry, SharedState, StatusKind, SuspendFlags,
    WhichTable,
};
use thinmap_runtime::IoBuf;
use thinmap_targets::NoPathTimeout;
use thinmap_units::{BlkStatus, DevNo, DmName, Sector};

const SIZE: u64 = 64;

/// Paths `p0`, `p1`, ... to one device, and a mapped device over them.
struct Lab {
    world: Arc<World>,
    disk: Arc<dyn BlockDevice>,
    paths: Vec<Arc<Double>>,
    dev: Arc<MappedDevice>,
}

impl Lab {
    fn new(paths: usize, features: &str) -> Self {
        let world = World::new();
        let disk: Arc<dyn BlockDevice> = world.memory("disk", SIZE);
        let paths: Vec<_> = (0..paths).map(|_| Double::new(disk.clone())).collect();
        for (nr, path) in paths.iter().enumerate() {
            world.add(&format!("p{nr}"), path.clone());
        }
        let dev = world.live("m", &table(paths.len(), features));
        Self {
            world,
            disk,
            paths,
            dev,
        }
    }

    fn say(&self, words: &str) -> Result<Option<String>, DeviceError> {
        say(&self.dev, words)
    }

    fn status(&self) -> String {
        line(&self.dev, StatusKind::Info)
    }

    /// Makes a path's next request fail, and all that follow.
    fn break_path(&self, nr: usize, status: BlkStatus) {
        *self.paths[nr].fail_with.lock() = status;
        self.paths[nr].fail_in.store(0, Ordering::SeqCst);
    }
}

fn table(paths: usize, features: &str) -> String {
    let names: Vec<String> = (0..paths).map(|nr| format!("p{nr}")).collect();
    let names = names.join(" ");
    format!("0 {SIZE} multipath {features} 0 1 1 round-robin 0 {paths} 0 {names}")
}

fn say(dev: &MappedDevice, words: &str) -> Result<Option<String>, DeviceError> {
    let argv: Vec<String> = words.split(' ').map(str::to_owned).collect();
    dev.message(Sector(0), &argv)
}

fn line(dev: &MappedDevice, kind: StatusKind) -> String {
    dev.table_status(kind, WhichTable::Live, false).unwrap()[0]
        .text
        .clone()
}

/// Ends of requests, by their tag.
#[derive(Default)]
struct Ends(Mutex<Vec<(u64, BlkStatus, usize)>>);

impl EndIo for Ends {
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        let address = io.buf.as_slice().as_ptr() as usize;
        self.0.lock().push((tag, status, address));
    }
}

impl Ends {
    /// Submits a write of one sector and says where its data lie.
    fn write(self: &Arc<Self>, dev: &dyn BlockDevice, sector: u64) -> usize {
        let mut buf = IoBuf::alloc(512);
        buf.as_mut_slice().fill(sector as u8 + 1);
        let address = buf.as_slice().as_ptr() as usize;
        dev.submit(Io::write(Sector(sector), buf, self.clone(), sector));
        address
    }

    fn count(&self) -> usize {
        self.0.lock().len()
    }
}

const SCRIPT: &[(Op, u64, u64)] = &[
    (Op::Write, 0, 3),
    (Op::Write, 8, 30),
    (Op::Flush, 0, 0),
    (Op::Read, 0, 48),
    (Op::WriteZeroes, 0, 4),
    (Op::Discard, 60, 4),
    (Op::Read, 47, 1),
];

#[test]
fn fault_each_request_of_a_path_in_turn_is_done_by_another() {
    for nth in 0.. {
        let lab = Lab::new(3, "0");
        lab.paths[1].fail_in.store(nth, Ordering::SeqCst);
        for (op, sector, len) in SCRIPT {
            assert_eq!(request(&*lab.dev, *op, *sector, *len), BlkStatus::Ok);
        }
        let failed = lab.status().contains("7:2 F 1");
        assert_eq!(lab.dev.info().event_nr, u32::from(failed));
        let requests: usize = lab.paths.iter().map(|p| p.seen.lock().len()).sum();
        assert_eq!(requests, SCRIPT.len() + usize::from(failed));
        if !failed {
            assert!(nth >= 2, "only {nth} requests took the path");
            return;
        }
    }
}

#[test]
fn fault_each_request_on_all_paths_in_turn_fails_one_request() {
    for nth in 0..SCRIPT.len() {
        let lab = Lab::new(3, "0");
        let mut failures = 0;
        for (at, (op, sector, len)) in SCRIPT.iter().enumerate() {
            if at == nth {
                (0..3).for_each(|nr| lab.break_path(nr, BlkStatus::IoErr));
            }
            match request(&*lab.dev, *op, *sector, *len) {
                BlkStatus::Ok => {}
                BlkStatus::IoErr => failures += 1,
                other => panic!("{op:?}: {other:?}"),
            }
        }
        // Without a path everything fails that comes later.
        assert_eq!(failures, SCRIPT.len() - nth);
        // Left when a request finds no path in it, not when its last one fails.
        let letter = if nth + 1 == SCRIPT.len() { 'A' } else { 'E' };
        let status = format!("2 0 0 0 1 1 {letter} 0 3 0 7:1 F 1 7:2 F 1 7:3 F 1 ");
        assert_eq!(lab.status(), status);
        assert_eq!(lab.dev.info().event_nr, 3);
        lab.say("reinstate_path p1").unwrap();
        assert_eq!(request(&*lab.dev, Op::Read, 0, SIZE), BlkStatus::Ok);
    }
}

#[test]
fn errors_of_the_device_itself_fail_no_path() {
    use BlkStatus::*;
    let own = [
        NoSpc,
        NotSupp,
        Inval,
        Medium,
        Target,
        ReservationConflict,
        Protection,
    ];
    for status in own {
        let lab = Lab::new(2, "1 queue_if_no_path");
        lab.break_path(0, status);
        assert_eq!(request(&*lab.dev, Op::Write, 0, 8), status);
        assert_eq!(lab.status(), "2 0 0 0 1 1 A 0 2 0 7:1 A 0 7:2 A 0 ");
        assert_eq!(lab.paths[1].seen.lock().len(), 0);
    }
}

#[test]
fn a_request_is_whole_again_when_it_takes_another_path() {
    let lab = Lab::new(1, "0");
    // The first path shifts what comes to it, and tells of its failure afterwards.
    lab.world.memory("elsewhere", 256);
    let low = lab
        .world
        .live("low", "0 20 linear elsewhere 128\n20 44 error");
    let table = format!("0 {SIZE} multipath 0 0 2 1 round-robin 0 1 0 low round-robin 0 1 0 p0");
    let m = lab.world.live("m2", &table);
    assert!(write_fill(&*m, 4, 8, 7).is_ok());
    assert_eq!(read_bytes(&*lab.disk, 4, 8).0, vec![0; 8 * 512]);
    // Cut at the border of the lines below: the front was written there, the whole is written here.
    let mut buf = IoBuf::alloc(16 * 512);
    for (at, byte) in buf.as_mut_slice().iter_mut().enumerate() {
        *byte = (at / 100) as u8;
    }
    let data = buf.as_slice().to_vec();
    assert!(thinmap_block::write(&*m, Sector(12), buf).1.is_ok());
    assert_eq!(read_bytes(&*lab.disk, 12, 16).0, data);
    assert_eq!(read_bytes(&*m, 12, 16).0, data);
    assert_eq!(
        line(&m, StatusKind::Info),
        "2 0 0 0 2 2 E 0 1 0 253:1 F 1 A 0 1 0 7:1 A 0 "
    );
    // The table below is put right, and the path used again when somebody says so.
    load(&low, &format!("0 {SIZE} linear elsewhere 128")).unwrap();
    low.suspend(SuspendFlags::default()).unwrap();
    resume(&low).unwrap();
    say(&m, "reinstate_path 253:1").unwrap();
    say(&m, "switch_group 1").unwrap();
    assert_eq!(read_bytes(&*m, 4, 8).0, vec![7; 8 * 512]);
}

#[test]
fn requests_wait_for_a_path_as_they_came() {
    let lab = Lab::new(2, "1 queue_if_no_path");
    lab.break_path(0, BlkStatus::IoErr);
    lab.break_path(1, BlkStatus::IoErr);
    let ends = Arc::new(Ends::default());
    let addresses: Vec<usize> = (0..SIZE).map(|at| ends.write(&*lab.dev, at)).collect();
    assert_eq!(ends.count(), 0);
    assert_eq!(lab.status(), "2 0 0 0 1 1 E 0 2 0 7:1 F 1 7:2 F 1 ");
    lab.paths[1].fail_in.store(-1, Ordering::SeqCst);
    lab.say("reinstate_path p1").unwrap();
    let mut ended = ends.0.lock().clone();
    ended.sort_unstable_by_key(|(tag, ..)| *tag);
    assert_eq!(ended.len() as u64, SIZE);
    for ((tag, status, address), came) in ended.into_iter().zip(addresses) {
        assert_eq!((status, address), (BlkStatus::Ok, came), "{tag}");
        assert_eq!(read_bytes(&*lab.disk, tag, 1).0, vec![tag as u8 + 1; 512]);
    }
}

#[test]
fn requests_that_wait_fail_when_they_may_no_longer() {
    let lab = Lab::new(1, "1 queue_if_no_path");
    lab.say("fail_path 7:1").unwrap();
    let ends = Arc::new(Ends::default());
    for at in 0..SIZE {
        ends.write(&*lab.dev, at);
    }
    assert_eq!(ends.count(), 0);
    lab.say("fail_if_no_path").unwrap();
    assert_eq!(ends.count() as u64, SIZE);
    assert!(ends.0.lock().iter().all(|end| end.1 == BlkStatus::IoErr));
    assert_eq!(lab.paths[0].seen.lock().len(), 0);
    assert!(line(&lab.dev, StatusKind::Table).starts_with("0 0 1 1 "));
}

#[test]
fn a_suspend_without_flush_keeps_what_waits_for_the_next_table() {
    for mode in ["rq", "bio"] {
        let lab = Lab::new(2, &format!("3 queue_if_no_path queue_mode {mode}"));
        lab.say("fail_path p0").unwrap();
        lab.say("fail_path p1").unwrap();
        let ends = Arc::new(Ends::default());
        ends.write(&*lab.dev, 5);
        lab.dev.suspend(NOFLUSH).unwrap();
        ends.write(&*lab.dev, 6);
        assert_eq!(ends.count(), 0);
        load(&lab.dev, &table(2, "1 queue_if_no_path")).unwrap();
        resume(&lab.dev).unwrap();
        assert_eq!(ends.count(), 2);
        assert_eq!(read_bytes(&*lab.disk, 5, 1).0, vec![6; 512]);
        // The other way: resumed as it was, it waits on.
        lab.say("fail_path p0").unwrap();
        lab.say("fail_path p1").unwrap();
        ends.write(&*lab.dev, 7);
        lab.dev.suspend(NOFLUSH).unwrap();
        resume(&lab.dev).unwrap();
        assert_eq!(ends.count(), 2);
        lab.say("reinstate_path p0").unwrap();
        assert_eq!(ends.count(), 3);
        assert!(ends.0.lock().iter().all(|end| end.1.is_ok()));
    }
}

#[test]
fn a_request_that_fails_during_a_suspend_without_flush_is_not_lost() {
    let lab = Lab::new(1, "0");
    lab.paths[0].hold.store(true, Ordering::SeqCst);
    let ends = Arc::new(Ends::default());
    ends.write(&*lab.dev, 3);
    let held = lab.paths[0].held.lock().pop().unwrap();
    let dev = lab.dev.clone();
    let suspend = std::thread::spawn(move || dev.suspend(NOFLUSH));
    // It waits for the request, which fails once the suspend is under way.
    while !lab.dev.is_suspended() && !line_is_pushing_back(&lab) {
        std::thread::yield_now();
    }
    held.complete(BlkStatus::IoErr);
    suspend.join().unwrap().unwrap();
    assert_eq!(ends.count(), 0);
    lab.paths[0].hold.store(false, Ordering::SeqCst);
    load(&lab.dev, &table(1, "0")).unwrap();
    resume(&lab.dev).unwrap();
    assert_eq!(ends.0.lock()[0].1, BlkStatus::Ok);
}

/// Whether a suspend has begun: a request that comes then is held.
fn line_is_pushing_back(lab: &Lab) -> bool {
    let before = lab.paths[0].held.lock().len();
    lab.dev.submit(Io::flush(Arc::new(Ends::default()), 0));
    let after = std::mem::take(&mut *lab.paths[0].held.lock());
    let reached = after.len() > before;
    after.into_iter().for_each(|io| io.complete(BlkStatus::Ok));
    !reached
}

#[test]
fn a_suspend_with_flush_and_a_removal_fail_what_waits() {
    let lab = Lab::new(1, "1 queue_if_no_path");
    lab.say("fail_path p0").unwrap();
    let ends = Arc::new(Ends::default());
    ends.write(&*lab.dev, 0);
    lab.dev.suspend(SuspendFlags::default()).unwrap();
    assert_eq!(ends.0.lock()[0].1, BlkStatus::IoErr);
    let refused = lab.say("reinstate_path p0").unwrap_err();
    assert_eq!(refused.errno(), 16);
    resume(&lab.dev).unwrap();
    assert!(line(&lab.dev, StatusKind::Table).starts_with("1 queue_if_no_path 0 "));
    ends.write(&*lab.dev, 1);
    assert_eq!(ends.count(), 1);
    lab.dev.destroy();
    assert_eq!(ends.0.lock()[1].1, BlkStatus::IoErr);
}

#[test]
fn a_thousand_paths_that_fail_at_once_do_not_nest() {
    let world = World::new();
    world.memory("good", SIZE);
    let names = vec!["low"; 1023].join(" ");
    world.live("low", &format!("0 {SIZE} error"));
    let m = world.live(
        "m",
        &format!("0 {SIZE} multipath 0 0 2 1 round-robin 0 1023 0 {names} round-robin 0 1 0 good"),
    );
    // On a small stack.
    let ended = std::thread::Builder::new()
        .stack_size(128 << 10)
        .spawn(move || (write_fill(&*m, 0, 1, 1), line(&m, StatusKind::Info)))
        .unwrap();
    let (status, info) = ended.join().unwrap();
    assert_eq!(status, BlkStatus::Ok);
    assert_eq!(info.matches(" F 1 ").count(), 1023);
    assert!(info.ends_with("A 0 1 0 7:0 A 0 "), "{info}");
}

#[test]
fn no_write_is_lost_while_paths_come_and_go() {
    let world = World::new();
    let disk = world.memory("disk", 4096);
    for nr in 0..4 {
        world.add(&format!("p{nr}"), Delayed::new(disk.clone(), nr));
    }
    let selector = [
        "round-robin",
        "queue-length",
        "service-time",
        "historical-service-time",
    ];
    for selector in selector {
        let dev = world.live(
            &format!("m-{selector}"),
            &format!("0 4096 multipath 1 queue_if_no_path 0 1 1 {selector} 0 4 0 p0 p1 p2 p3"),
        );
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4u64)
                .map(|writer| {
                    let dev = &dev;
                    scope.spawn(move || {
                        for round in 0..300u64 {
                            let sector = writer * 1024 + round * 7 % 1000;
                            let byte = (writer * 64 + round) as u8;
                            assert!(write_fill(&**dev, sector, 3, byte).is_ok());
                            assert_eq!(read_bytes(&**dev, sector, 3).0, vec![byte; 3 * 512]);
                        }
                    })
                })
                .collect();
            scope.spawn(|| {
                for round in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let path = (round * 3) % 4;
                    say(&dev, &format!("fail_path p{path}")).unwrap();
                    say(&dev, &format!("fail_path p{}", (path + 1) % 4)).unwrap();
                    std::thread::yield_now();
                    say(&dev, &format!("reinstate_path p{path}")).unwrap();
                    say(&dev, &format!("reinstate_path p{}", (path + 1) % 4)).unwrap();
                }
            });
            for writer in writers {
                writer.join().unwrap();
            }
            stop.store(true, Ordering::SeqCst);
        });
        let info = line(&dev, StatusKind::Info);
        dev.suspend(SuspendFlags::default()).unwrap();
        // Nothing is on its way, and the counters say so.
        let idle = line(&dev, StatusKind::Info);
        match selector {
            "queue-length" => assert_eq!(idle.matches(" 0 7:").count(), 3, "{info}: {idle}"),
            "service-time" => assert_eq!(idle.matches(" 0 1 7:").count(), 3, "{info}: {idle}"),
            _ => {}
        }
        dev.destroy();
    }
}

#[test]
fn waiting_for_a_path_ends_with_its_time() {
    let time = Arc::new(ManualTime::default());
    let world = World::new();
    let disk = world.memory("p0", SIZE);
    let env = Arc::new(Environment {
        opener: world.clone(),
        clock: time.clone(),
        spawner: Arc::new(ManualSpawner(time.clone())),
        freezer: None,
        shared: SharedState::default(),
    });
    env.shared.of::<NoPathTimeout>().set_seconds(30);
    let name = DmName::new("m").unwrap();
    let registry = Registry::new(thinmap_targets::ALL);
    let dev = MappedDevice::new(env, registry, DevNo::new(253, 0), name, None);
    load(&dev, &table(1, "1 queue_if_no_path")).unwrap();
    resume(&dev).unwrap();
    let ends = Arc::new(Ends::default());
    say(&dev, "fail_path p0").unwrap();
    ends.write(&*dev, 0);
    time.advance(Duration::from_secs(29));
    // Its time begins anew with each loss of the last path.
    say(&dev, "reinstate_path p0").unwrap();
    assert_eq!(ends.0.lock()[0].1, BlkStatus::Ok);
    say(&dev, "fail_path p0").unwrap();
    ends.write(&*dev, 1);
    time.advance(Duration::from_secs(29));
    assert!(line(&dev, StatusKind::Table).starts_with("1 queue_if_no_path "));
    time.advance(Duration::from_secs(1));
    while ends.count() < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(ends.0.lock()[1].1, BlkStatus::IoErr);
    assert!(line(&dev, StatusKind::Table).starts_with("0 0 1 1 "));
    assert_eq!(write_fill(&*dev, 0, 1, 1), BlkStatus::IoErr);
    dev.destroy();
    drop(disk);
}

#[test]
fn a_table_line_constructs_the_same_table_again() {
    let world = World::new();
    world.memory("7:0", SIZE);
    world.memory("7:1", SIZE);
    for table in [
        "8 queue_if_no_path pg_init_retries 3 pg_init_delay_msecs 10 retain_attached_hw_handler queue_mode bio 0 2 2 \
         round-robin 0 1 1 7:0 1 service-time 0 2 2 7:1 1 100 7:0 0 0 ",
        "2 pg_init_retries 3 1 alua 1 1 queue-length 0 2 1 7:0 0 7:1 1 ",
        "0 0 1 1 historical-service-time 2 1000 5 1 1 7:0 0 ",
        "1 queue_if_no_path 0 0 0 ",
    ] {
        let dev = world.live("again", &format!("0 8 multipath {table}"));
        assert_eq!(line(&dev, StatusKind::Table), table);
        dev.destroy();
    }
}

#[test]
fn flushes_and_discards_take_one_path() {
    let lab = Lab::new(2, "0");
    assert_eq!(request(&*lab.dev, Op::Flush, 0, 0), BlkStatus::Ok);
    assert_eq!(request(&*lab.dev, Op::Discard, 8, 16), BlkStatus::Ok);
    let seen = |nr: usize| lab.paths[nr].seen.lock().clone();
    assert_eq!(
        (seen(0), seen(1)),
        (vec![(Op::Flush, 0, 0)], vec![(Op::Discard, 8, 16)])
    );
}

/// Message, text of the error, errno.
const WRONG: &[(&str, &str, i32)] = &[
    (
        "hello",
        "Invalid multipath message arguments. Expected 2 arguments, got 1.",
        22,
    ),
    (
        "fail_path p0 p1",
        "Invalid multipath message arguments. Expected 2 arguments, got 3.",
        22,
    ),
    (
        "hello p0",
        "Unrecognised multipath message received: hello",
        22,
    ),
    (
        "queue_if_no_path 1",
        "Unrecognised multipath message received: queue_if_no_path",
        22,
    ),
    (
        "fail_path nowhere",
        "message: error getting device nowhere: nowhere: no such device",
        19,
    ),
    ("reinstate_path disk", "disk: no path of this device", 22),
    (
        "disable_group x",
        "invalid PG number supplied to bypass_pg: 'x'",
        22,
    ),
    (
        "enable_group 0",
        "invalid PG number supplied to bypass_pg: '0'",
        22,
    ),
    (
        "switch_group 2",
        "invalid PG number supplied to switch_pg_num: '2'",
        22,
    ),
];

#[test]
fn wrong_messages_are_refused_with_their_reason() {
    let lab = Lab::new(2, "0");
    for (words, reason, errno) in WRONG {
        let error = lab.say(words).unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.errno()),
            (*reason, *errno),
            "{words}"
        );
    }
    assert_eq!(lab.status(), "2 1 0 0 1 1 E 0 2 0 7:1 A 0 7:2 A 0 ");
    assert_eq!(lab.dev.info().event_nr, 0);
}

#[test]
fn whoever_waits_for_an_event_hears_of_a_path() {
    let lab = Lab::new(2, "0");
    let dev = lab.dev.clone();
    let never = AtomicU32::new(0);
    let waits = std::thread::spawn(move || dev.wait_event(never.load(Ordering::SeqCst), &|| false));
    lab.break_path(0, BlkStatus::IoErr);
    assert_eq!(request(&*lab.dev, Op::Read, 0, 1), BlkStatus::Ok);
    assert_eq!(waits.join().unwrap(), 1);
}
