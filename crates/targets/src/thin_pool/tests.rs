//! What no request can bring about: a transaction that is given up although its need was estimated.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use thinmap_block::backing::MemoryDevice;
use thinmap_block::{Op, read};
use thinmap_runtime::IoBuf;
use thinmap_thin_metadata::{ErrorKind, MetadataError, Space};
use thinmap_units::{BlkStatus, DevNo, Sector};

use super::pool::{Pool, PoolRegistry};
use crate::support::{Double, read_bytes, request, write_fill};
use crate::thin_support::{BLOCK, Lab, check_clean, info, message, until};

fn give_up(pool: &Pool) {
    let error = MetadataError::new(ErrorKind::NoSpace(Space::Metadata), "for a test");
    let given_up = pool.ask(move |worker, answer| {
        worker.give_up_transaction("be tested", &error);
        answer.give(());
    });
    given_up.unwrap();
}

/// Its requests in flight go to blocks that are free now: whoever got them next would read and change another's data.
#[test]
fn blocks_of_a_transaction_that_was_given_up_are_not_allocated_while_requests_use_them() {
    let lab = Lab::new();
    let meta = lab.memory("meta", 8192);
    let data = Double::new(Arc::new(MemoryDevice::new(Sector(64 * BLOCK))));
    lab.add("data", data.clone());
    let pool = lab.live(
        "pool",
        &format!("0 {} thin-pool meta data {BLOCK} 0", 64 * BLOCK),
    );
    for id in 0..3 {
        message(&pool, &format!("create_thin {id}")).unwrap();
    }
    let volume = |id: u32| {
        lab.live(
            &format!("t{id}"),
            &format!("0 {} thin pool {id}", 8 * BLOCK),
        )
    };
    let [one, other, third] = [0, 1, 2].map(volume);
    assert!(write_fill(&*third, 0, BLOCK, 3).is_ok());
    assert!(request(&*third, Op::Flush, 0, 0).is_ok());
    third.destroy();

    assert!(write_fill(&*one, 0, BLOCK, 1).is_ok());
    data.hold.store(true, SeqCst);
    let reader = {
        let one = one.clone();
        std::thread::spawn(move || read(&*one, Sector(0), IoBuf::alloc(4096)))
    };
    until("the read is in flight", || data.held.lock().len() == 1);
    data.hold.store(false, SeqCst);
    let registry = lab.env.shared.of::<PoolRegistry>();
    let shared = registry.by_device(DevNo::new(253, 0)).unwrap();
    give_up(&shared);
    message(&pool, "delete 2").unwrap();
    until("the pool is well again", || info(&pool).contains(" rw "));
    let writer = {
        let other = other.clone();
        std::thread::spawn(move || write_fill(&*other, 0, BLOCK, 2))
    };
    std::thread::sleep(Duration::from_millis(100));
    assert!(!writer.is_finished(), "there is no block that nobody uses");
    data.release();
    let (bytes, status) = reader.join().unwrap();
    assert!(status.is_ok() && bytes.as_slice().iter().all(|byte| *byte == 1));
    assert!(writer.join().unwrap().is_ok());
    assert!(read_bytes(&*other, 0, 8).0.iter().all(|byte| *byte == 2));
    assert_eq!(
        request(&*one, Op::Flush, 0, 0),
        BlkStatus::IoErr,
        "its write is gone"
    );
    drop(shared);
    for dev in [one, other, pool] {
        dev.destroy();
    }
    check_clean(&meta);
}
