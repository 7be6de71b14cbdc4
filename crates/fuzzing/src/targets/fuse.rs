//! FUSE requests as no kernel would send them: any header, any arguments, any length.
//!
//! Input: records of length and bytes, each one request; its length field is put right in every other one.

use std::sync::Arc;

use thinmap_block::BlockDevice;
use thinmap_exports::fuzzing::fuse_session;
use thinmap_units::Sector;

use super::Target;
use crate::Input;
use crate::world::Fenced;

pub const TARGET: Target = Target {
    name: "fuse",
    run,
    seeds,
};

const REQUESTS_MAX: usize = 32;
const HEADER_BYTES: usize = 40;

fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut requests = Vec::new();
    while !input.is_empty() && requests.len() < REQUESTS_MAX {
        let len = usize::from(input.u16());
        let repair = len & 1 == 0;
        let mut request = input.bytes(len).to_vec();
        let real = (request.len() as u32).to_le_bytes();
        if repair && let Some(field) = request.get_mut(..4) {
            field.copy_from_slice(&real);
        }
        requests.push(request);
    }
    let device: Arc<dyn BlockDevice> = Fenced::new(Sector(256));
    let devices = [(device.clone(), false), (device, true)];
    let requests: Vec<&[u8]> = requests.iter().map(Vec::as_slice).collect();
    let replies = fuse_session(&devices, &requests);
    assert!(
        replies.len() <= requests.len(),
        "more replies than requests"
    );
}

fn request(opcode: u32, nodeid: u64, args: &[u8]) -> Vec<u8> {
    let len = HEADER_BYTES + args.len();
    let mut bytes = (len as u16).to_le_bytes().to_vec();
    bytes.extend_from_slice(&(len as u32).to_le_bytes());
    bytes.extend_from_slice(&opcode.to_le_bytes());
    bytes.extend_from_slice(&7_u64.to_le_bytes());
    bytes.extend_from_slice(&nodeid.to_le_bytes());
    bytes.resize(2 + HEADER_BYTES, 0);
    bytes.extend_from_slice(args);
    bytes
}

fn read_write(offset: u64, size: u32) -> Vec<u8> {
    let mut args = vec![0; 8];
    args.extend_from_slice(&offset.to_le_bytes());
    args.extend_from_slice(&size.to_le_bytes());
    args.resize(40, 0);
    args
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for opcode in 0..54 {
        seeds.push(request(opcode, 2, &[0; 88]));
        seeds.push(request(opcode, 1, b""));
    }
    for (offset, size) in [
        (0, 4096),
        (512, 512),
        (100, 1000),
        (130_560, 4096),
        (u64::MAX, 4096),
    ] {
        let args = read_write(offset, size);
        let data = vec![5; size as usize];
        seeds.push(request(15, 2, &args));
        seeds.push(request(16, 2, &[&args[..], &data].concat()));
        seeds.push(request(16, 3, &[&args[..], &data].concat()));
    }
    let allocate = |mode: u32| {
        let mut args = vec![0; 8];
        args.extend_from_slice(&4096_u64.to_le_bytes());
        args.extend_from_slice(&8192_u64.to_le_bytes());
        args.extend_from_slice(&mode.to_le_bytes());
        args.resize(32, 0);
        args
    };
    seeds.extend([0, 1, 3, 16, 17].map(|mode| request(43, 2, &allocate(mode))));
    let init = [7_u32, 42, 65_536, u32::MAX, u32::MAX]
        .map(u32::to_le_bytes)
        .concat();
    seeds.push(
        [
            request(26, 0, &init),
            request(1, 1, b"2\0"),
            request(14, 2, &[0; 8]),
        ]
        .concat(),
    );
    seeds
}
