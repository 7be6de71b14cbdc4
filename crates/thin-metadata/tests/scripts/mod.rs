//! Short lives of a pool that crash and fault tests cut at every point.

use thinmap_thin_metadata::{Deletion, DeletionStep, PoolMetadata, Result};
use thinmap_units::{DataBlock, VirtBlock};

use super::support::id;

/// A step of a script; every step ends with a commit made by the test.
pub type Step = fn(&mut PoolMetadata) -> Result<()>;

pub const SCRIPTS: [(&str, &[Step]); 5] = [
    (
        "snapshots",
        &[
            grow,
            create,
            fill,
            snap,
            overwrite,
            snap_of_snap,
            delete_origin,
        ],
    ),
    (
        "discards",
        &[grow, create, fill, discard, refill, discard_all, refill],
    ),
    (
        "held",
        &[
            grow, create, fill, hold, overwrite, rename, release, discard,
        ],
    ),
    (
        "deleted in steps",
        &[
            grow,
            create,
            fill,
            snap,
            overwrite,
            begin_deletion,
            go_on,
            create_again,
            go_on,
            finish_deletions,
        ],
    ),
    (
        "deleted in steps while held",
        &[
            grow,
            create,
            fill,
            begin_deletion,
            go_on,
            hold,
            go_on,
            delete_second,
            release_in_steps,
            finish_deletions,
        ],
    ),
];

fn write(pool: &mut PoolMetadata, volume: u64, blocks: impl Iterator<Item = u64>) -> Result<()> {
    for block in blocks {
        let data = pool.alloc_data_block()?;
        pool.insert(id(volume), VirtBlock(block), data)?;
    }
    Ok(())
}

fn grow(pool: &mut PoolMetadata) -> Result<()> {
    pool.resize_data(DataBlock(20_000))
}

fn create(pool: &mut PoolMetadata) -> Result<()> {
    pool.create_thin(id(1))?;
    pool.create_thin(id(2))
}

fn fill(pool: &mut PoolMetadata) -> Result<()> {
    write(pool, 1, 0..900)?;
    write(pool, 2, (0..300).map(|n| n * 3))
}

fn snap(pool: &mut PoolMetadata) -> Result<()> {
    pool.create_snap(id(3), id(1))
}

fn snap_of_snap(pool: &mut PoolMetadata) -> Result<()> {
    pool.create_snap(id(4), id(3))?;
    pool.create_snap(id(5), id(3))?;
    write(pool, 3, 400..600)
}

fn overwrite(pool: &mut PoolMetadata) -> Result<()> {
    write(pool, 1, (0..60).map(|n| n * 13))
}

fn delete_origin(pool: &mut PoolMetadata) -> Result<()> {
    pool.delete_thin(id(1))?;
    pool.delete_thin(id(3))
}

/// Of a volume with about a dozen nodes.
fn begin_deletion(pool: &mut PoolMetadata) -> Result<()> {
    assert_eq!(pool.begin_deletion(id(1), 2)?, Deletion::Begun);
    Ok(())
}

fn go_on(pool: &mut PoolMetadata) -> Result<()> {
    pool.continue_deletion(1).map(|_| ())
}

fn create_again(pool: &mut PoolMetadata) -> Result<()> {
    pool.create_thin(id(1))?;
    write(pool, 1, 0..20)
}

/// The metadata snapshot keeps its tree.
fn delete_second(pool: &mut PoolMetadata) -> Result<()> {
    assert_eq!(pool.begin_deletion(id(2), 0)?, Deletion::Done);
    Ok(())
}

fn release_in_steps(pool: &mut PoolMetadata) -> Result<()> {
    assert_eq!(pool.begin_release(1)?, Deletion::Begun);
    Ok(())
}

fn finish_deletions(pool: &mut PoolMetadata) -> Result<()> {
    while pool.continue_deletion(1)? == DeletionStep::More {}
    Ok(())
}

fn discard(pool: &mut PoolMetadata) -> Result<()> {
    pool.remove_range(id(1), VirtBlock(50), VirtBlock(700))
        .map(|_| ())
}

fn discard_all(pool: &mut PoolMetadata) -> Result<()> {
    pool.remove_range(id(1), VirtBlock(0), VirtBlock(1 << 40))?;
    pool.remove_range(id(2), VirtBlock(0), VirtBlock(1 << 40))
        .map(|_| ())
}

fn refill(pool: &mut PoolMetadata) -> Result<()> {
    write(pool, 1, (100..400).rev())
}

fn hold(pool: &mut PoolMetadata) -> Result<()> {
    pool.reserve_metadata_snap()
}

fn release(pool: &mut PoolMetadata) -> Result<()> {
    pool.release_metadata_snap()
}

fn rename(pool: &mut PoolMetadata) -> Result<()> {
    let now = pool.transaction_id();
    pool.set_transaction_id(now, now + 7)
}
