//! An NBD client's bytes: the handshake and, once an export is chosen, requests and payloads.
//!
//! Input: in what pieces it arrives, then what the client sends.

use std::sync::Arc;

use thinmap_block::BlockDevice;
use thinmap_exports::fuzzing::nbd_session;
use thinmap_units::Sector;

use super::Target;
use crate::Input;
use crate::world::Fenced;

pub const TARGET: Target = Target {
    name: "nbd",
    run,
    seeds,
};

const REPLIES_MAX: usize = 1 << 20;

fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let piece = 1 << input.below(13);
    let device: Arc<dyn BlockDevice> = Fenced::new(Sector(256));
    let exports = [("vol", device.clone(), false), ("ro", device, true)];
    let replies = nbd_session(&exports, input.rest(), piece, REPLIES_MAX);
    assert!(replies.starts_with(b"NBDMAGICIHAVEOPT"), "a greeting first");
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn named(name: &str, tail: &[u8]) -> Vec<u8> {
    let mut bytes = (name.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(tail);
    bytes
}

fn request(flags: u16, command: u16, offset: u64, len: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(b"a cookie");
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn seeds() -> Vec<Vec<u8>> {
    const WHOLE: u8 = 12;
    let hello = [&[WHOLE][..], &3_u32.to_be_bytes()].concat();
    let go = |name| option(7, &named(name, &[0, 1, 0, 3]));
    let mut seeds = Vec::new();
    for number in 0..12 {
        seeds.push([&hello[..], &option(number, b"")].concat());
        seeds.push([&hello[..], &option(number, &named("vol", &[0, 0]))].concat());
    }
    let context = [
        &named("vol", &1_u32.to_be_bytes())[..],
        &named("base:allocation", b""),
    ]
    .concat();
    let structured = [
        &hello[..],
        &option(8, b""),
        &option(10, &context),
        &go("vol"),
    ]
    .concat();
    let simple = [&hello[..], &option(1, b"vol")].concat();
    for start in [&structured, &simple] {
        for command in 0..9 {
            let payload = if command == 1 { &[7; 512][..] } else { &[] };
            let first = request(0, command, 512, 512, payload);
            let second = request(1, command, 4096, 1024, &[payload, payload].concat());
            seeds.push([&start[..], &first, &second, &request(0, 2, 0, 0, b"")].concat());
        }
        seeds.push([&start[..], &request(0, 0, u64::MAX, u32::MAX, b"")].concat());
        seeds.push([&start[..], &request(0, 1, 0, 32 << 20, &[1; 600])].concat());
    }
    seeds.push([&hello[..], &go("ro"), &request(0, 1, 0, 512, &[1; 512])].concat());
    seeds
}
