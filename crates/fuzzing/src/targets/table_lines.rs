//! Tables as text: every target's constructor, then a little of what a live table is asked.
//!
//! Input: tables of three devices, `first`, `second` and `third`, divided by NUL, lines as dmsetup takes them. A device is found
//! by those after it; plain devices are `a` (7:0) to `d` (7:3).

use thinmap_block::{BlockDevice, IoFlags, Op, submit_and_wait};
use thinmap_dm::{MappedDevice, StatusKind, SuspendFlags, TableLine, WhichTable};
use thinmap_runtime::IoBuf;
use thinmap_units::Sector;

use super::Target;
use crate::world::{Fenced, World};

pub const TARGET: Target = Target {
    name: "table_lines",
    run,
    seeds,
};

const NAMES: [&str; 3] = ["first", "second", "third"];
const LINES_MAX: usize = 32;

fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    // COMPAT: era's line may be longer than its origin, and requests beyond that fail there.
    let is_checked = !text.contains(" era ");
    let world = World::new();
    for (name, sectors) in [("a", 4096), ("b", 65_536), ("c", 4096), ("d", 8)] {
        let size = Sector(sectors);
        world.add(
            name,
            match is_checked {
                true => Fenced::new(size),
                false => Fenced::refusing(size),
            },
        );
    }
    let env = world.environment();
    let mut devices = Vec::new();
    let mut waits = false;
    for (name, table) in NAMES.into_iter().zip(text.split('\0')) {
        let device = world.device(&env, name);
        let table = lines(table);
        waits |= table.iter().any(delays);
        try_table(&device, &table, waits);
        devices.push(device);
    }
    for device in devices.into_iter().rev() {
        device.destroy();
    }
    world.end();
}

/// `start length target arguments`, a line each. What is no number becomes one by its length, so that the rest is reached.
fn lines(table: &str) -> Vec<TableLine> {
    let number = |word: &str| Sector(word.parse().unwrap_or(word.len() as u64));
    let lines = table.lines().filter(|line| !line.is_empty());
    lines
        .take(LINES_MAX)
        .map(|line| {
            let mut words = line.splitn(4, ' ');
            let mut word = || words.next().unwrap_or_default();
            TableLine {
                start: number(word()),
                len: number(word()),
                target: word().to_owned(),
                params: word().to_owned(),
            }
        })
        .collect()
}

/// Requests to such a line end when its time has come, in weeks maybe.
fn delays(line: &TableLine) -> bool {
    line.target == "delay"
}

fn try_table(device: &MappedDevice, table: &[TableLine], waits: bool) {
    if device.load(table, false).is_err() {
        return;
    }
    let _ = device.table_status(StatusKind::Table, WhichTable::Inactive, false);
    if device.resume(SuspendFlags::default()).is_err() {
        return;
    }
    let _ = device.deps(WhichTable::Live);
    let _ = device.limits();
    let _ = device.table_status(StatusKind::Info, WhichTable::Live, false);
    if !waits {
        touch(device);
    }
    // What a table says of itself is a table, and the same one.
    let told = told(device);
    // An origin has one merge at a time, also while one is only told of.
    if told.iter().any(|line| line.target == "snapshot-merge") {
        return;
    }
    // As in a kernel: a region size of 0 becomes one of 4 MiB, which the line of a shorter array may not name.
    let names_default =
        |line: &TableLine| line.target == "raid" && line.params.contains(" region_size 8192 ");
    if (told.iter()).any(|line| names_default(line) && line.len < Sector(8192)) {
        return;
    }
    // As in a kernel: words are told without the backslashes that hid something in them, and hide less each time.
    if told.iter().any(|line| line.params.contains('\\')) {
        return;
    }
    let again = device.load(&told, false);
    assert!(again.is_ok(), "{told:?} is refused: {again:?}");
    if device.resume(SuspendFlags::default()).is_ok() {
        let again: Vec<String> = self::told(device)
            .iter()
            .map(|l| format!("{l:?}"))
            .collect();
        let told: Vec<String> = told.iter().map(|l| format!("{l:?}")).collect();
        assert_eq!(told, again);
    }
}

