//! Lines with a write cache: `o` is the origin, `c` the cache.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]
#![allow(dead_code, reason = "each test binary uses its own part")]

use thinmap_block::BlockDevice;
use thinmap_dm::{MappedDevice, StatusKind, SuspendFlags, WhichTable};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use crate::support::read_bytes;

pub const SECTORS: u64 = 4000;

/// Blocks of 4 KiB, and options.
pub fn line(options: &str) -> String {
    let count = options.split_whitespace().count();
    let table = format!("0 {SECTORS} writecache s o c 4096 {count} {options}");
    table.trim_end().to_owned()
}

pub fn status_text(dev: &MappedDevice) -> String {
    let lines = dev.table_status(StatusKind::Info, WhichTable::Live, false);
    lines.unwrap()[0].text.clone()
}

/// Failed, blocks, free, on their way, reads, hits, writes, hits of uncommitted and of committed blocks, past the cache, allocated,
/// blocked, flushes, discards.
pub fn status(dev: &MappedDevice) -> [u64; 14] {
    let fields = status_text(dev);
    let fields: Vec<u64> = fields.split(' ').map(|f| f.parse().unwrap()).collect();
    fields.try_into().unwrap()
}

pub fn message(dev: &MappedDevice, words: &str) -> Result<Option<String>, String> {
    let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
    dev.message(Sector(0), &words).map_err(|e| e.to_string())
}

pub fn suspend(dev: &MappedDevice) {
    dev.suspend(SuspendFlags::default()).unwrap();
}

/// Each sector begins with its number and a seed.
pub fn pattern(sector: u64, seed: u8) -> [u8; 512] {
    let mut bytes = [seed; 512];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes
}

pub fn write_at(dev: &dyn BlockDevice, sector: u64, data: &[u8]) -> BlkStatus {
    let mut buf = IoBuf::alloc(data.len());
    buf.as_mut_slice().copy_from_slice(data);
    thinmap_block::write(dev, Sector(sector), buf).1
}

/// The number at a byte of the device.
pub fn number(dev: &dyn BlockDevice, at: usize) -> u64 {
    let sector = read_bytes(dev, at as u64 / 512, 1).0;
    let bytes = sector[at % 512..at % 512 + 8].try_into().unwrap();
    u64::from_le_bytes(bytes)
}

/// Has a cache say this: its sequence number, and the first entries.
pub fn put_entries(cache: &dyn BlockDevice, seq: u64, entries: &[(u64, u64)]) {
    let mut sector = read_bytes(cache, 0, 1).0;
    sector[24..32].copy_from_slice(&seq.to_le_bytes());
    for (entry, bytes) in entries.iter().zip(sector[64..].chunks_exact_mut(16)) {
        bytes[..8].copy_from_slice(&entry.0.to_le_bytes());
        bytes[8..].copy_from_slice(&entry.1.to_le_bytes());
    }
    assert!(write_at(cache, 0, &sector).is_ok());
}

/// Waits until something that a worker does is done.
pub fn eventually(what: &str, is: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if is() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("{what}");
}
