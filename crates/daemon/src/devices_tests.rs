//! Names, uuids and commands of devices that are being removed, or have been.

use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use thinmap_control::{DeviceSelector, DmError, DmService, NativeService, SuspendOptions};
use thinmap_dm::{DeviceOpener, DeviceUse, OpenDevice, OpenDeviceError, SharedState};
use thinmap_runtime::ThreadSpawner;
use thinmap_units::{DevNo, DmName, DmUuid};

use crate::daemon::{CLIENTS_BACK, Daemon};
use crate::devices::NotLabelled;

struct Nothing;

impl DeviceOpener for Nothing {
    fn open(&self, request: OpenDevice<'_>) -> Result<DeviceUse, OpenDeviceError> {
        Err(OpenDeviceError {
            reason: format!("{}: no such disk", request.spec),
            errno: Errno::NODEV.raw_os_error(),
        })
    }
}

fn daemon() -> Arc<Daemon> {
    let spawner = Arc::new(ThreadSpawner::new());
    Daemon::without_host(spawner, Arc::new(Nothing), SharedState::default()).expect("a daemon")
}

fn name(text: &str) -> DmName {
    DmName::new(text).expect("a name")
}

fn uuid(text: &str) -> DmUuid {
    DmUuid::new(text).expect("a uuid")
}

#[test]
fn a_device_that_is_gone_gets_neither_name_nor_uuid() {
    let daemon = daemon();
    daemon.create(&name("old"), None, None).expect("created");
    let gone = daemon.devices.by_name(&name("old")).expect("a device");
    daemon.remove_now(&gone).expect("removed");
    let number = Some(gone.dev_no().minor);
    daemon.create(&name("next"), None, number).expect("created");
    let devices = &daemon.devices;
    let next = devices.by_name(&name("next")).expect("a device");
    assert_eq!(next.dev_no(), gone.dev_no(), "of the same number");
    assert_eq!(
        devices.rename(&gone, &name("ghost")),
        Err(NotLabelled::Gone)
    );
    assert_eq!(
        devices.set_uuid(&gone, &uuid("ghost")),
        Err(NotLabelled::Gone)
    );
    devices.remove(&gone);
    assert!(devices.by_name(&name("ghost")).is_none());
    assert!(devices.by_uuid(&uuid("ghost")).is_none());
    assert!(devices.by_name(&name("next")).is_some());
}

/// They had found the device before its removal began, and waited for it.
#[test]
fn commands_that_waited_for_a_removal_find_no_device() {
    let daemon = daemon();
    let options = SuspendOptions {
        no_flush: true,
        lock_fs: false,
    };
    let by_name = || DeviceSelector::Name(name("d"));
    type Command = Box<dyn Fn(&Daemon) -> Result<(), DmError> + Send>;
    let commands: [Command; 5] = [
        Box::new(|daemon| daemon.rename(&name("d"), &name("ghost")).map(drop)),
        Box::new(move |daemon| daemon.suspend(&by_name(), options).map(drop)),
        Box::new(move |daemon| daemon.resume(&by_name(), options).map(drop)),
        Box::new(move |daemon| daemon.table_clear(&by_name()).map(drop)),
        Box::new(move |daemon| daemon.table_load(&by_name(), Vec::new(), false).map(drop)),
    ];
    for command in commands {
        daemon.create(&name("d"), None, None).expect("created");
        let device = daemon.devices.by_name(&name("d")).expect("a device");
        let control = device.control.lock();
        let waits = {
            let daemon = daemon.clone();
            std::thread::spawn(move || command(&daemon))
        };
        // The device's own users: the map, this function, and the command once it has found it.
        while Arc::strong_count(&device) < 3 {
            std::thread::yield_now();
        }
        device.set_removing(true);
        drop(control);
        let refused = waits.join().expect("no panic").expect_err("it is gone");
        assert_eq!(refused.errno, Errno::NXIO.raw_os_error());
        device.set_removing(false);
        daemon.remove_now(&device).expect("removed");
        assert!(daemon.devices.by_name(&name("ghost")).is_none());
    }
}

#[test]
fn of_two_uuids_at_once_a_device_keeps_the_first() {
    let daemon = daemon();
    daemon.create(&name("d"), None, None).expect("created");
    let device = daemon.devices.by_name(&name("d")).expect("a device");
    let devices = &daemon.devices;
    assert_eq!(devices.set_uuid(&device, &uuid("one")), Ok(()));
    let has = NotLabelled::HasUuid(uuid("one"));
    assert_eq!(devices.set_uuid(&device, &uuid("two")), Err(has));
    assert!(devices.by_uuid(&uuid("two")).is_none(), "it stays free");
    let refused = daemon.set_uuid(&name("d"), &uuid("two"));
    let refused = refused.expect_err("it has one");
    assert_eq!(refused.errno, Errno::INVAL.raw_os_error());
    assert!(refused.text.contains("already set to one"), "{refused:?}");
}

/// Somebody opened it after the stop had looked.
#[test]
fn a_stop_without_force_leaves_a_device_that_became_busy() {
    let daemon = daemon();
    for one in ["busy", "free"] {
        daemon.create(&name(one), None, None).expect("created");
    }
    let busy = daemon.devices.by_name(&name("busy")).expect("a device");
    let user = busy.md.open_for_table(DevNo::new(7, 99), false);
    let user = user.expect("opened");
    let refused = daemon.stop(false).expect_err("busy");
    assert_eq!(refused.errno, Errno::BUSY.raw_os_error());
    for said in ["busy is in use", "removed by now: 1"] {
        assert!(refused.text.contains(said), "{refused:?}");
    }
    assert!(!daemon.is_stopping());
    assert!(daemon.devices.by_name(&name("busy")).is_some());
    daemon.create(&name("free"), None, None).expect("created");
    drop(user);
    daemon.stop(false).expect("stops");
    let late = daemon.create(&name("late"), None, None);
    late.expect_err("it would be cut off");
    assert!(daemon.is_stopping() && daemon.devices.all().is_empty());
}

#[test]
fn a_deferred_removal_waits_for_nbd_clients_of_before_until_one_has_come_and_gone() {
    let daemon = daemon();
    let make = || {
        daemon.create(&name("d"), None, None).expect("created");
        daemon.devices.by_name(&name("d")).expect("a device")
    };
    let soon = Duration::from_secs(1);
    let later = Duration::from_secs(2);
    let device = make();
    assert!(!device.awaits_clients(soon, false), "it had none");
    device.await_clients(later);
    for (connected, waits) in [(false, true), (true, true), (true, true), (false, false)] {
        assert_eq!(device.awaits_clients(soon, connected), waits);
    }
    assert!(!device.awaits_clients(soon, false), "one has come and gone");
    device.await_clients(later);
    assert!(!device.awaits_clients(later, false), "none came");
    device.await_clients(daemon.env.clock.now() + CLIENTS_BACK);
    device.set_deferred_remove(true);
    assert!(daemon.reap(), "it waits");
    assert!(daemon.devices.by_name(&name("d")).is_some());
    device.await_clients(Duration::ZERO);
    assert!(!daemon.reap());
    assert!(daemon.devices.by_name(&name("d")).is_none());
}
