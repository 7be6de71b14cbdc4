//! The thin tools of the binary: under their names, by verb, on images and on a running pool.

use std::os::unix::process::ExitStatusExt;

use crate::world::{Ended, World, can_make_block_devices, thinmap};

/// An image with two volumes that share, made by thin_restore, in `meta.img`.
fn image(world: &World) {
    let xml = r#"<superblock uuid="" time="2" transaction="5" flags="0" version="2" data_block_size="128" nr_data_blocks="1000">
  <device dev_id="1" mapped_blocks="12" transaction="3" creation_time="0" snap_time="2">
    <range_mapping origin_begin="0" data_begin="10" length="5" time="0"/>
    <range_mapping origin_begin="7" data_begin="20" length="7" time="1"/>
  </device>
  <device dev_id="2" mapped_blocks="5" transaction="4" creation_time="1" snap_time="2">
    <range_mapping origin_begin="0" data_begin="10" length="3" time="0"/>
    <single_mapping origin_block="5" data_block="40" time="2"/>
    <single_mapping origin_block="11" data_block="24" time="1"/>
  </device>
</superblock>
"#;
    std::fs::write(world.path().join("pool.xml"), xml).expect("pool.xml");
    world.sh("truncate -s 4M meta.img; thin_restore -q -i pool.xml -o meta.img");
    let program = thinmap();
    world.sh(&format!(
        "mkdir tools; for name in dump restore delta ls rmap trim metadata_size; do ln -s {} tools/thin_$name; done",
        program.display()
    ));
}

#[test]
fn the_tools_answer_to_their_names() {
    let world = World::new();
    image(&world);
    let same = [
        "thin_dump meta.img",
        "thin_dump -f human_readable meta.img",
        "thin_dump --dev-id 2 --skip-mappings meta.img",
        "thin_dump --skip meta.img",
        "thin_delta --thin1 1 --thin2 2 meta.img",
        "thin_delta --snap1 2 --snap2 1 --verbose meta.img",
        "thin_ls meta.img",
        "thin_ls --no-headers -o DEV,EXCLUSIVE_BLOCKS,SHARED,SNAP_TIME meta.img",
        "thin_metadata_size -b 64k -s 1t -m 1000",
        "thin_metadata_size -b 128 -s 777777 -m 10 -u g",
        "thin_metadata_size -b64k -s1t -m1k -um -n",
        "thin_metadata_size -b 64k -s 1t -m 1000 -ugiga -nsh",
        "thin_metadata_size -b 1m -s 17g -m 3k --unit t --numeric-only=long",
    ];
    for command in same {
        assert_eq!(
            world.sh(&format!("tools/{command}")),
            world.sh(command),
            "{command}"
        );
    }
    let sorted = "thin_rmap --region 0..12 --region 20..50 meta.img | LC_ALL=C sort";
    assert_eq!(world.sh(&format!("tools/{sorted}")), world.sh(sorted));
    world.sh("truncate -s 4M again.img; tools/thin_restore -i pool.xml -o again.img; thin_check -q again.img
         thin_dump again.img | cmp - pool.xml; thinmap dump again.img | cmp - pool.xml
         thinmap dump -o out.xml again.img; cmp out.xml pool.xml
         thinmap dump -r again.img 2>report | cmp - pool.xml
         thinmap restore -i - -o again.img < pool.xml; thinmap dump again.img | cmp - pool.xml");
    let root = "thinmap delta --root1 1 --root2 1 again.img";
    assert!(
        world.sh(root).contains("<same begin=\"0\""),
        "{}",
        world.sh(root)
    );
    assert!(world.sh("tools/thin_dump -V").starts_with("0.9.0 "));
    assert!(world.sh("thinmap --help").contains("metadata-size"));
    assert!(world.sh("thinmap ls --help").contains("EXCLUSIVE_BYTES"));
    world.sh("thinmap dump again.img | head -1 >/dev/null");
}

#[test]
fn the_tools_speak_json() {
    let world = World::new();
    image(&world);
    let json = |command: &str| -> serde_json::Value {
        let text = world.sh(command);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command}: {error}\n{text}"))
    };
    let dump = json("thinmap dump --json meta.img");
    assert_eq!(dump["transaction"], 5);
    assert_eq!(
        dump["devices"][1]["mappings"],
        serde_json::json!([[0, 10, 3, 0], [5, 40, 1, 2], [11, 24, 1, 1]])
    );
    let ls = json("thinmap ls --json -o DEV,EXCLUSIVE_BLOCKS,SHARED meta.img");
    assert_eq!(
        ls[0],
        serde_json::json!({"dev": 1, "exclusive_blocks": 8, "shared": 262_144})
    );
    let delta = json("thinmap delta --json --thin1 1 --thin2 2 meta.img");
    assert_eq!(
        delta["ranges"][0],
        serde_json::json!({"kind": "same", "begin": 0, "length": 3, "left_data": 10, "right_data": 10})
    );
    let rmap = json("thinmap rmap --json --region 24..25 meta.img");
    assert_eq!(
        rmap[1],
        serde_json::json!({"data_begin": 24, "dev": 2, "thin_begin": 11, "length": 1})
    );
    assert_eq!(
        json("thinmap metadata-size --json -b 64k -s 1t -m 1000")["bytes"],
        549_490_688
    );
    let restored = json("truncate -s 4M j.img; thinmap restore --json -i pool.xml -o j.img");
    assert_eq!(
        (&restored["volumes"], &restored["mappings"]),
        (&2.into(), &17.into())
    );
    let trimmed = json(
        "truncate -s 65536000 data.img; thinmap trim --json --metadata-dev j.img --data-dev data.img",
    );
    assert_eq!(trimmed["blocks"], 1000 - 13);
}

