//! integritysetup through the shim and under the supervisor: devices formatted, opened in each mode, damaged, recalculated, resized.
//!
//! `cryptsetup.sh` has some of the words that the scripts speak in.

use std::path::Path;

use crate::support::turn;
use thinmap_tests::world::World;

const NEEDS: &[&str] = &["/usr/sbin/integritysetup", "/usr/sbin/mkfs.ext4"];
const SHIM: &str = "thinmap run --";
const SUPERVISOR: &str = "thinmap run --static --";

#[track_caller]
fn script(world: &World, via: &str, body: &str) -> String {
    let words = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/cryptsetup.sh");
    world.sh(&format!(
        "VIA='{via}'; . {}\ni() {{ $VIA integritysetup -q \"$@\"; }}\nset -x\n{body}",
        words.display()
    ))
}

/// A file system on a device of its own. `format` and `open` are options of those two.
fn life(world: &World, via: &str, format: &str, open: &str) -> String {
    script(
        world,
        via,
        &format!(
            r#"
        rm -f A.img; file A 48M; head -c 32 /dev/urandom >key
        i format {format} $A
        i dump $A >dump; grep -q 'superblock_version' dump
        i open {open} $A whole
        i status whole >status; grep -q 'is active' status; grep -q 'type: *INTEGRITY' status
        mkfs.ext4 -q $NODES/whole; mkdir -p m; mount $NODES/whole m
        head -c 20M /dev/urandom >m/x; sum=$(sha256sum <m/x); umount m
        dmsetup table whole | cut -d' ' -f3- | sed "s|[0-9]*:[0-9]*|DEVICE|; s|:00*\$|:KEY|"
        i close whole; [ ! -e $NODES/whole ]
        i open {open} $A whole
        mount $NODES/whole m; [ "$(sha256sum <m/x)" = "$sum" ]; umount m
        dmsetup status whole | grep -q ' integrity 0 '
        i close whole
        "#
        ),
    )
}

#[test]
fn devices_with_tags_live_in_every_mode() {
    let Some((world, _turn)) = turn("devices_with_tags_live_in_every_mode", NEEDS) else {
        return;
    };
    let journaled = life(&world, SHIM, "", "");
    assert_eq!(
        journaled,
        "integrity DEVICE 0 4 J 8 journal_sectors:704 interleave_sectors:32768 buffer_sectors:128 \
         journal_watermark:50 commit_time:10000 fix_padding fix_hmac internal_hash:crc32c\n"
    );
    let hash = "--integrity sha256";
    let direct = life(
        &world,
        SUPERVISOR,
        &format!("{hash} --sector-size 4096 --tag-size 32"),
        &format!("{hash} --integrity-no-journal"),
    );
    assert!(direct.contains(" 0 32 D 7 block_size:4096 "), "{direct}");
    let bitmap = life(
        &world,
        SHIM,
        "--integrity xxhash64 --tag-size 8",
        "--integrity xxhash64 --integrity-bitmap-mode",
    );
    assert!(bitmap.contains(" 0 8 B "), "{bitmap}");
    let key = "--integrity hmac-sha256 --integrity-key-size 32 --integrity-key-file key";
    let signed = "--journal-integrity hmac-sha256 --journal-integrity-key-size 32 --journal-integrity-key-file key";
    let keyed = life(
        &world,
        SHIM,
        &format!("{key} {signed} --tag-size 32"),
        &format!("{key} {signed}"),
    );
    assert!(
        keyed.contains(" fix_hmac internal_hash:hmac(sha256):"),
        "{keyed}"
    );
    world.end();
}

#[test]
fn damage_is_an_error_until_tags_are_made_anew() {
    let test = "damage_is_an_error_until_tags_are_made_anew";
    let Some((world, _turn)) = turn(test, NEEDS) else {
        return;
    };
    let said = script(
        &world,
        SHIM,
        r#"
        file A 16M
        i format $A
        i open $A whole
        head -c 8M /dev/urandom | dd of=$NODES/whole bs=1M iflag=fullblock oflag=direct status=none
        printf 'here it is' | dd of=$NODES/whole bs=512 seek=5000 conv=notrunc,fsync,sync status=none
        i close whole
        at=$(grep -abo -m1 'here it is' A.img | cut -d: -f1)
        printf x | dd of=$A bs=1 seek=$((at + 2)) conv=notrunc,fsync status=none
        i open $A whole
        if dd if=$NODES/whole of=/dev/null bs=4096 skip=625 count=1 iflag=direct 2>said; then exit 1; fi
        grep -o 'Invalid or incomplete multibyte.*' said
        dmsetup status whole | cut -d' ' -f4
        i close whole
        i open --integrity-recovery-mode $A whole
        dd if=$NODES/whole bs=512 skip=5000 count=1 iflag=direct status=none | head -c 10; echo
        i close whole
        i open --integrity-recalculate-reset $A whole
        until dmsetup status whole | grep -q ' \([0-9]*\) \1$'; do sleep 0.1; done
        dd if=$NODES/whole bs=512 skip=5000 count=1 iflag=direct status=none | head -c 10; echo
        i close whole
        file D 8M
        i format --data-device $D --no-wipe $A
        i open --data-device $D --integrity-recalculate $A whole
        [ "$(blockdev --getsize64 $NODES/whole)" = $((8 << 20)) ]
        mkfs.ext4 -q $NODES/whole
        i resize --device-size 4194304 whole; [ "$(blockdev --getsize64 $NODES/whole)" = $((4 << 20)) ]
        i close whole
        "#,
    );
    assert_eq!(
        said,
        "Invalid or incomplete multibyte or wide character\n1\nhexe it is\nhexe it is\n"
    );
    world.end();
}
