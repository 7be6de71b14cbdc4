//! thin-pool and thin as mapped devices: what each argument, message and kind of request does.

mod support;
mod thin_support;

use thinmap_block::{BlockDevice, IoFlags, Op};
use thinmap_dm::StatusKind;
use thinmap_units::{BlkStatus, Sector};

use support::{load, read_bytes, request, resume, write_fill};
use thin_support::{BLOCK, Lab, PoolLab, SUSPEND, check_clean, flagged, info, line, used};

fn all(dev: &dyn BlockDevice, sector: u64, sectors: u64, byte: u8) -> bool {
    let (bytes, status) = read_bytes(dev, sector, sectors);
    assert_eq!(status, BlkStatus::Ok);
    bytes.iter().all(|b| *b == byte)
}

#[test]
fn a_volume_reads_zeroes_until_written_and_takes_space_only_then() {
    let lab = PoolLab::new(64, "");
    let t = lab.volume(0, 1000);
    assert!(all(&*t, 5 * BLOCK + 3, 100, 0));
    assert_eq!(info(&t), "0 -");
    assert!(write_fill(&*t, 5 * BLOCK + 3, 8, 7).is_ok());
    assert!(all(&*t, 5 * BLOCK + 3, 8, 7));
    assert!(all(&*t, 5 * BLOCK, 3, 0) && all(&*t, 5 * BLOCK + 11, BLOCK - 11, 0));
    assert_eq!(info(&t), "128 767");
    assert_eq!(used(&lab.status()), 1);
    assert_eq!(line(&t, StatusKind::Table), "253:0 0");
    assert_eq!(line(&lab.pool, StatusKind::Table), "7:0 7:1 128 0 0 ");
    t.destroy();
    lab.close_and_check();
}

#[test]
fn partly_written_new_blocks_are_zeroed_unless_told_not_to() {
    for (features, around) in [("", 0), ("1 skip_block_zeroing", 0xaa)] {
        let lab = PoolLab::new(64, features);
        for block in 0..64 {
            assert!(write_fill(&*lab.data, block * BLOCK, BLOCK, 0xaa).is_ok());
        }
        let t = lab.volume(0, 64);
        assert!(write_fill(&*t, 8, 8, 1).is_ok());
        assert!(all(&*t, 0, 8, around) && all(&*t, 8, 8, 1) && all(&*t, 16, BLOCK - 16, around));
        t.destroy();
        lab.close_and_check();
    }
}

#[test]
fn what_was_promised_zero_stays_zero_without_block_zeroing() {
    let lab = PoolLab::new(64, "1 skip_block_zeroing");
    for block in 0..64 {
        assert!(write_fill(&*lab.data, block * BLOCK, BLOCK, 0xaa).is_ok());
    }
    let t = lab.volume(0, 64);
    assert!(request(&*t, Op::WriteZeroes, 0, 4 * BLOCK).is_ok());
    assert!(write_fill(&*t, BLOCK + 8, 8, 1).is_ok());
    assert!(all(&*t, BLOCK, 8, 0) && all(&*t, BLOCK + 16, BLOCK - 16, 0));
    t.destroy();
    lab.close_and_check();
}

#[test]
fn snapshots_keep_what_was_and_go_their_own_way() {
    let lab = PoolLab::new(64, "");
    let origin = lab.volume(0, 64);
    assert!(write_fill(&*origin, 0, 4 * BLOCK, 1).is_ok());
    lab.message("create_snap 1 0").unwrap();
    assert!(write_fill(&*origin, BLOCK + 16, 8, 2).is_ok());
    let snap = lab.open(1, 64);
    assert!(all(&*snap, 0, 4 * BLOCK, 1));
    assert!(write_fill(&*snap, 0, BLOCK, 3).is_ok());
    lab.message("create_snap 2 1").unwrap();
    assert!(write_fill(&*snap, 0, BLOCK, 4).is_ok());
    let second = lab.open(2, 64);
    assert!(all(&*second, 0, BLOCK, 3) && all(&*second, BLOCK, 3 * BLOCK, 1));
    assert!(all(&*origin, 0, BLOCK, 1) && all(&*origin, BLOCK + 16, 8, 2));
    assert!(all(&*origin, BLOCK, 16, 1) && all(&*origin, BLOCK + 24, BLOCK - 24, 1));
    assert_eq!(used(&lab.status()), 7);
    for dev in [&snap, &second] {
        dev.destroy();
    }
    lab.message("delete 1").unwrap();
    lab.message("delete 2").unwrap();
    assert_eq!(used(&lab.status()), 4);
    origin.destroy();
    lab.close_and_check();
}