fn told(device: &MappedDevice) -> Vec<TableLine> {
    let lines = device.table_status(StatusKind::Table, WhichTable::Live, true);
    let lines = lines.expect("a live table");
    let line = |line: thinmap_dm::TargetStatus| TableLine {
        start: line.start,
        len: line.len,
        target: line.target.to_owned(),
        params: line.text,
    };
    lines.into_iter().map(line).collect()
}

/// One request at the beginning and one at the end.
fn touch(device: &MappedDevice) {
    let block = u64::from(device.limits().logical_block_size.max(512)) / 512;
    let size = device.size().raw();
    if size < block || !size.is_multiple_of(block) {
        return;
    }
    for sector in [0, size - block] {
        for op in [Op::Read, Op::Write] {
            let bytes = usize::try_from(block * 512).expect("one block");
            let request = (
                op,
                IoFlags::default(),
                Sector(sector),
                Sector(block),
                IoBuf::alloc(bytes),
            );
            submit_and_wait(device, request);
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let tables: &[&str] = &[
        "0 8 zero",
        "0 8 error",
        "0 8 linear a 0",
        "0 8 linear 7:1 3\n8 16 striped 2 4 7:0 16 7:1 8\n24 8 zero",
        "0 256 striped 2 128 a 0 b 0\x000 8 linear first 0",
        "0 4096 thin-pool b a 128 0",
        "0 4096 thin-pool b a 128 100 2 skip_block_zeroing error_if_no_space\x000 8 linear first 0",
        "0 4096 thin-pool b c 128 0 1 ignore_discard",
        "0 4096 thin-pool b c 128 0 1 read_only",
        "0 4096 thin-pool b c 128 0 1 no_discard_passdown\x000 1000 thin first 0\x000 8 thin first 1 a",
        "0 8 linear nowhere 0",
        "0 18446744073709551615 zero",
        "36028797018963967 8 zero",
        "0 8 linear a 18446744073709551615",
        "0 8 striped 4294967295 8 a 0",
        "0 16 snapshot-origin a\x000 16 snapshot a b P 8\x000 16 snapshot a b N 8",
        "0 16 snapshot-merge a b P 8",
        "0 16 mirror core 2 8 nosync 2 a 0 c 0 1 handle_errors",
        "0 16 mirror disk 3 d 8 sync 2 a 0 c 0",
        "0 16 crypt aes-xts-plain64 \
         0000000000000000000000000000000000000000000000000000000000000000 0 a 0 1 allow_discards",
        "0 16 crypt aes-cbc-essiv:sha256 00000000000000000000000000000000 0 a 0",
        "0 16 verity 1 a c 512 512 16 0 sha1 0000000000000000000000000000000000000000 - 1 ignore_corruption",
        "0 16 verity 1 a c 512 512 16 0 sha1 0000000000000000000000000000000000000000 - 8 \
         use_fec_from_device b fec_roots 2 fec_blocks 18 fec_start 0",
        "0 16 delay a 0 0 c 0 0",
        "0 16 flakey a 0 1 1 1 drop_writes",
        "0 16 flakey a 0 0 1 6 error_writes corrupt_bio_byte 1 r 1 0",
        "0 16 dust a 0 512",
        "0 16 log-writes a c",
        "0 16 unstriped 2 8 1 a 0\x000 16 switch 2 5 0 a 0 c 7",
        "0 16 era c a 8\x000 8 linear first 0",
        "0 16 clone c a b 8 1 no_hydration 4 hydration_threshold 2 hydration_batch_size 2",
        "0 256 cache c b a 64 2 metadata2 writeback smq 2 migration_threshold 64\x000 8 linear first 0",
        "0 128 cache c b a 64 1 passthrough cleaner 0",
        "0 16 raid raid1 3 0 region_size 8 2 - a - c",
        "0 16 writecache s a c 512 4 start_sector 8 low_watermark 5\x000 16 writecache s b c 512 1 cleaner",
        "0 16 multipath 0 0 1 1 round-robin 0 1 1 a 1000",
    ];
    tables
        .iter()
        .map(|table| table.as_bytes().to_vec())
        .collect()
}
