//! Arrays in stacks: members that fail under load, are damaged, removed and replaced, with nothing wrong above; and a daemon that dies.

use thinmap_tests::world::{World, can_make_block_devices};

/// Words: members are `linear` on files, so that one can be made to fail at a moment.
const WORDS: &str = r#"
    SECTORS=131072
    member() {
        truncate -s 64M data$1.img; truncate -s 1M meta$1.img
        dmsetup create data$1 --table "0 $SECTORS linear $PWD/data$1.img 0"
        dmsetup create meta$1 --table "0 2048 linear $PWD/meta$1.img 0"
    }
    # Fails from now on, and what was on it is no more.
    lose() {
        for part in data meta; do
            size=$(dmsetup table $part$1 | cut -d' ' -f2)
            dmsetup load $part$1 --table "0 $size error"; dmsetup resume $part$1
            dd if=/dev/urandom of=$part$1.img bs=1M count=$((size / 2048)) conv=notrunc status=none
            rm $part$1.img
        done
    }
    members() { for m in "$@"; do printf ' %s' $M/meta$m $M/data$m; done; }
    health() { dmsetup status r | cut -d' ' -f6; }
    settled() {
        for turn in $(seq 600); do
            case $(dmsetup status r) in *" idle "*) return 0 ;; esac
            sleep 0.1
        done
        dmsetup status r >&2; exit 1
    }
    swap() { dmsetup load r --table "$1"; dmsetup suspend r; dmsetup resume r; }
    load() {
        fio --name=load --direct=1 --ioengine=libaio --iodepth=16 --bsrange=4k-256k --blockalign=4k --size=96m --serialize_overlap=1 \
            --rw=randrw --rwmixwrite=70 --verify=crc32c --verify_fatal=1 --loops=2 --fsync=256 --filename="$@" >fio.out || { cat fio.out >&2; exit 1; }
    }
"#;

/// The stack: a thin volume on a pool, whose data device is encrypted, on raid6 of eight files.
#[test]
fn raid6_loses_two_of_eight_files_under_load_and_gets_new_ones() {
    if !can_make_block_devices("raid6_loses_two_of_eight_files_under_load_and_gets_new_ones") {
        return;
    }
    let world = World::new();
    let said = world.sh(&format!(
        r#"{WORDS}
        for m in 0 1 2 3 4 5 6 7; do member $m; done
        line="region_size 2048 min_recovery_rate 200000"
        length=$((6 * SECTORS))
        dmsetup create r --table "0 $length raid raid6_zr 5 128 $line 8$(members 0 1 2 3 4 5 6 7)"
        key=$(head -c 64 /dev/urandom | od -An -tx1 | tr -d ' \n')
        truncate -s 16M pool.img
        dmsetup create below --table "0 $length crypt aes-xts-plain64 $key 0 $M/r 0"
        dmsetup create pool --table "0 $length thin-pool $PWD/pool.img $M/below 128 0 1 skip_block_zeroing"
        dmsetup message pool 0 'create_thin 1'
        dmsetup create vol --table "0 409600 thin $M/pool 1"
        # Until it is told to stop.
        (until [ -e stop ]; do load $M/vol; done) & loader=$!
        sleep 1
        lose 3
        sleep 1
        lose 6
        for turn in $(seq 100); do [ $(health) = AAADAADA ] && break; sleep 0.1; done
        health
        # Two new ones, while the load goes on.
        member 8; member 9
        swap "0 $length raid raid6_zr 9 128 $line rebuild 3 rebuild 6 8$(members 0 1 2 8 4 5 9 7)"
        settled
        health
        touch stop; wait $loader
        dmsetup message r 0 check; settled
        dmsetup status r | cut -d' ' -f6-9
        # Everything once more from the new members: two others go.
        sum=$(sha256sum <$M/vol)
        lose 0; lose 1
        [ "$(sha256sum <$M/vol)" = "$sum" ] && echo the same
        load $M/vol
        health
        for name in vol pool below r; do dmsetup remove $name; done
        thin_check pool.img >/dev/null
        dmsetup remove_all
        "#
    ));
    assert_eq!(
        said,
        "AAADAADA\nAAAAAAAA\nAAAAAAAA 131072/131072 idle 0\nthe same\nDDAAAAAA\n"
    );
    world.end();
}

/// A daemon that dies leaves regions dirty: they are synced when the next one comes, and no byte is wrong above.
#[test]
fn arrays_go_on_when_the_daemon_dies() {
    if !can_make_block_devices("arrays_go_on_when_the_daemon_dies") {
        return;
    }
    let world = World::new();
    world.sh(&format!(
        r#"{WORDS}
        printf '[continuity]\ndeaths_max = 0\n' >config.toml
        thinmap daemon --detach --config config.toml
        for m in 0 1; do member $m; done
        dmsetup create r --table "0 $SECTORS raid raid1 3 0 region_size 1024 2$(members 0 1)"
        settled
        "#
    ));
    let load = std::thread::scope(|scope| {
        let load = scope.spawn(|| world.sh(&format!("{WORDS} load $M/r --size=48m --loops=4")));
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(700));
            world.kill_daemon();
        }
        load.join()
    });
    load.expect("the load");
    let said = world.sh(&format!(
        r#"{WORDS}
        settled
        dmsetup message r 0 check; settled
        dmsetup status r | cut -d' ' -f6-9
        dmsetup remove r
        cmp data0.img data1.img && echo equal
        dmsetup remove_all
        "#
    ));
    assert_eq!(said, "AA 131072/131072 idle 0\nequal\n");
    world.end();
}