#[test]
fn discards_unmap_whole_blocks_and_pass_down_what_nobody_else_has() {
    let lab = PoolLab::new(64, "");
    let t = lab.volume(0, 64);
    assert!(write_fill(&*t, 0, 8 * BLOCK, 9).is_ok());
    lab.message("create_snap 1 0").unwrap();
    assert!(write_fill(&*t, 0, 4 * BLOCK, 8).is_ok());
    assert_eq!(used(&lab.status()), 12);
    assert!(request(&*t, Op::Discard, 1, 8 * BLOCK - 1).is_ok());
    // Block 0 is covered in part only; 1..4 were its own, 4..8 are the snapshot's too.
    assert_eq!(used(&lab.status()), 9);
    assert!(all(&*t, 0, BLOCK, 8) && all(&*t, BLOCK, 7 * BLOCK, 0));
    let snap = lab.open(1, 64);
    assert!(all(&*snap, 0, 8 * BLOCK, 9));
    let (image, _) = read_bytes(&*lab.data, 0, 64 * BLOCK);
    let filled = |byte| image.chunks(65536).filter(|b| b[0] == byte).count();
    assert_eq!((filled(9), filled(8)), (8, 1), "passed down");
    t.destroy();
    snap.destroy();
    lab.close_and_check();
}

#[test]
fn write_zeroes_unmaps_what_it_covers_and_zeroes_the_rest() {
    let lab = PoolLab::new(64, "");
    let t = lab.volume(0, 64);
    assert!(write_fill(&*t, 0, 8 * BLOCK, 9).is_ok());
    lab.message("create_snap 1 0").unwrap();
    assert!(request(&*t, Op::WriteZeroes, 100, 5 * BLOCK).is_ok());
    assert!(all(&*t, 0, 100, 9) && all(&*t, 100, 5 * BLOCK, 0));
    assert!(all(&*t, 100 + 5 * BLOCK, 3 * BLOCK - 100, 9));
    assert_eq!(info(&t), "512 1023");
    let keep = IoFlags {
        no_unmap: true,
        fua: true,
    };
    assert!(flagged(&*t, Op::WriteZeroes, keep, 100, 5 * BLOCK, 0).is_ok());
    assert!(all(&*t, 100, 5 * BLOCK, 0));
    assert_eq!(info(&t), "1024 1023");
    let snap = lab.open(1, 64);
    assert!(all(&*snap, 0, 8 * BLOCK, 9));
    t.destroy();
    snap.destroy();
    lab.close_and_check();
}

#[test]
fn external_origins_show_through_also_when_smaller() {
    let lab = PoolLab::new(64, "");
    let origin = lab.lab.memory("origin", 3 * BLOCK + 50);
    assert!(write_fill(&*origin, 0, 3 * BLOCK + 50, 5).is_ok());
    lab.message("create_thin 0").unwrap();
    let t = lab.lab.live("t", "0 1024 thin pool 0 origin");
    assert!(all(&*t, 0, 3 * BLOCK + 50, 5));
    assert!(all(&*t, 3 * BLOCK + 40, 10, 5) && all(&*t, 3 * BLOCK + 50, 50, 0));
    let (straddling, _) = read_bytes(&*t, 3 * BLOCK + 48, 4);
    assert_eq!(
        (straddling[0], straddling[1023], straddling[1024]),
        (5, 5, 0)
    );
    // Provisioning copies the origin's part.
    assert!(write_fill(&*t, 3 * BLOCK + 8, 8, 6).is_ok());
    assert!(all(&*t, 3 * BLOCK, 8, 5) && all(&*t, 3 * BLOCK + 8, 8, 6));
    assert!(all(&*t, 3 * BLOCK + 16, 34, 5) && all(&*t, 3 * BLOCK + 50, BLOCK - 50, 0));
    assert!(request(&*t, Op::WriteZeroes, 0, 2 * BLOCK).is_ok());
    assert!(all(&*t, 0, 2 * BLOCK, 0) && all(&*t, 2 * BLOCK, BLOCK, 5));
    assert!(all(&*origin, 0, 3 * BLOCK + 50, 5), "never written");
    assert_eq!(line(&t, StatusKind::Table), "253:0 0 7:2");
    t.destroy();
    lab.close_and_check();
}

#[test]
fn messages_are_refused_as_the_kernel_does() {
    let lab = PoolLab::new(64, "");
    let errno = |text: &str| lab.message(text).expect_err(text).errno();
    let t = lab.volume(0, 8);
    assert_eq!(errno("create_thin 0"), 17);
    assert_eq!(errno("create_snap 0 0"), 17);
    assert_eq!(errno("create_snap 1 77"), 61);
    assert_eq!(errno("delete 77"), 61);
    assert_eq!(errno("delete 0"), 16);
    assert_eq!(errno("set_transaction_id 1 2"), 22);
    assert_eq!(errno("release_metadata_snap"), 22);
    assert_eq!(errno("nonsense"), 22);
    lab.message("set_transaction_id 0 5").unwrap();
    lab.message("reserve_metadata_snap").unwrap();
    assert_eq!(errno("reserve_metadata_snap"), 16);
    let status = lab.status();
    assert!(
        status.starts_with("5 ") && !status.contains(" - rw"),
        "{status}"
    );
    lab.message("release_metadata_snap").unwrap();
    let tail = " 0/64 - rw discard_passdown queue_if_no_space - 256 ";
    assert!(lab.status().ends_with(tail), "{}", lab.status());
    t.destroy();
    lab.message("delete 0").unwrap();
    lab.close_and_check();
}

