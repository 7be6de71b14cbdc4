//! Block status of devices that do not answer.
#![allow(clippy::unwrap_used, reason = "tests")]

mod nbd_support;

use std::sync::Arc;

use nbd_support::{Client, Fixture, HandDevice, MIB, context_data, eventually};
use thinmap_block::Extent;
use thinmap_units::Sector;

fn device() -> Arc<HandDevice> {
    let device = HandDevice::new(MIB);
    *device.extents.lock() = vec![Extent {
        sectors: Sector::from_bytes(MIB),
        allocated: true,
        zeroes: false,
    }];
    device
}

/// With a device that answers and one that does only when its `extents` are let go.
fn fixture() -> (Fixture, Arc<HandDevice>) {
    let fixture = Fixture::new(|_| {});
    let hung = device();
    let add = |name, device| fixture.server().add_export(name, device, false);
    add("hung", hung.clone()).unwrap();
    add("fine", device()).unwrap();
    (fixture, hung)
}

fn open(fixture: &Fixture, name: &str) -> Client {
    let mut client = fixture.connect();
    client.hello();
    client.ask(8, &[]);
    assert_eq!(
        client
            .ask(10, &context_data(name, &["base:allocation"]))
            .len(),
        2
    );
    assert_eq!(client.go(name, &[]), 1);
    client
}

/// Asks for block status; the question is on its way when this returns.
fn ask(client: &mut Client, cookie: u64) {
    client.request(7, 0, cookie, 0, 4096);
    client.request(3, 0, cookie + 1000, 0, 0);
    assert_eq!(client.simple(), (cookie + 1000, 0));
}

#[test]
fn a_device_that_does_not_answer_keeps_nobody_else_waiting() {
    let (fixture, hung) = fixture();
    let hangs = hung.extents.lock();
    let mut first = open(&fixture, "hung");
    ask(&mut first, 1);
    ask(&mut first, 2);
    let mut other = open(&fixture, "fine");
    other.request(7, 0, 3, 0, 4096);
    assert_eq!(other.chunk().2, 3);
    // A client that goes is no opener any more, when it has had its time to fetch replies.
    let mut second = open(&fixture, "hung");
    ask(&mut second, 4);
    drop(second);
    eventually("one is gone", || fixture.server().connections("hung") == 1);
    drop(hangs);
    assert_eq!((first.chunk().2, first.chunk().2), (1, 2));
    ask(&mut first, 5);
    assert_eq!(first.chunk().2, 5);
}

#[test]
fn a_device_that_does_not_answer_does_not_keep_the_server_from_ending() {
    let (mut fixture, hung) = fixture();
    let hangs = hung.extents.lock();
    let mut client = open(&fixture, "hung");
    ask(&mut client, 1);
    fixture.server.take().unwrap().shutdown();
    assert_eq!(client.rest(), b"");
    drop(hangs);
    eventually("the device is let go", || Arc::strong_count(&hung) == 1);
}
