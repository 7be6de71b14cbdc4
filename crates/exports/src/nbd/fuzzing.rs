//! A whole NBD session, handshake and transmission, from the bytes of one client.

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use thinmap_block::{BlockDevice, QueueHandler, Turn};
use thinmap_runtime::Waker;

use super::askers::Askers;
use super::listener::Reaper;
use super::negotiation::{Agreement, Negotiation, OPTION_BYTES_MAX, Step, TlsState};
use super::queue::{AtWork, NewClient, Queue, QueueShared};
use super::registry::Registry;
use super::transport::{Received, Transport};

/// Serves `input` in pieces of `piece` bytes (at least one) as what a client sends that then closes, and gives what the client
/// is sent, at most `replies_max` bytes of it. `exports` are name, device and whether writes are refused.
///
/// # Panics
/// When the session does not end, or when the server holds more than its bounds allow.
pub fn nbd_session(
    exports: &[(&str, Arc<dyn BlockDevice>, bool)],
    input: &[u8],
    piece: usize,
    replies_max: usize,
) -> Vec<u8> {
    let registry = Registry::default();
    for (name, device, read_only) in exports {
        registry.add(name, device.clone(), *read_only);
    }
    let mut replies = Vec::new();
    if let Some((agreement, buffered, rest)) = shake_hands(&registry, input, piece, &mut replies) {
        transmit(agreement, buffered, rest, &mut replies, replies_max);
    }
    for (name, ..) in exports {
        assert_eq!(
            registry.connections(name),
            0,
            "a client that is gone is counted"
        );
    }
    replies
}

/// Agreement, what was received behind the handshake, what was not received.
type Agreed<'a> = (Agreement, Vec<u8>, &'a [u8]);

fn shake_hands<'a>(
    registry: &Registry,
    input: &'a [u8],
    piece: usize,
    replies: &mut Vec<u8>,
) -> Option<Agreed<'a>> {
    let mut negotiation = Negotiation::new(TlsState::Off, replies);
    let (mut rest, mut buffered) = (input, Vec::new());
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rest.len().min(piece.max(1)));
        rest = later;
        buffered.extend_from_slice(now);
        loop {
            // The client fetches its replies at once.
            let mut out = Vec::new();
            let step = negotiation.step(&mut buffered, &mut out, registry);
            replies.extend(out);
            match step {
                Ok(Step::More) => break,
                Ok(Step::Full) => {}
                Ok(Step::Done(agreement)) => return Some((*agreement, buffered, rest)),
                Ok(Step::Bye | Step::StartTls) | Err(_) => return None,
            }
        }
        // INVARIANT: no more than one unfinished option is held.
        assert!(buffered.len() <= OPTION_BYTES_MAX as usize + OPTION_HEAD_BYTES);
    }
    None
}

/// The transmission phase by a queue that has this one client.
fn transmit(
    agreement: Agreement,
    input: Vec<u8>,
    mut rest: &[u8],
    replies: &mut Vec<u8>,
    replies_max: usize,
) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (server, client) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("a socket pair");
    let _ = sockopt::set_socket_send_buffer_size_force(&server, 1 << 20);
    let waker = Arc::new(Waker::new().expect("an event descriptor"));
    let shared = Arc::new(QueueShared::new(waker.clone()));
    let reaper = Arc::new(Reaper::new(waker.clone()));
    let ready = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll descriptor");
    let mut queue = Queue::new(shared.clone(), reaper, AtWork::default(), ready, askers());
    shared.attach(NewClient {
        transport: Transport::new(server),
        agreement,
        input,
    });
    let mut peer = Some(Transport::new(client));
    let mut turns = 0_u64;
    while shared.connections() > 0 {
        turns += 1;
        assert!(turns < TURNS_MAX, "the session does not end");
        let turn = queue.turn();
        if let Some(open) = &mut peer {
            fetch(open, replies, replies_max);
            if !rest.is_empty()
                && let Ok(sent) = open.send(&[IoSlice::new(rest)])
            {
                rest = &rest[sent..];
                continue;
            }
        }
        if rest.is_empty() && matches!(turn, Turn::Idle | Turn::Watch { .. }) {
            // Everything was taken in; the client goes when what is with the devices has come back.
            if matches!(turn, Turn::Watch { .. }) {
                peer = None;
            }
            sleep(&queue, &waker);
        } else if matches!(turn, Turn::Idle) {
            sleep(&queue, &waker);
        }
    }
}

fn fetch(peer: &mut Transport, replies: &mut Vec<u8>, replies_max: usize) {
    let mut chunk = [0; 16 << 10];
    while let Ok(Received::Bytes { count, .. }) = peer.receive(&mut [IoSliceMut::new(&mut chunk)]) {
        let room = replies_max.saturating_sub(replies.len());
        replies.extend_from_slice(&chunk[..count.min(room)]);
    }
}

/// Until a device answers or the socket moves, but not long: the loop is the judge of whether anything still happens.
fn sleep(queue: &Queue, waker: &Waker) {
    let mut fds = [
        PollFd::new(waker, PollFlags::IN),
        PollFd::from_borrowed_fd(queue.epoll(), PollFlags::IN),
    ];
    let timeout = Timespec::try_from(Duration::from_millis(10)).expect("a short time");
    let _ = poll(&mut fds, Some(&timeout));
    waker.clear();
}

/// The same threads for all sessions.
fn askers() -> Arc<Askers> {
    static ASKERS: OnceLock<Arc<Askers>> = OnceLock::new();
    ASKERS.get_or_init(Arc::default).clone()
}

/// Magic, number and length.
const OPTION_HEAD_BYTES: usize = 16;
/// Far beyond what any input of a fuzzer needs.
const TURNS_MAX: u64 = 100_000;