#[test]
fn wrong_thin_tables() {
    let lab = PoolLab::new(64, "");
    lab.lab.memory("plain", 1024);
    for (params, reason, errno) in [
        ("pool", "Invalid argument count", 22),
        ("pool 0 plain x", "Invalid argument count", 22),
        ("pool 0 pool", "Error setting origin device", 22),
        ("pool 0 nothing", "Error opening origin device", 19),
        ("nothing 0", "Error opening pool device", 19),
        ("pool x", "Invalid device id", 22),
        ("pool 16777216", "Invalid device id", 22),
        ("plain 0", "Couldn't find pool object", 22),
        ("pool 0", "Couldn't open thin internal device", 61),
    ] {
        let error = lab
            .lab
            .try_load(&format!("0 128 thin {params}"))
            .expect_err(params);
        let text = error.to_string();
        assert!(text.contains(reason), "{params}: {text}");
        assert_eq!(error.errno(), errno, "{params}: {text}");
    }
    lab.close_and_check();
}

#[test]
fn one_metadata_device_makes_one_pool() {
    let lab = PoolLab::new(64, "");
    lab.lab.memory("meta2", 8192);
    lab.lab.memory("data2", 8192);
    for (devices, reason) in [
        ("meta data2", "metadata device already in use by a pool"),
        ("meta2 data", "data device already in use by a pool"),
    ] {
        let table = format!("0 8192 thin-pool {devices} 128 0");
        let error = lab.lab.try_load(&table).expect_err(devices);
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(error.errno(), 16);
    }
    let other = load(&lab.pool, "0 8192 thin-pool meta2 data2 128 0").expect_err("other devices");
    assert!(
        other
            .to_string()
            .contains("different pool cannot replace a pool")
    );
    let discards = load(
        &lab.pool,
        "0 8192 thin-pool meta data 128 0 1 ignore_discard",
    );
    let discards = discards.expect_err("discards");
    assert!(
        discards
            .to_string()
            .contains("Discard support cannot be disabled once enabled")
    );
    lab.close_and_check();
}

#[test]
fn a_pool_is_found_again_and_grows() {
    let lab = PoolLab::new(32, "");
    let t = lab.volume(3, 64);
    assert!(write_fill(&*t, 0, 32 * BLOCK, 4).is_ok());
    t.destroy();
    let (meta, data) = (lab.meta.clone(), lab.data.clone());
    lab.close_and_check();

    let lab = Lab::new();
    lab.add("meta", meta.clone());
    lab.add("data", data.clone());
    let pool = lab.live("pool", "0 4096 thin-pool meta data 128 0");
    assert!(info(&pool).contains(" 32/32 "), "{}", info(&pool));
    let t = lab.live("t", "0 8192 thin pool 3");
    assert!(all(&*t, 0, 32 * BLOCK, 4));
    let shrunk = load(&pool, "0 2048 thin-pool meta data 128 0").and_then(|()| {
        pool.suspend(SUSPEND)?;
        resume(&pool)
    });
    assert!(
        shrunk
            .expect_err("shrunk")
            .to_string()
            .contains("too small: expected 32")
    );
    data.grow(Sector(64 * BLOCK));
    meta.grow(Sector(16384));
    load(&pool, "0 8192 thin-pool meta data 128 0").unwrap();
    resume(&pool).unwrap();
    assert!(info(&pool).contains("/2048 32/64 "), "{}", info(&pool));
    assert!(write_fill(&*t, 32 * BLOCK, 32 * BLOCK, 5).is_ok());
    t.destroy();
    pool.destroy();
    check_clean(&meta);
}

#[test]
fn odd_and_large_block_sizes() {
    for block in [384u64, 4096, 65536] {
        let lab = Lab::new();
        let meta = lab.memory("meta", 8192);
        lab.memory("data", 8 * block);
        let pool = lab.live(
            "pool",
            &format!("0 {} thin-pool meta data {block} 0", 8 * block),
        );
        thin_support::message(&pool, "create_thin 0").unwrap();
        let t = lab.live("t", &format!("0 {} thin pool 0", 5 * block));
        assert!(write_fill(&*t, block - 8, 16, 1).is_ok());
        thin_support::message(&pool, "create_snap 1 0").unwrap();
        assert!(write_fill(&*t, block + 8, 16, 2).is_ok());
        assert!(all(&*t, block - 8, 16, 1) && all(&*t, block + 8, 16, 2));
        assert!(all(&*t, 0, block - 8, 0) && all(&*t, block + 24, block - 24, 0));
        let snap = lab.live("s", &format!("0 {} thin pool 1", 5 * block));
        assert!(all(&*snap, block - 8, 16, 1) && all(&*snap, block + 8, block - 8, 0));
        assert!(info(&pool).contains(" 3/8 "), "{}", info(&pool));
        snap.destroy();
        t.destroy();
        pool.destroy();
        check_clean(&meta);
    }
}
