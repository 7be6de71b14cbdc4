//! Devices: made, resized, removed, and what is left when a step fails.

use super::*;

#[test]
fn a_new_device_has_its_number_and_no_size() {
    let stack = Stack::start(2);
    assert_eq!(stack.nodes.kind(), NodeKind::Ublk);
    let node = stack.nodes.create(None).expect("create");
    assert_eq!(node.dev_no(), DevNo::new(BLOCK_MAJOR, 0));
    let state = stack.fake.state();
    let device = &state.devices[&id_of(&node)];
    assert_eq!((device.size, device.info.nr_hw_queues), (0, 2));
    assert_ne!(device.info.flags & FEATURE_USER_COPY, 0);
}

#[test]
fn activation_brings_limits_and_size_and_keeps_the_number() {
    let stack = Stack::start(1);
    stack.fake.state().free_delay = 3;
    let others: Vec<_> = (0..4).map(|_| stack.nodes.create(None)).collect();
    let node = stack.nodes.create(None).expect("create");
    let number = node.dev_no();
    // Lower numbers come free meanwhile: the kernel would give one of those.
    drop(others);
    let device = Held::with_limits(thin_limits());
    node.activate(device, "thin", false).expect("activate");
    assert_eq!(node.dev_no(), number);
    stack.fake.await_ids(&[id_of(&node)]);
    let state = stack.fake.state();
    let made = &state.devices[&id_of(&node)];
    assert_eq!((made.size, made.read_only), (1 << 20, false));
    assert_eq!(made.params.discard.granularity, 65_536);
    assert_eq!(made.params.basic.io_opt_shift, 16);
    assert_eq!(
        state.minors.iter().copied().collect::<Vec<_>>(),
        [number.minor]
    );
}

#[test]
fn a_number_taken_by_others_fails_the_activation_until_it_is_back() {
    let stack = Stack::start(1);
    let node = stack.nodes.create(None).expect("create");
    // As if a partition elsewhere got the number in the moment when it was free.
    stack.fake.state().free_delay = u32::MAX - 1;
    let device = Held::with_limits(thin_limits());
    let error = node
        .activate(device.clone(), "thin", false)
        .expect_err("taken");
    assert_eq!(error.errno(), libc::EBUSY);
    assert!(error.to_string().contains("259:0"), "{error}");
    stack.fake.await_ids(&[]);
    stack.fake.give_numbers_back();
    stack.fake.state().free_delay = 0;
    node.activate(device, "thin", false)
        .expect("the number is back");
    assert_eq!(node.dev_no().minor, 0);
    assert_eq!(stack.fake.state().devices[&id_of(&node)].size, 1 << 20);
}

#[test]
fn size_and_read_only_follow_the_device_and_nothing_is_told_twice() {
    let stack = Stack::start(1);
    let device = Arc::new(MemoryDevice::new(Sector(64)));
    let node = stack.active(device.clone());
    let id = id_of(&node);
    stack.write(&node, 63, &[9; 512]).expect("write");
    device.grow(Sector(128));
    let count = || {
        let state = stack.fake.state();
        state
            .log
            .iter()
            .filter(|op| **op == control::UPDATE_SIZE)
            .count()
    };
    assert_eq!(count(), 1);
    node.refresh().expect("refresh");
    node.refresh().expect("refresh");
    assert_eq!((count(), stack.fake.state().devices[&id].size), (2, 128));
    stack
        .write(&node, 127, &[9; 512])
        .expect("write behind the old end");
    let refused = Step::Control(control::UPDATE_SIZE);
    stack.fake.state().refuse.insert(refused, (0, Errno::IO));
    device.grow(Sector(256));
    assert_eq!(node.refresh().expect_err("refused").errno(), libc::EIO);
    node.refresh().expect("told the next time");
    assert_eq!(stack.fake.state().devices[&id].size, 256);
}

#[test]
fn every_step_that_fails_leaves_nothing_behind() {
    let stack = Stack::start(2);
    let steps = [
        Step::Control(control::ADD),
        Step::Control(control::SET_PARAMS),
        Step::Control(control::PARAMS),
        Step::Control(control::START),
        Step::Open,
        Step::Descriptors,
        Step::Fetch,
        Step::Show,
    ];
    for step in steps {
        for skip in [0, 1, 130] {
            stack.fake.state().refuse.insert(step, (skip, Errno::NOMEM));
            let made = stack.nodes.create(None);
            let was_used = stack.fake.state().refuse.remove(&step).is_none();
            match made {
                Ok(node) => {
                    assert!(!was_used, "{step:?} after {skip} went unnoticed");
                    node.remove(false).expect("remove");
                }
                Err(error) => {
                    assert!(
                        was_used && error.errno() == libc::ENOMEM,
                        "{step:?}: {error}"
                    );
                }
            }
            stack.fake.await_ids(&[]);
            let state = stack.fake.state();
            assert!(
                state.minors.is_empty(),
                "{step:?} after {skip} leaves a number"
            );
        }
    }
    stack.active(Arc::new(MemoryDevice::new(Sector(8))));
}

#[test]
fn a_failed_activation_can_be_tried_again() {
    let stack = Stack::start(1);
    let node = stack.nodes.create(None).expect("create");
    for step in [control::SET_PARAMS, control::START, control::UPDATE_SIZE] {
        let refused = Step::Control(step);
        stack.fake.state().refuse.insert(refused, (0, Errno::NOMEM));
        let device = Held::with_limits(thin_limits());
        let error = node.activate(device, "thin", false).expect_err("refused");
        assert_eq!(error.errno(), libc::ENOMEM);
    }
    let device = Held::with_limits(thin_limits());
    node.activate(device, "thin", false).expect("activate");
    assert_eq!(stack.fake.state().devices[&id_of(&node)].size, 1 << 20);
}

