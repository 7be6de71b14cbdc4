//! veritysetup through the shim and under the supervisor: images made, opened, corrupted, closed.

use crate::support::turn;

const NEEDS: &[&str] = &["/usr/sbin/veritysetup", "/usr/sbin/mkfs.ext4"];

/// The life of an image; `via` runs a program, `format` and `open` are options of both commands.
fn life(via: &str, format: &str, open: &str) -> String {
    format!(
        r#"
        v() {{ {via} veritysetup "$@"; }}
        rm -f data hash; mkdir -p content m
        head -c 3M /dev/urandom >content/x
        truncate -s 16M data; mkfs.ext4 -q -b 4096 -d content data
        v format data hash {format} | sed -n 's/^Root hash:[ \t]*//p' >root
        v verify data hash $(cat root)
        v open data image hash $(cat root) {open}
        v status image >status
        grep -q 'is active' status; grep -q 'type: *VERITY' status; grep -q 'status: *verified' status; grep -q 'mode: *readonly' status
        dmsetup table image | cut -d' ' -f3,4,7,8,11,14-
        mount -o ro /dev/mapper/image m; cmp m/x content/x; umount m
        v close image; [ ! -e /dev/mapper/image ]
        printf changed | dd of=data bs=1 seek=500 conv=notrunc status=none
        if v verify data hash $(cat root) 2>refusal; then exit 1; fi
        v open data image hash $(cat root) {open}
        if dd if=/dev/mapper/image bs=4096 count=1 iflag=direct of=/dev/null status=none 2>refusal; then echo read; else echo refused; fi
        v status image | sed -n 's/ *status: *//p'
        v close image
        # A wrong root: nothing can be read.
        v open data image hash $(tr 0-9 1-90 <root) 2>refusal
        if dd if=/dev/mapper/image bs=4096 count=1 iflag=direct of=/dev/null status=none 2>refusal; then exit 1; fi
        v status image | sed -n 's/ *status: *//p'
        v close image
        "#
    )
}

#[test]
fn images_live_and_die() {
    let Some((world, _turn)) = turn("images_live_and_die", NEEDS) else {
        return;
    };
    let shim = life("thinmap run --", "", "");
    assert_eq!(
        world.sh(&shim),
        "verity 1 4096 4096 sha256\nrefused\ncorrupted\ncorrupted\n"
    );
    let supervised = life(
        "thinmap run --static --",
        "--hash=sha512 --format=0 --hash-block-size=1024",
        "--ignore-corruption --ignore-zero-blocks --check-at-most-once",
    );
    let said = world.sh(&supervised);
    assert!(
        said.starts_with(
            "verity 0 4096 1024 sha512 3 ignore_corruption ignore_zero_blocks check_at_most_once"
        ),
        "{said}"
    );
    assert!(said.ends_with("read\ncorrupted\ncorrupted\n"), "{said}");
    world.end();
}

/// With codes, what rots is read all the same, until it is too much.
#[test]
fn what_rots_is_corrected() {
    let Some((world, _turn)) = turn("what_rots_is_corrected", NEEDS) else {
        return;
    };
    let said = world.sh(
        r#"
        v() { thinmap run -- veritysetup "$@"; }
        head -c 16M /dev/urandom >data
        sum=$(sha256sum <data)
        root=$(v format data hash --fec-device=codes --fec-roots=4 | sed -n 's/^Root hash:[ \t]*//p')
        dd if=/dev/urandom of=data bs=4k seek=1000 count=20 conv=notrunc status=none
        dd if=/dev/urandom of=hash bs=4k seek=5 count=3 conv=notrunc status=none
        v open data image hash $root --fec-device=codes --fec-roots=4
        dmsetup table image | cut -d' ' -f14- | sed 's/[0-9]*:[0-9]*/DEVICE/'
        [ "$(sha256sum </dev/mapper/image)" = "$sum" ] && echo right
        v status image | sed -n 's/ *status: *//p'
        v close image
        dd if=/dev/urandom of=data bs=4k seek=500 count=600 conv=notrunc status=none
        v open data image hash $root --fec-device=codes --fec-roots=4
        if dd if=/dev/mapper/image bs=4k skip=700 count=1 iflag=direct of=/dev/null status=none 2>refusal; then exit 1; fi
        v status image | sed -n 's/ *status: *//p'
        v close image
        "#,
    );
    let table = "8 use_fec_from_device DEVICE fec_blocks 4129 fec_start 0 fec_roots 4";
    assert_eq!(said, format!("{table}\nright\nverified\ncorrupted\n"));
    world.end();
}

/// What cannot be done is said at the open, and leaves nothing behind.
#[test]
fn what_is_not_there_is_refused() {
    let Some((world, _turn)) = turn("what_is_not_there_is_refused", NEEDS) else {
        return;
    };
    let said = world.sh(r#"
        v() { thinmap run -- veritysetup "$@"; }
        head -c 4M /dev/urandom >data
        root=$(v format data hash | sed -n 's/^Root hash:[ \t]*//p')
        head -c 100 /dev/urandom >signature
        if v open data image hash $root --root-hash-signature=signature 2>refusal; then exit 1; fi
        [ ! -e /dev/mapper/image ]
        v open data image hash $root; v close image
        echo done
        "#);
    assert_eq!(said, "done\n");
    world.end();
}
