//! Keys of crypt devices: in no core dump, in no log, and gone from memory when they are wiped.

use std::fs::File;
use std::os::unix::fs::FileExt;

use thinmap_tests::world::{World, can_make_block_devices};

/// Places of the daemon's memory where one of `wanted` stands.
#[derive(Debug, Default)]
struct Found {
    /// In memory that a core dump leaves out.
    hidden: usize,
    /// Elsewhere: the mapping and which it was.
    dumped: Vec<String>,
}

fn search(pid: i32, wanted: &[(&str, &[u8])]) -> Found {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("smaps");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("memory");
    let mut found = Found::default();
    let mut mapping = None;
    for line in maps.lines() {
        let range = line.split(' ').next().and_then(|range| {
            let (start, end) = range.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            Some((number(start)?, number(end)?))
        });
        if let Some((start, end)) = range {
            mapping = Some((start, end, line.to_owned()));
        }
        let Some(flags) = line.strip_prefix("VmFlags:") else {
            continue;
        };
        let Some((start, end, name)) = mapping.take() else {
            continue;
        };
        // What is shared with files is no place for keys, and may be huge.
        if !flags.contains(" wr") || flags.contains(" sh") {
            continue;
        }
        let is_hidden = flags.split_whitespace().any(|flag| flag == "dd");
        let bytes = usize::try_from(end - start).expect("a mapping's size");
        let mut content = vec![0; bytes];
        if memory.read_exact_at(&mut content, start).is_err() {
            continue;
        }
        for (what, text) in wanted {
            let times = content.windows(text.len()).filter(|at| at == text).count();
            if is_hidden {
                found.hidden += times;
            } else if times > 0 {
                found.dumped.push(format!("{times} x {what} in {name}"));
            }
        }
    }
    found
}

#[test]
fn a_key_is_in_hidden_memory_only_and_goes_with_its_wipe() {
    let test = "a_key_is_in_hidden_memory_only_and_goes_with_its_wipe";
    if !can_make_block_devices(test) {
        return;
    }
    let world = World::new();
    let mut key = vec![0; 64];
    let mut random = std::fs::File::open("/dev/urandom").expect("random bytes");
    std::io::Read::read_exact(&mut random, &mut key).expect("random bytes");
    let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(world.path().join("key"), &digits).expect("key");
    world.sh(
        "truncate -s 16M a.img
         echo \"0 32768 crypt aes-xts-plain64 $(cat key) 0 $PWD/a.img 0\" >table
         dmsetup create c <table
         dd if=/dev/urandom of=$M/c bs=1M count=16 oflag=direct status=none
         dd if=$M/c of=/dev/null bs=4k count=100 iflag=direct status=none
         dmsetup table --showkeys c | grep -q \" $(cat key) \"
         dmsetup suspend c; dmsetup message c 0 key set $(cat key); dmsetup resume c
         dmsetup message c 0 key set $(cat key) 2>/dev/null || true
         dmsetup create bad --table \"0 32768 crypt aes-xts-noiv $(cat key) 0 $PWD/a.img 0\" 2>/dev/null || true",
    );
    let pid = world.daemon_pid().expect("a daemon");
    // Both keys of XTS, as bytes and as digits; the expanded keys begin with the keys.
    let wanted: [(&str, &[u8]); 4] = [
        ("the first key", &key[..16]),
        ("the second key", &key[32..48]),
        ("digits of the first key", &digits.as_bytes()[..32]),
        ("digits of the second key", &digits.as_bytes()[64..96]),
    ];
    let live = search(pid, &wanted);
    assert!(live.hidden >= 2, "the search finds nothing: {live:?}");
    assert!(live.dumped.is_empty(), "{:#?}", live.dumped);
    let shown = world.sh("dmsetup table c");
    assert_eq!(shown.split(' ').nth(4), Some("0".repeat(128).as_str()));
    world.sh("dmsetup suspend c; dmsetup message c 0 key wipe");
    let wiped = search(pid, &wanted);
    assert!(
        wiped.hidden == 0 && wiped.dumped.is_empty(),
        "after the wipe: {wiped:#?}"
    );
    let log = world.daemon_log();
    assert!(!log.contains(&digits[..16]), "{log}");
    world.sh("dmsetup remove c");
    world.end();
}

/// The next daemon finds the key, and a wiped one stays wiped; no file has it.
#[test]
fn an_encrypted_file_system_survives_deaths_of_the_daemon() {
    if !can_make_block_devices("an_encrypted_file_system_survives_deaths_of_the_daemon") {
        return;
    }
    let world = World::lasting();
    world.sh("truncate -s 80M a.img; mkdir mnt
         head -c 64 /dev/urandom | od -An -tx1 | tr -d ' \\n' >key
         dmsetup create c --table \"0 163840 crypt aes-xts-plain64 $(cat key) 0 $PWD/a.img 0\"
         mkfs.ext4 -q $M/c; mount $M/c mnt");
    if world.daemon_log().contains("the key cannot be kept") {
        println!("SKIP deaths under a cipher: this kernel has no secret memory");
        world.sh("umount mnt; dmsetup remove c");
        world.end();
        return;
    }
    for round in 0..3 {
        world.sh(&format!(
            "head -c 4M /dev/urandom > f{round}; cp f{round} mnt/; sync -d mnt/f{round}
             head -c 4M /dev/urandom > g{round}; cp g{round} mnt/"
        ));
        world.kill_daemon();
        world.sh(&format!(
            "timeout 60 sync -f mnt; cmp f{round} mnt/f{round}; cmp g{round} mnt/g{round}"
        ));
    }
    let said = world.sh(
        "timeout 60 umount mnt; fsck.ext4 -fn $M/c >/dev/null 2>&1; mount $M/c mnt
         for round in 0 1 2; do cmp f$round mnt/f$round; cmp g$round mnt/g$round; done
         timeout 60 umount mnt
         dmsetup table --showkeys c | grep -c \" $(cat key) \"
         grep -rlaF $(head -c 32 key) run || echo in no file
         dmsetup suspend c; dmsetup message c 0 key wipe",
    );
    assert_eq!(said, "1\nin no file\n");
    world.kill_daemon();
    let said = world.sh("dmsetup info c | grep State
         dmsetup resume c 2>/dev/null || true; dmsetup info c | grep State
         dmsetup message c 0 key set $(cat key); dmsetup resume c
         fsck.ext4 -fn $M/c >/dev/null 2>&1; dmsetup info c | grep State
         dmsetup remove c");
    let states: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("State:"))
        .map(str::trim)
        .collect();
    assert_eq!(states, ["SUSPENDED", "SUSPENDED", "ACTIVE"], "{said}");
    world.end();
}

/// As when requests of the dead daemon's are still in flight on it: the next one tries again, and has the key all the same.
#[test]
fn a_key_outlives_a_backing_that_is_busy_at_first() {
    if !can_make_block_devices("a_key_outlives_a_backing_that_is_busy_at_first") {
        return;
    }
    let world = World::lasting();
    world.sh("truncate -s 16M a.img
         head -c 64 /dev/urandom | od -An -tx1 | tr -d ' \\n' >key
         dmsetup create c --table \"0 32768 crypt aes-xts-plain64 $(cat key) 0 $PWD/a.img 0\"
         head -c 1M /dev/urandom >part; dd if=part of=$M/c bs=1M oflag=direct status=none
         (flock -x a.img sleep 1) >/dev/null 2>&1 &
         sleep 0.3");
    world.kill_daemon();
    world.sh("cmp -n 1048576 part $M/c; dmsetup remove c");
    world.end();
}