#[test]
fn wrong_command_lines_name_what_is_wrong() {
    let world = World::new();
    image(&world);
    let cases = [
        ("thinmap dump nosuch.img", "nosuch.img"),
        ("thinmap dump", "DEVICE"),
        ("thinmap dump --bogus meta.img", "--bogus"),
        ("thinmap dump -m meta.img", "reserve_metadata_snap"),
        ("thinmap dump -f custom meta.img", "custom"),
        ("thinmap ls -o DEV,FOO meta.img", "FOO"),
        ("thinmap rmap meta.img", "--region"),
        ("thinmap rmap --region 5..3 meta.img", "5..3"),
        ("thinmap delta --thin1 1 --thin2 9 meta.img", "volume 9"),
        ("thinmap delta --thin1 1 meta.img", "--thin2"),
        ("thinmap restore -i pool.xml -o nosuch.img", "nosuch.img"),
        (
            "cp meta.img copy.img; thinmap restore -i meta.img -o copy.img",
            "no XML",
        ),
        ("thinmap restore -i meta.img -o meta.img", "is what is read"),
        ("thinmap dump -o meta.img meta.img", "is what is read"),
        (
            "truncate -s 64K small.img; thinmap restore -i pool.xml -o small.img; thinmap dump small.img; truncate -s 16K small.img; thinmap restore -i pool.xml -o small.img",
            "does not fit",
        ),
        ("thinmap metadata-size -b 63k -s 1t -m 1", "power of two"),
        ("thinmap metadata-size -b 64k -s 1t -m 1 -u x", "'x'"),
        (
            "thinmap trim --metadata-dev meta.img --data-dev pool.xml",
            "pool.xml",
        ),
        ("thinmap nonsense", "nonsense"),
    ];
    for (command, wanted) in cases {
        let output = world.try_sh(command);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{command}: {error}");
        assert!(error.contains(wanted), "{command}: {error}");
    }
}

/// A world with a pool and its volume `one`, of which 20 blocks of 64 KiB are written.
pub fn with_a_volume(test: &str) -> Option<World> {
    if !can_make_block_devices(test) {
        return None;
    }
    let world = World::new();
    world.make_pool("64M", "");
    world.make_thin(1, "one", 16_384);
    world.sh("dd if=/dev/urandom of=$M/one bs=64K count=20 oflag=direct conv=fsync status=none");
    Some(world)
}