#[test]
fn a_device_in_use_is_not_removed() {
    for features in [u64::MAX, !FEATURE_TRY_STOP] {
        let stack = Stack::start(1);
        stack.fake.state().features = features;
        let node = stack.active(Arc::new(MemoryDevice::new(Sector(8))));
        let id = id_of(&node);
        stack.fake.set_users(id, 2);
        assert_eq!(node.open_count(), 2);
        assert!(matches!(node.remove(false), Err(NodeError::Busy { .. })));
        stack.read(&node, 0, 1).expect("still serves");
        stack.fake.set_users(id, 0);
        node.remove(false).expect("remove");
        node.remove(false).expect("twice is once");
        let again = node.activate(Held::new(), "test", false);
        assert!(matches!(again, Err(NodeError::Gone { .. })));
    }
}

#[test]
fn somebody_who_opens_at_the_last_moment_keeps_the_device() {
    let stack = Stack::start(1);
    let node = stack.active(Arc::new(MemoryDevice::new(Sector(8))));
    let refused = Step::Control(control::TRY_STOP);
    stack.fake.state().refuse.insert(refused, (0, Errno::BUSY));
    assert!(matches!(node.remove(false), Err(NodeError::Busy { .. })));
    stack.read(&node, 0, 1).expect("still serves");
}

#[test]
fn by_force_a_device_goes_at_its_last_close() {
    let stack = Stack::start(1);
    let node = stack.active(Arc::new(MemoryDevice::new(Sector(8))));
    let id = id_of(&node);
    stack.fake.set_users(id, 1);
    node.remove(true).expect("remove");
    let late = stack.fake.begin(id, 0, op::READ, 0, 1, &[]);
    assert_eq!(late.wait(), Err(libc::EIO));
    assert!(stack.fake.state().devices.contains_key(&id));
    stack.fake.set_users(id, 0);
    stack.fake.await_ids(&[]);
}

#[test]
fn removal_waits_for_requests_in_flight() {
    let stack = Stack::start(1);
    let device = Held::new();
    let node = stack.active(device.clone());
    let request = stack.begin(&node, 0, op::WRITE, 0, 8, &[3; 4096]);
    let held = device.take(1);
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| node.remove(true));
        // The removal is under way when the driver has been asked to stop.
        while stack.fake.state().log.last() != Some(&control::STOP) {
            std::thread::yield_now();
        }
        assert!(!request.is_done());
        held.into_iter().for_each(|io| io.complete(BlkStatus::Ok));
        removal.join().expect("no panic").expect("removed");
    });
    assert_eq!(request.wait(), Ok(vec![3; 4096]));
    assert_eq!(Arc::strong_count(&device), 1, "the device is let go");
}

#[test]
fn shutdown_takes_everything_away_and_nodes_may_outlive_it() {
    let stack = Stack::start(2);
    let nodes: Vec<_> = (0..20)
        .map(|_| stack.active(Arc::new(MemoryDevice::new(Sector(8)))))
        .collect();
    stack.nodes.shutdown();
    stack.fake.await_ids(&[]);
    drop(nodes);
}

#[test]
fn a_dropped_node_leaves_the_kernel() {
    let stack = Stack::start(1);
    drop(stack.active(Arc::new(MemoryDevice::new(Sector(8)))));
    stack.fake.await_ids(&[]);
}

#[test]
fn slots_of_removed_devices_are_used_again() {
    let stack = Stack::start(1);
    let stays = stack.active(Arc::new(MemoryDevice::new(Sector(8))));
    for round in 0..50u8 {
        let node = stack.active(Arc::new(MemoryDevice::new(Sector(8))));
        stack.write(&node, 1, &[round; 512]).expect("write");
        assert_eq!(stack.read(&node, 1, 1), Ok(vec![round; 512]));
        node.remove(false).expect("remove");
        assert_eq!(stack.read(&stays, 1, 1), Ok(vec![0; 512]));
    }
}

#[test]
fn old_drivers_are_left_alone_with_a_reason() {
    let open = |features| {
        let fake = Fake::new();
        fake.state().features = features;
        open_on(Arc::new(fake), Path::new("/run/one"), 1).err()
    };
    let no_resize = open(!FEATURE_UPDATE_SIZE).expect("too old");
    assert!(no_resize.to_string().contains("resize"), "{no_resize}");
    let no_copy = open(!FEATURE_USER_COPY).expect("too old");
    assert!(no_copy.to_string().contains("copied"), "{no_copy}");
    let fake = Fake::new();
    let question = Step::Control(control::FEATURES);
    fake.state().refuse.insert(question, (0, Errno::NOTSUP));
    let older = open_on(Arc::new(fake), Path::new("/run/one"), 1).err();
    assert!(matches!(older, Some(Missing::TooOld { .. })));
}

#[test]
fn only_the_remains_of_ones_own_run_directory_are_deleted() {
    let fake = Fake::new();
    let (ours, theirs) = (
        nodes_on(&fake, "/run/one", 1),
        nodes_on(&fake, "/run/two", 1),
    );
    let dead = ours.create(None).expect("create");
    let dying = ours.create(None).expect("create");
    let other = theirs.create(None).expect("create");
    fake.die(id_of(&dead));
    let deleted = stale::clean_stale_on(&fake, Path::new("/run/one"));
    assert_eq!(deleted, [dead.path(), dying.path()]);
    fake.await_ids(&[id_of(&other)]);
    assert!(stale::clean_stale_on(&fake, Path::new("/run/one")).is_empty());
    for nodes in [ours, theirs] {
        nodes.shutdown();
    }
    fake.await_ids(&[]);
}
