//! The time that a daemon has to come up.

use super::*;

#[test]
fn a_daemon_that_gets_on_has_time_again() {
    let socket = || {
        let kind = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let pair = rustix::net::socketpair(kind.0, kind.1, SocketFlags::CLOEXEC, None);
        pair.expect("sockets").0
    };
    let config = KeeperConfig {
        run_dir: PathBuf::new(),
        binary: PathBuf::from("/dev/null"),
        arguments: Vec::new(),
        limits: ContinuitySection::default(),
    };
    let mut keeper = Keeper::new(config, channel()).expect("a keeper");
    keeper.generation = 1;
    let begun = Instant::now();
    let mut life = Life {
        pid: 0,
        socket: socket(),
        reader: None,
        deadline: begun,
        ready: false,
        stopping: false,
    };
    // What the one before had still to say is nothing of this one's.
    keeper.handle(&mut life, Event::Said(0, ToKeeper::Progress, None));
    assert_eq!(life.deadline, begun);
    keeper.handle(&mut life, Event::Said(1, ToKeeper::Progress, None));
    assert!(life.deadline >= begun + START_MAX);
    assert!(!life.ready);
}

#[test]
fn a_keeper_of_before_is_told_of_no_progress() {
    let of_before = r#"{"Begin":{"keeper":"k","generation":1,"pid":2}}"#;
    let ToDaemon::Begin(beginning) = serde_json::from_str(of_before).expect("understood") else {
        panic!("another message");
    };
    assert!(!beginning.hears_progress);
}
