//! Volumes over NBD, with other people's clients.

use crate::world::{World, can_make_block_devices};

#[test]
fn every_device_is_an_export_of_its_own_name() {
    if !can_make_block_devices("every_device_is_an_export_of_its_own_name") {
        return;
    }
    let world = World::new();
    world.make_pool("1G", "");
    world.make_thin(0, "vol", 204_800);
    world.sh("head -c 30M /dev/urandom > content
         dd if=content of=$M/vol bs=1M oflag=direct conv=fsync status=none
         nbdcopy \"nbd+unix:///vol?socket=$RUN/nbd.sock\" out
         cmp -n 31457280 content out
         nbdinfo --list \"nbd+unix:///?socket=$RUN/nbd.sock\" | grep -q 'export=\"vol\"'");
    // What was never written is a hole that reads as zeroes.
    let map = world.sh("nbdinfo --map \"nbd+unix:///vol?socket=$RUN/nbd.sock\"");
    assert!(map.contains("data") && map.contains("hole,zero"), "{map}");
    world.sh(
        "qemu-img convert -n -f raw -O raw content \"nbd+unix:///vol?socket=$RUN/nbd.sock\"
         qemu-img compare -f raw -F raw out \"nbd+unix:///vol?socket=$RUN/nbd.sock\"",
    );
    world.sh("dmsetup rename vol other; nbdinfo --size \"nbd+unix:///other?socket=$RUN/nbd.sock\" | grep -qx 104857600");
    world.fails("nbdinfo --size \"nbd+unix:///vol?socket=$RUN/nbd.sock\"");
    world.sh("dmsetup remove other; dmsetup remove pool; thin_check meta.img");
    world.end();
}

#[test]
fn a_connected_client_keeps_its_device() {
    if !can_make_block_devices("a_connected_client_keeps_its_device") {
        return;
    }
    let world = World::new();
    world.sh(
        "truncate -s 64M disk.img; dmsetup create disk --table \"0 131072 linear $PWD/disk.img 0\"",
    );
    world.sh(
        "(PATH=/usr/bin:$PATH nbdsh -u \"nbd+unix:///disk?socket=$RUN/nbd.sock\" -c 'import time; open(\"connected\",\"w\"); time.sleep(3)') & client=$!
         for i in $(seq 100); do test -e connected && break; sleep 0.1; done
         if dmsetup remove disk 2>error; then exit 1; fi
         grep -q 'Device or resource busy' error
         wait $client
         for i in $(seq 50); do dmsetup remove disk 2>/dev/null && exit 0; sleep 0.1; done; exit 1",
    );
    world.end();
}

#[test]
fn the_next_daemon_listens_where_the_configuration_says_then() {
    if !can_make_block_devices("the_next_daemon_listens_where_the_configuration_says_then") {
        return;
    }
    let port = std::net::TcpListener::bind("0.0.0.0:0").and_then(|socket| socket.local_addr());
    let port = port.expect("a free port").port();
    let world = World::new();
    let configure = |nbd: &str| {
        let text = format!("[continuity]\ndeaths_max = 0\n[nbd]\n{nbd}\n");
        std::fs::write(world.path().join("config.toml"), text).expect("configuration");
    };
    let next = |nbd: &str| {
        configure(nbd);
        world.kill_daemon();
        // Answered when NBD is served.
        world.sh("timeout 60 thinmap ping");
    };
    let at = |host: &str| format!("timeout 60 nbdinfo --size nbd://{host}:{port}/disk");
    let over_unix = "timeout 60 nbdinfo --size \"nbd+unix:///disk?socket=$RUN/nbd.sock\"";
    // In clear behind the certificate's back is what must not come of it.
    world.sh("openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 1 -subj /CN=localhost 2>/dev/null");
    let tls = format!(
        "tls_certificate = \"{0}/cert.pem\"\ntls_key = \"{0}/key.pem\"",
        world.path().display()
    );
    configure(&format!("tcp = \"0.0.0.0:{port}\"\n{tls}"));
    world.sh(
        "thinmap daemon --detach --config config.toml; truncate -s 1M disk.img
         dmsetup create disk --table \"0 2048 linear $PWD/disk.img 0\"",
    );
    world.fails(&at("127.0.0.2"));
    next(&format!("tcp = \"127.0.0.1:{port}\""));
    world.sh(&format!("{}; {over_unix}", at("127.0.0.1")));
    world.fails(&format!("exec 3<>/dev/tcp/127.0.0.2/{port}"));
    next("");
    world.sh(over_unix);
    world.fails(&format!("exec 3<>/dev/tcp/127.0.0.1/{port}"));
    // One more with both, and a run directory that somebody has tidied up.
    world.sh("rm $RUN/nbd.sock");
    next(&format!("tcp = \"127.0.0.1:{port}\""));
    world.sh(&format!("{}; {over_unix}", at("127.0.0.1")));
    next("unix = false");
    world.sh("dmsetup remove disk; test ! -e $RUN/nbd.sock");
    world.end();
}
