//! A damaged pool as a user has it: thin-pool and thin targets over devices that assert their bounds, with reads, writes,
//! discards and messages.
//!
//! Input: damage as of `metadata_damage`, then what to do.

use std::sync::Arc;

use thinmap_dm::{MappedDevice, StatusKind, SuspendFlags, WhichTable};
use thinmap_runtime::IoBuf;
use thinmap_thin_metadata::{Block4k, MetadataDevice};
use thinmap_units::{MetaBlock, Sector};

use super::Target;
use super::metadata::{BLOCK_SECTORS, DATA_BLOCKS, good_image};
use super::metadata_damage::damage;
use super::traffic::{KINDS, live, request};
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
    let table = format!("thin-pool meta data {BLOCK_SECTORS} 0 1 error_if_no_space");
    if live(&pool, length, &table) {
        use_pool(&world, &env, &pool, &mut input);
    }
    let _ = pool.suspend(SuspendFlags::default());
    pool.destroy();
    world.end();
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
        VOLUME_BLOCKS * BLOCK_SECTORS,
        &format!("thin pool {first}"),
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
    let kind = input.below(KINDS + 4);
    if kind >= KINDS {
        let text = match kind - KINDS {
            0 => format!("create_thin {}", input.u8()),
            1 => format!("create_snap {} {}", input.u8(), input.u8() % 8),
            2 => format!("delete {}", input.u8() % 8),
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
    request(volume, kind, input);
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
