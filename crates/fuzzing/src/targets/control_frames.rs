//! The control socket's bytes: frames, native requests, and ioctl buffers that no client of ours would send.
//!
//! Input: what a client sends before it closes.

use thinmap_control::Request;
use thinmap_control::fuzzing::control_session;

use super::Target;
use super::dm_ioctl::contained;

pub const TARGET: Target = Target {
    name: "control_frames",
    run,
    seeds,
};

fn run(bytes: &[u8]) {
    let contained = contained();
    let _turn = contained.begin();
    let answers = control_session(&*contained.daemon, bytes);
    contained.end();
    assert!(
        answers.is_empty() || answers.starts_with(b"TMC1"),
        "an answer without a frame"
    );
}

fn frame(kind: u32, nr: u32, body: &[u8]) -> Vec<u8> {
    let mut frame = b"TMC1".to_vec();
    for word in [kind, nr, body.len() as u32] {
        frame.extend_from_slice(&word.to_le_bytes());
    }
    frame.extend_from_slice(body);
    frame
}

fn seeds() -> Vec<Vec<u8>> {
    let natives = [
        r#"{"request":"ping"}"#,
        r#"{"request":"devices"}"#,
        r#"{"request":"open-path","name":"vol"}"#,
        r#"{"request":"watch-events"}"#,
        r#"{"request":"stop","force":false}"#,
        r#"{"request":"nothing-known"}"#,
        "[[[[[[[[",
    ];
    let mut seeds: Vec<Vec<u8>> = natives
        .iter()
        .map(|json| frame(2, 0, json.as_bytes()))
        .collect();
    for request in [Request::Version, Request::ListVersions, Request::ArmPoll] {
        seeds.push(frame(1, request.command().nr(), &request.encode(0)));
    }
    let list = Request::ListDevices {
        name_prefix: String::new(),
        uuid_prefix: String::new(),
        with_uuids: true,
    };
    let two = [
        frame(1, list.command().nr(), &list.encode(512)),
        frame(2, 0, natives[1].as_bytes()),
    ];
    seeds.push(two.concat());
    let mut endless = frame(1, 2, &[]);
    endless[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    seeds.push(endless);
    seeds
}
