//! Clients that die in the middle, many at a time, and peers that speak half a sentence: the daemon goes on, and holds nothing of
//! theirs.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use thinmap_tests::world::{World, can_make_block_devices};

use crate::arms;

/// What the daemon has open and how many threads it runs.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Holdings {
    threads: usize,
    descriptors: Vec<String>,
}

fn holdings(pid: i32) -> Holdings {
    let entries =
        |dir: &str| std::fs::read_dir(format!("/proc/{pid}/{dir}")).expect("the daemon lives");
    let kind = |link: PathBuf| {
        let target = std::fs::read_link(link).unwrap_or_default();
        let target = target.display().to_string();
        // Of sockets and the like the kind, not the number.
        target.split(":[").next().unwrap_or_default().to_owned()
    };
    let mut descriptors: Vec<String> = entries("fd").flatten().map(|fd| kind(fd.path())).collect();
    descriptors.sort();
    Holdings {
        threads: entries("task").count(),
        descriptors,
    }
}

/// Waits until the daemon holds what it held before. What a dead client had asked for is done all the same, and may be done after
/// everything was removed.
#[track_caller]
fn settles(world: &World, pid: i32, before: &Holdings) {
    let deadline = Instant::now() + Duration::from_secs(15);
    let mut now = holdings(pid);
    while now != *before && Instant::now() < deadline {
        world.sh("dmsetup remove_all --force");
        std::thread::sleep(Duration::from_millis(50));
        now = holdings(pid);
    }
    assert_eq!(now, *before);
}

/// A daemon that has done everything once, so that what it makes at first use is made.
fn warm_world() -> (World, i32, Holdings) {
    let world = World::new();
    world.sh("dmsetup create w --table '0 8 zero'; dmsetup remove w");
    let pid = world.daemon_pid().expect("a daemon runs");
    // Its own threads of that removal may still be ending.
    std::thread::sleep(Duration::from_millis(300));
    (world, pid, holdings(pid))
}

fn crowd(option: &str, clients: u32) {
    let (world, pid, before) = warm_world();
    let (with_disk, probe) = (arms::with_disk(), arms::probe());
    let script = format!(
        "{with_disk}
         thinmap run {option} -- /usr/bin/python3 {}/crowd.py $disk 1000 {clients}",
        probe.display()
    );
    let said = world.sh(&script);
    let expected = format!("{clients} killed, 0 ended early, 0 devices left, ");
    let calls: Option<u32> = said
        .strip_prefix(&expected)
        .and_then(|rest| rest.strip_suffix(" calls\n")?.parse().ok());
    println!("{said}");
    assert!(
        calls.is_some_and(|calls| calls > clients),
        "{said}{}",
        world.daemon_log()
    );
    assert_eq!(world.daemon_pid(), Some(pid), "it is the same daemon");
    settles(&world, pid, &before);
    // And it still does its work.
    world.sh("dmsetup create w --table '0 8 zero'; dmsetup status w | grep -qx '0 8 zero *'; dmsetup remove w");
    world.end();
}

#[test]
fn two_hundred_clients_are_killed_in_the_middle() {
    if can_make_block_devices("two_hundred_clients_are_killed_in_the_middle") {
        crowd("", 200);
    }
}

#[test]
fn supervised_clients_are_killed_in_the_middle() {
    if can_make_block_devices("supervised_clients_are_killed_in_the_middle") {
        crowd("--static", 40);
    }
}

#[test]
fn peers_that_speak_half_a_sentence() {
    if !can_make_block_devices("peers_that_speak_half_a_sentence") {
        return;
    }
    let (world, pid, before) = warm_world();
    let socket = world.path().join("run/control.sock");
    let connect = || UnixStream::connect(&socket).expect("the daemon listens");
    let head = |kind: u32, nr: u32, len: u32| {
        let words = [kind, nr, len].map(u32::to_le_bytes).concat();
        [b"TMC1".as_slice(), &words].concat()
    };
    let status = head(1, 7, 312);
    let mut kept = Vec::new();
    for cut in 0..status.len() {
        let mut peer = connect();
        peer.write_all(&status[..cut]).expect("sent");
        // Half of them go, half stay and say nothing more.
        if cut % 2 == 0 {
            kept.push(peer);
        }
    }
    for sentence in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 4096],
        head(9, 0, 0),
        head(1, 7, u32::MAX),
        [head(1, u32::MAX, 4), vec![0; 4]].concat(),
        [head(2, 0, 3), b"{}x".to_vec()].concat(),
        head(1, 9, 64 << 20),
        [head(1, 8, 312), vec![0xff; 200]].concat(),
    ] {
        let mut peer = connect();
        peer.write_all(&sentence).expect("sent");
        peer.shutdown(Shutdown::Write).expect("closed");
        let mut answer = Vec::new();
        // Whatever it is answered, or not, it is over: the daemon waits for no more of it.
        peer.read_to_end(&mut answer).map_or_else(
            |error| assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
            |_| assert!(answer.is_empty() || answer.starts_with(b"TMC1")),
        );
    }
    // One asks and never takes the answers.
    let mut deaf = connect();
    deaf.set_nonblocking(true).expect("set");
    let version = [head(1, 0, 12), [4_u32, 0, 0].map(u32::to_le_bytes).concat()].concat();
    while deaf.write_all(&version).is_ok() {}
    world.sh("dmsetup create w --table '0 8 zero'; dmsetup remove w");
    drop((kept, deaf));
    settles(&world, pid, &before);
    world.end();
}
