//! cryptsetup through the shim and under the supervisor: LUKS1, LUKS2 and plain volumes, and volumes that it has made on a real
//! kernel.
//!
//! `cryptsetup.sh` has the words that the scripts speak in.

use std::path::Path;
use std::time::Duration;

use thinmap_tests::uml::Uml;
use thinmap_tests::world::World;

use crate::support::turn;

const NEEDS: &[&str] = &["/usr/sbin/cryptsetup", "/usr/sbin/mkfs.ext4"];
const SHIM: &str = "thinmap run --";
const SUPERVISOR: &str = "thinmap run --static --";

fn words() -> String {
    let words = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/cryptsetup.sh");
    words.display().to_string()
}

#[track_caller]
fn script(world: &World, via: &str, body: &str) -> String {
    world.sh(&format!("VIA='{via}'; . {}\nset -x\n{body}", words()))
}

/// The life of a LUKS volume; `format` are luksFormat's options. Prints the table line without its key.
fn life(world: &World, via: &str, format: &str) -> String {
    script(
        world,
        via,
        &format!(
            r#"
        rm -f A.img; file A 64M
        c luksFormat $CHEAP {format} $A pass
        c luksOpen --key-file pass $A vault
        c status vault >status; grep -q 'is active' status; grep -q 'cipher: *aes-xts-plain64' status
        mkfs.ext4 -q $NODES/vault; mkdir -p m; mount $NODES/vault m; head -c 20M /dev/urandom >m/x; sum=$(sha256sum <m/x)
        c luksAddKey $CHEAP --key-file pass $A other
        umount m
        c luksSuspend vault
        [ "$(dmsetup info -c --noheadings -o suspended vault)" = Suspended ]
        dmsetup table --showkeys vault | cut -d' ' -f5 | grep -qE '^0+$'
        refused luksResume --key-file /etc/hostname vault
        c luksResume --key-file other vault
        mount $NODES/vault m; [ "$(sha256sum <m/x)" = "$sum" ]; umount m
        c resize --key-file pass --size 40960 vault; [ "$(blockdev --getsz $NODES/vault)" = 40960 ]
        c resize --key-file pass vault
        dmsetup table vault | cut -d' ' -f1,3,4,6- | sed "s|[0-9]*:[0-9]*|DEVICE|"
        c luksClose vault; [ ! -e $NODES/vault ]
        c luksOpen --test-passphrase --key-file other $A
        refused luksOpen --key-file /etc/hostname $A vault
        c luksOpen --readonly --key-file other $A vault
        mount -o ro $NODES/vault m; [ "$(sha256sum <m/x)" = "$sum" ]; umount m
        c luksClose vault
        c luksErase $A
        refused luksOpen --key-file pass $A vault
        [ -z "$(ls $NODES)" ] || [ "$(ls $NODES)" = control ]
        "#
        ),
    )
}

#[test]
fn luks_volumes_live_and_die() {
    let Some((world, _turn)) = turn("luks_volumes_live_and_die", NEEDS) else {
        return;
    };
    let one = life(&world, SHIM, "--type luks1");
    assert_eq!(one, "0 crypt aes-xts-plain64 0 DEVICE 4096\n");
    let two = life(&world, SHIM, "--type luks2 --sector-size 512");
    assert_eq!(two, "0 crypt aes-xts-plain64 0 DEVICE 32768\n");
    let large = life(&world, SUPERVISOR, "--type luks2 --sector-size 4096");
    assert_eq!(
        large,
        "0 crypt aes-xts-plain64 0 DEVICE 32768 1 sector_size:4096\n"
    );
    world.end();
}

#[test]
fn flags_of_a_header_and_plain_volumes() {
    let Some((world, _turn)) = turn("flags_of_a_header_and_plain_volumes", NEEDS) else {
        return;
    };
    let said = script(
        &world,
        SHIM,
        r#"
        file A 64M
        c luksFormat $CHEAP --type luks2 $A pass
        c luksOpen --key-file pass --persistent --allow-discards --perf-no_read_workqueue --perf-no_write_workqueue --perf-same_cpu_crypt $A vault
        c luksClose vault
        c luksOpen --key-file pass $A vault
        dmsetup table vault | cut -d' ' -f9-
        c luksClose vault
        file B 8M
        head -c 32 /dev/urandom >key
        c open --type plain --cipher aes-cbc-essiv:sha256 --key-size 256 --key-file key $B bare
        sum=$(noise $NODES/bare); c close bare
        c open --type plain --cipher aes-cbc-essiv:sha256 --key-size 256 --key-file key $B bare
        [ "$(sum_of $NODES/bare)" = "$sum" ]; c close bare
        c open --type plain --cipher aes-xts-plain64 --key-size 256 --offset 2048 --skip 16 --sector-size 4096 --key-file key $B bare
        dmsetup table bare | cut -d' ' -f1-4,6,8- ; c close bare
        refused open --type plain --cipher aes-xts-lmk --key-size 256 --key-file key $B bare
        c reencrypt $CHEAP --key-file pass $A
        c luksOpen --key-file pass $A vault; c luksClose vault
        "#,
    );
    assert_eq!(
        said,
        "4 allow_discards same_cpu_crypt no_read_workqueue no_write_workqueue\n\
         0 14336 crypt aes-xts-plain64 16 2048 1 sector_size:4096\n"
    );
    world.end();
}

/// Volumes that cryptsetup has made on a real kernel, with the key in its keyring, open here; what is written goes back.
#[test]
fn luks_volumes_of_a_kernels_go_back_and_forth() {
    let test = "luks_volumes_of_a_kernels_go_back_and_forth";
    let Some((world, _turn)) = turn(test, NEEDS) else {
        return;
    };
    if let Some(reason) = Uml::missing() {
        println!("SKIP {test}: {reason}");
        return;
    }
    let make = r#"
        for kind in luks1:512 luks2:512 luks2:4096; do
            name=${kind%:*}_${kind#*:}
            size=; [ ${kind#*:} = 512 ] || size="--sector-size 4096"
            file $name 24M; device=${!name}
            c luksFormat $CHEAP --type ${kind%:*} $size $device pass
            c luksOpen --key-file pass $device vault
            noise $NODES/vault >$name.sum
            c luksClose vault
        done
    "#;
    let check = r#"
        for name in luks1_512 luks2_512 luks2_4096; do
            file $name 24M
            c luksOpen --key-file pass ${!name} vault
            [ "$(sum_of $NODES/vault)" = "$(cat $name.sum)" ] && echo $name: right
            noise $NODES/vault >$name.sum
            c luksClose vault
        done
    "#;
    let right = "luks1_512: right\nluks2_512: right\nluks2_4096: right\n";
    let kernel = |body: &str| {
        let here = world.path().display().to_string();
        let script = format!(
            "set -e\nmkdir /run/w\ncd /run/w\ncp {here}/*.img {here}/*.sum . 2>/dev/null || true\n\
             cat >body <<'END'\nset -e\nVIA=\n. {}\n{body}\nEND\nbash body\ncp *.img *.sum {here}/",
            words()
        );
        let uml = Uml::new(Duration::from_secs(240)).expect("a guest");
        let run = uml.run(&script, &[]).expect("a run");
        assert_eq!(run.code, Some(0), "{}\n{}", run.text, run.console);
        run.text
    };
    kernel(make);
    assert_eq!(script(&world, SHIM, check), right);
    let back = kernel(check);
    assert!(back.ends_with(right), "{back}");
    world.end();
}