#[test]
fn a_running_pool_is_read_by_its_name() {
    let Some(world) = with_a_volume("a_running_pool_is_read_by_its_name") else {
        return;
    };
    world.sh(
        "dmsetup suspend one; dmsetup message pool 0 'create_snap 2 1'; dmsetup resume one
         dd if=/dev/urandom of=$M/one bs=64K count=3 oflag=direct conv=fsync status=none",
    );
    let list = "thinmap ls --no-headers -o DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS pool";
    let words =
        |text: String| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
    assert_eq!(words(world.sh(list)), ["1", "20", "3", "2", "20", "3"]);
    let delta = world.sh("thinmap delta --thin1 1 --thin2 2 pool");
    assert!(
        delta.contains("<different begin=\"0\" length=\"3\"/>"),
        "{delta}"
    );
    world.sh("thinmap dump pool >live.xml");
    // Nothing is held afterwards, also when the tool failed.
    assert!(
        world.sh("dmsetup status pool").contains(" - rw "),
        "{}",
        world.sh("dmsetup status pool")
    );
    let error = world.fails("thinmap delta --thin1 1 --thin2 77 pool");
    assert!(error.contains("volume 77"), "{error}");
    assert!(world.sh("dmsetup status pool").contains(" - rw "));
    // What is written meanwhile is seen by the next look.
    world.sh(
        "dd if=/dev/urandom of=$M/one bs=64K count=9 seek=1 oflag=direct conv=fsync status=none",
    );
    assert_eq!(words(world.sh(list)), ["1", "20", "10", "2", "20", "10"]);

    // One that somebody holds is left to him, and can be read on the device.
    world.sh("dmsetup message pool 0 reserve_metadata_snap");
    let error = world.fails(list);
    assert!(
        error.contains("holds a metadata snapshot already") && error.contains("meta"),
        "{error}"
    );
    let by_hand =
        world.sh("thinmap ls -m --no-headers -o DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS meta.img");
    assert_eq!(words(by_hand), ["1", "20", "10", "2", "20", "10"]);
    let theirs = world.sh("thin_dump -m meta.img");
    assert_eq!(world.sh("thinmap dump -m meta.img"), theirs);
    world.sh("dmsetup message pool 0 release_metadata_snap");

    let error = world.fails("thinmap dump meta.img");
    assert!(error.contains("in use"), "{error}");
    let error = world.fails("thinmap trim --metadata-dev meta.img --data-dev data.img");
    assert!(error.contains("in use"), "{error}");
    let error = world.fails("thinmap ls one");
    assert!(error.contains("no thin pool"), "{error}");
    let error = world.fails("thinmap ls nobody");
    assert!(error.contains("nobody"), "{error}");

    world.sh("dmsetup remove_all; thinmap dump meta.img >still.xml; thin_dump meta.img | cmp - still.xml");
    world.end();
}

#[test]
fn a_snapshot_tells_its_own_transaction_and_a_running_pools_text_can_be_restored() {
    let name = "a_snapshot_tells_its_own_transaction_and_a_running_pools_text_can_be_restored";
    let Some(world) = with_a_volume(name) else {
        return;
    };
    world.sh(
        "dmsetup message pool 0 'set_transaction_id 0 7'; dmsetup message pool 0 reserve_metadata_snap
         dmsetup message pool 0 'set_transaction_id 7 8'",
    );
    for check in ["thinmap check -m", "thinmap check --super-block-only -m"] {
        let said = world.sh(&format!("{check} meta.img"));
        assert!(said.contains("transaction id 7\n"), "{said}");
        let said = world.sh(&format!("{check} --json meta.img"));
        assert!(said.contains("\"transaction_id\": 7"), "{said}");
    }
    let text = world.sh(
        "dmsetup message pool 0 release_metadata_snap; thinmap dump pool > pool.xml; truncate -s 16M new.img
         thinmap restore -q -i pool.xml -o new.img; thin_check -q new.img; head -1 pool.xml",
    );
    assert!(text.contains("nr_data_blocks=\"1024\""), "{text}");
    // A device that cannot be read is not damaged metadata.
    world.sh("printf \"0 8 linear $PWD/new.img 0\n8 32760 error\n\" | dmsetup create bad");
    let output = world.try_sh("thinmap check $M/bad");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("kernel's log"), "{said}");
    world.sh("dmsetup remove bad; dmsetup remove one; dmsetup remove pool");
    world.end();
}

#[test]
fn a_command_that_is_told_to_end_gives_the_metadata_snapshot_back() {
    if !can_make_block_devices("a_command_that_is_told_to_end_gives_the_metadata_snapshot_back") {
        return;
    }
    let world = World::new();
    world.make_pool("64M", "");
    world.sh("mkfifo text");
    let status = || world.sh("dmsetup status pool");
    for (signal, number) in [("HUP", 1), ("INT", 2), ("TERM", 15)] {
        // Waits for a reader with the snapshot in hand. The tests' own runner may ignore signals.
        let words = ["--default-signal", "thinmap", "dump", "-o", "text", "pool"];
        let dump = world.command("env").args(words).spawn().expect("env runs");
        let mut dump = Ended(dump);
        while status().contains(" - rw ") {
            assert!(dump.0.try_wait().expect("wait").is_none(), "ended early");
        }
        world.sh(&format!("kill -{signal} {}", dump.0.id()));
        let ended = dump.0.wait().expect("wait");
        assert_eq!(ended.signal(), Some(number), "{ended}");
        assert!(status().contains(" - rw "), "{signal}: {}", status());
    }
    world.sh("dmsetup remove pool");
    world.end();
}
