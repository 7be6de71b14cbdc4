//! A FUSE connection whose kernel is a socket: requests in, replies out, on the calling thread.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair, sockopt,
};
use thinmap_block::{BlockDevice, QueueHandler, Turn};

use super::abi::OutHeader;
use super::channel::Channel;
use super::file::{Files, Geometry};
use super::queue::Queue;
use super::ringing::Ringing;
use zerocopy::FromBytes;

/// Gives each request to a queue that has one file per device (node ids 2, 3, ... in the order given; the second argument of a
/// device is whether writes are refused), and gives the replies.
///
/// # Panics
/// When a reply is not framed as the kernel demands, or when a request that was taken is never done with.
pub fn fuse_session(devices: &[(Arc<dyn BlockDevice>, bool)], requests: &[&[u8]]) -> Vec<Vec<u8>> {
    SESSION.with_borrow_mut(|session| {
        session
            .get_or_insert_with(Session::new)
            .run(devices, requests)
    })
}

/// A queue and its kernel. Kept by the thread, since its ring and its buffers take long to make and to end.
struct Session {
    kernel: OwnedFd,
    channel: Arc<Channel>,
    files: Arc<Files>,
    queue: Queue,
}

thread_local! {
    static SESSION: RefCell<Option<Session>> = const { RefCell::new(None) };
}

impl Session {
    fn new() -> Self {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (server, kernel) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .expect("a socket pair");
        for socket in [&server, &kernel] {
            let _ = sockopt::set_socket_send_buffer_size_force(socket, SOCKET_BYTES);
        }
        let files = Arc::new(Files::default());
        let channel = Arc::new(Channel::new(server).expect("an event descriptor"));
        let queue = Queue::new(channel.clone(), files.clone(), Ringing::new(None), (0, 1));
        Self {
            kernel,
            channel,
            files,
            queue,
        }
    }

    fn run(
        &mut self,
        devices: &[(Arc<dyn BlockDevice>, bool)],
        requests: &[&[u8]],
    ) -> Vec<Vec<u8>> {
        // As a new mount: node ids begin again, and nothing is known of the files before.
        self.files.number_from_the_start();
        self.queue.sinks.clear();
        self.queue.agreed = false;
        for (device, read_only) in devices {
            let geometry = Geometry::of(&**device, *read_only);
            self.files.add().attach(device.clone(), geometry);
        }
        let mut replies = Vec::new();
        for request in requests {
            if send(&self.kernel, request, SendFlags::empty()).is_err() {
                continue;
            }
            take_in(&mut self.queue);
            fetch(self.kernel.as_fd(), &mut replies);
        }
        for file in self.files.all() {
            // Waits for what is in flight: it would not return if a request were lost.
            file.retire();
            self.files.remove(&file);
        }
        assert!(self.channel.is_idle(), "a request was not counted out");
        replies
    }
}

fn take_in(queue: &mut Queue) {
    for _ in 0..TURNS_MAX {
        if !matches!(queue.turn(), Turn::Again) {
            return;
        }
    }
    panic!("the queue does not come to rest");
}

fn fetch(kernel: BorrowedFd<'_>, replies: &mut Vec<Vec<u8>>) {
    let mut reply = vec![0; REPLY_BYTES_MAX];
    while let Ok((count, _)) = recv(kernel, &mut reply[..], RecvFlags::DONTWAIT) {
        if count == 0 {
            return;
        }
        let (head, _) = OutHeader::read_from_prefix(&reply[..count]).expect("a reply has a header");
        assert_eq!(head.len as usize, count, "a reply tells its length");
        assert!(
            (-4095..=0).contains(&head.error),
            "a reply tells an errno: {}",
            head.error
        );
        replies.push(reply[..count].to_vec());
    }
}

const TURNS_MAX: u32 = 10_000;
const SOCKET_BYTES: usize = 4 << 20;
/// Above the largest request's data.
const REPLY_BYTES_MAX: usize = 1 << 20;
