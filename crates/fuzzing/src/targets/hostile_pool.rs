//! A damaged pool as a user has it: thin-pool and thin targets over devices that assert their bounds, with reads, writes,
//! discards and messages.
//!
//! Input: damage as of `metadata_damage`, then what to do.

use std::sync::Arc;

use thinmap_block::{BlockDevice, IoFlags, Op, submit_and_wait};
use thinmap_dm::{MappedDevice, StatusKind, SuspendFlags, TableLine, WhichTable};
use thinmap_runtime::IoBuf;
use thinmap_thin_metadata::{Block4k, MetadataDevice};
use thinmap_units::{MetaBlock, Sector};

use super::Target;
use super::metadata::{BLOCK_SECTORS, DATA_BLOCKS, good_image};
use super::metadata_damage::damage;
use crate::Input;
use crate::world::{Fenced, World};

pub const TARGET: Target = Target {
    name: "hostile_pool",
    run,
    seeds,
};

const OPERATIONS_MAX: usize = 24;
const VOLUME_BLOCKS: u64 = 1000;

fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let image = good_image().copy();
    damage(&image, &mut input);
    let world = World::new();
    let metadata = Fenced::new(Sector(image.size().raw() * 8));
    for block in image.written_blocks() {
        let mut content = Block4k::boxed();
        image
            .read(MetaBlock(block), &mut content)
            .expect("simulated");
        let mut buf = IoBuf::alloc(4096);
        buf.as_mut_slice().copy_from_slice(&content.0);
        thinmap_block::write(&*metadata, Sector(block * 8), buf);
    }
    world.add("meta", metadata);
    // Smaller than the pool was: what is mapped beyond it must not be reached.
    let data_blocks = DATA_BLOCKS - u64::from(input.u8() & 1);
    world.add("data", Fenced::new(Sector(data_blocks * BLOCK_SECTORS)));

    let env = world.environment();
    let pool = world.device(&env, "pool");
    let length = data_blocks * BLOCK_SECTORS;
    let params = format!("meta data {BLOCK_SECTORS} 0 1 error_if_no_space");
    if live(&pool, "thin-pool", length, &params) {
        use_pool(&world, &env, &pool, &mut input);
    }
    let _ = pool.suspend(SuspendFlags::default());
    pool.destroy();
    world.end();
}

fn live(device: &MappedDevice, target: &str, length: u64, params: &str) -> bool {
    let line = TableLine {
        start: Sector::ZERO,
        len: Sector(length),
        target: target.to_owned(),
        params: params.to_owned(),
    };
    device.load(&[line], false).is_ok() && device.resume(SuspendFlags::default()).is_ok()
}

fn use_pool(
    world: &Arc<World>,
    env: &Arc<thinmap_dm::Environment>,
    pool: &Arc<MappedDevice>,
    input: &mut Input<'_>,
) {
    let volume = world.device(env, "volume");
    let first = 1 + input.below(5);
    let opened = live(
        &volume,
        "thin",
        VOLUME_BLOCKS * BLOCK_SECTORS,
        &format!("pool {first}"),
    );
    for _ in 0..OPERATIONS_MAX {
        if input.is_empty() {
            break;
        }
        operate(pool, opened.then_some(&*volume), input);
    }
    volume.destroy();
}

fn operate(pool: &MappedDevice, volume: Option<&MappedDevice>, input: &mut Input<'_>) {
    let kind = input.below(10);
    if kind >= 6 {
        let text = match kind {
            6 => format!("create_thin {}", input.u8()),
            7 => format!("create_snap {} {}", input.u8(), input.u8() % 8),
            8 => format!("delete {}", input.u8() % 8),
            _ if input.flag() => "reserve_metadata_snap".to_owned(),
            _ => "release_metadata_snap".to_owned(),
        };
        let argv: Vec<String> = text.split(' ').map(str::to_owned).collect();
        let _ = pool.message(Sector::ZERO, &argv);
        let _ = pool.table_status(StatusKind::Info, WhichTable::Live, false);
        return;
    }
    let Some(volume) = volume else {
        return;
    };
    let size = volume.size().raw();
    let sector = u64::from(input.u16()) * 8 % size.max(1);
    let sectors = (8 * (1 + u64::from(input.u8() % 64))).min(size - sector);
    let op = [
        Op::Read,
        Op::Write,
        Op::Discard,
        Op::WriteZeroes,
        Op::Flush,
        Op::Write,
    ][kind];
    let buf = match op {
        Op::Read | Op::Write => {
            IoBuf::alloc(usize::try_from(sectors * 512).expect("some kilobytes"))
        }
        _ => IoBuf::empty(),
    };
    let (sector, sectors) = match op {
        Op::Flush => (0, 0),
        Op::Discard => (sector, sectors.saturating_mul(16).min(size - sector)),
        _ => (sector, sectors),
    };
    let flags = IoFlags {
        fua: kind == 5,
        ..IoFlags::default()
    };
    submit_and_wait(volume, (op, flags, Sector(sector), Sector(sectors), buf));
    let mut extents = Vec::new();
    let _ = volume.extents(Sector(sector), Sector(size - sector), &mut extents);
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = (0..10)
        .map(|op| vec![0, 0, 0, op, 0, 1, 7, op, 0, 9, 3, 4, 0, 0, 0])
        .collect();
    seeds.extend((0..24).map(|block| {
        vec![
            1, block, 0, 10, 0, 5, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 63, 1, 5, 0, 7,
        ]
    }));
    seeds
}
