//! A crash of the daemon alone: a cipher's key is found by the next one, and is in no table that is noted for it.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod support;
mod thin_support;

use std::sync::Arc;

use thinmap_block::backing::MemoryDevice;
use thinmap_dm::{KeptMemory, MappedDevice, StatusKind, SuspendFlags, WhichTable};
use thinmap_units::Sector;

use support::{load, read_bytes, resume, write_fill};
use thin_support::Lab;
use thin_support::shelf::Shelf;

const SIZE: u64 = 64;

fn process(below: &Arc<MemoryDevice>, kept: Shelf) -> (Lab, Arc<Shelf>) {
    let lab = Lab::new();
    let kept = Arc::new(kept);
    lab.env.shared.of::<KeptMemory>().set(kept.clone());
    lab.add("a", below.clone());
    (lab, kept)
}

fn hex(key: impl Iterator<Item = u8>) -> String {
    key.map(|byte| format!("{byte:02x}")).collect()
}

fn line(key: &str) -> String {
    format!("0 {SIZE} crypt aes-xts-plain64 {key} 0 a 0")
}

fn table(dev: &MappedDevice) -> String {
    let lines = dev.table_status(StatusKind::Table, WhichTable::Live, true);
    lines.unwrap()[0].text.clone()
}

/// The line as the next process takes it.
fn noted(dev: &MappedDevice, which: WhichTable) -> String {
    let lines = dev.table_for_successor(which).unwrap();
    format!("0 {SIZE} crypt {}", lines[0].text.replace("7:0", "a"))
}

fn message(dev: &MappedDevice, words: &str) -> Result<(), String> {
    let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
    let said = dev.message(Sector(0), &words);
    said.map(|_| ()).map_err(|error| error.to_string())
}

fn suspend(dev: &MappedDevice) {
    dev.suspend(SuspendFlags::default()).unwrap();
}

fn fills(dev: &MappedDevice, byte: u8) -> bool {
    let (bytes, status) = read_bytes(dev, 0, SIZE);
    status.is_ok() && bytes.iter().all(|b| *b == byte)
}

#[test]
fn keys_are_found_and_are_not_noted() {
    let below = Arc::new(MemoryDevice::new(Sector(SIZE)));
    let (key, other) = (hex(0..64), hex(64..128));
    let (lab, kept) = process(&below, Shelf::default());
    let first = lab.live("c", &line(&key));
    assert!(write_fill(&*first, 0, SIZE, 7).is_ok());
    load(&first, &line(&other)).unwrap();
    let live = noted(&first, WhichTable::Live);
    let inactive = noted(&first, WhichTable::Inactive);
    assert!(live.contains(" :64:kept:") && inactive.contains(" :64:kept:"));
    assert_ne!(live, inactive);

    let (lab, next_kept) = process(&below, kept.at_death());
    let second = lab.live("c", &live);
    assert!(fills(&second, 7));
    assert!(table(&second).contains(&key), "{}", table(&second));
    load(&second, &inactive).unwrap();
    // Dies once more before anything changes.
    let again = [
        noted(&second, WhichTable::Live),
        noted(&second, WhichTable::Inactive),
    ];
    assert_eq!(again, [live, inactive]);
    let (lab, last_kept) = process(&below, next_kept.at_death());
    let third = lab.live("c", &again[0]);
    load(&third, &again[1]).unwrap();
    assert!(fills(&third, 7));
    resume(&third).unwrap();
    assert!(!fills(&third, 7));
    assert!(table(&third).contains(&other));
    assert_eq!(last_kept.len(), 1, "the first key went with its table");
    next_kept.serves();
    for (dev, kept) in [(first, kept), (second, next_kept), (third, last_kept)] {
        dev.destroy();
        assert_eq!(kept.len(), 0);
    }
}

#[test]
fn a_wiped_key_stays_wiped() {
    let below = Arc::new(MemoryDevice::new(Sector(SIZE)));
    let key = hex(0..64);
    let (lab, kept) = process(&below, Shelf::default());
    let first = lab.live("c", &line(&key));
    assert!(write_fill(&*first, 0, SIZE, 7).is_ok());
    suspend(&first);
    message(&first, "key wipe").unwrap();
    let (lab, next_kept) = process(&below, kept.at_death());
    // As the daemon brings a suspended device back.
    let second = lab.live("c", &noted(&first, WhichTable::Live));
    assert!(!read_bytes(&*second, 0, 8).1.is_ok());
    suspend(&second);
    let refused = resume(&second).unwrap_err().to_string();
    assert!(refused.contains("crypt key is not set"), "{refused}");
    message(&second, &format!("key set {key}")).unwrap();
    resume(&second).unwrap();
    assert!(fills(&second, 7));
    let (lab, last_kept) = process(&below, next_kept.at_death());
    let third = lab.live("c", &noted(&second, WhichTable::Live));
    assert!(fills(&third, 7));
    for (dev, kept) in [(first, kept), (second, next_kept), (third, last_kept)] {
        dev.destroy();
        assert_eq!(kept.len(), 0);
    }
}

#[test]
fn a_key_that_was_never_kept_is_refused() {
    let below = Arc::new(MemoryDevice::new(Sector(SIZE)));
    let (lab, kept) = process(&below, Shelf::default());
    for name in ["none", "0123456789abcdef", ""] {
        let refused = lab
            .try_load(&line(&format!(":64:kept:{name}")))
            .unwrap_err();
        assert_eq!(refused.errno(), 22, "{refused}");
        let text = refused.to_string();
        assert!(text.contains("the key went with the last daemon"), "{text}");
        assert_eq!(kept.len(), 0);
    }
}

/// As when requests of the dead daemon's are in flight on a backing: the daemon tries again.
#[test]
fn a_table_that_cannot_be_loaded_at_first_finds_its_key_later() {
    let below = Arc::new(MemoryDevice::new(Sector(SIZE)));
    let (lab, kept) = process(&below, Shelf::default());
    let first = lab.live("c", &line(&hex(0..64)));
    assert!(write_fill(&*first, 0, SIZE, 7).is_ok());
    let noted = noted(&first, WhichTable::Live);

    let (lab, next_kept) = process(&below, kept.at_death());
    let second = lab.device("c");
    let busy = noted.replace(" a ", " busy ");
    let with_busy = format!("{noted}\n{SIZE} 8 linear busy 0");
    for table in [&busy, &with_busy, &busy] {
        let refused = load(&second, table).unwrap_err().to_string();
        assert!(refused.contains("busy: no such device"), "{refused}");
    }
    load(&second, &noted).unwrap();
    resume(&second).unwrap();
    assert!(fills(&second, 7));
    // Where nobody tries again, nothing is left.
    let (lab, last_kept) = process(&below, next_kept.at_death());
    assert!(load(&lab.device("c"), &busy).is_err());
    last_kept.serves();
    assert!(load(&lab.device("d"), &busy).is_err());
    for (dev, kept) in [(first, kept), (second, next_kept)] {
        dev.destroy();
        assert_eq!(kept.len(), 0);
    }
    assert_eq!(last_kept.len(), 0);
}
