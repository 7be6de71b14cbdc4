//! `thinmap install-shim`: in a mount namespace with an /etc and a /usr/local/lib of its own, never in this machine's.

use crate::support::turn;
use thinmap_tests::world::World;

const NEEDS: &[&str] = &[
    "/usr/sbin/dmsetup",
    "/usr/sbin/lvm",
    "/usr/bin/setpriv",
    "/usr/bin/python3",
];

/// No environment leads anyone: what is installed must find the daemon by itself. `D` is Debian's dmsetup.
const NAMESPACE: &str = r#"
    mkdir etc; cp -a /etc/. etc; rm -f etc/ld.so.preload
    mount --bind etc /etc
    mount -t tmpfs -o mode=755 local /usr/local/lib
    # Where Debian's dmsetup without the shim leaves a node of its own.
    mount -t tmpfs -o mode=755 mapper /dev/mapper
    unset THINMAP_RUN_DIR THINMAP_DEV_DIR LD_PRELOAD
    export LVM_SUPPRESS_FD_WARNINGS=1
    D=/usr/sbin/dmsetup
    LIST=/etc/ld.so.preload
    DIR=/usr/local/lib/thinmap
    SO=$DIR/preload/libthinmap_dm.so
    SHIM=$(dirname "$(readlink -f "$(command -v thinmap)")")/libthinmap_dm.so
    # What a command says that must fail.
    refused() { if "$@" 2>&1; then echo "not refused: $*"; fi; }
"#;

/// Runs a script apart from this machine's files.
#[track_caller]
fn apart(world: &World, script: &str) -> String {
    let file = world.path().join("apart.sh");
    std::fs::write(&file, format!("{NAMESPACE}\n{script}")).expect("script");
    world.sh("unshare --mount --propagation private bash -euo pipefail apart.sh; test ! -e /usr/local/lib/thinmap")
}

const NO_DRIVER: &str = "/dev/mapper/control: open failed: No such device\n";

#[test]
fn an_installed_shim_serves_programs_that_know_nothing_of_it() {
    let name = "an_installed_shim_serves_programs_that_know_nothing_of_it";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = apart(
        &world,
        r#"
        refused $D ls | sed -n 1p
        thinmap install-shim
        cat $LIST; stat -c '%a %u %g' $DIR $DIR/preload $SO $LIST
        # Without a daemon there is no driver; with one, which has the shim in it as well, there is.
        refused $D ls | sed -n 1p
        thinmap daemon --detach
        grep -q $SO /proc/$(thinmap ping | sed -n 's/^process: *//p')/maps
        truncate -s 64M data; truncate -s 4M meta
        data=$(losetup -f --show data); meta=$(losetup -f --show meta)
        trap 'thinmap stop --force; losetup -d $data $meta' EXIT
        env -i $D create pool --table "0 131072 thin-pool $meta $data 128 0"
        env -i $D message pool 0 'create_thin 7'
        env -i $D create vol --table "0 65536 thin /dev/mapper/pool 7"
        env -i $D table vol | sed 's, [0-9]*:[0-9]*,,'
        head -c 1M /dev/urandom > x; dd if=x of=/dev/mapper/vol oflag=direct bs=1M status=none; cmp -n 1M x /dev/mapper/vol
        env -i $D remove vol pool
        lvm version | grep -c 'Driver version: *4.47.0'
        lvm pvs
        # Installed over a running program: it keeps what it has.
        sleep 60 & pid=$!
        until grep -q $SO /proc/$pid/maps; do :; done
        cp $SHIM other.so; echo >> other.so
        THINMAP_SHIM=other.so thinmap install-shim
        grep -q "$SO (deleted)" /proc/$pid/maps; kill $pid
        # A second copy of the shim is one too many, but does no harm.
        thinmap run -- $D create twice --table '0 8 zero'; thinmap run -- grep -c device-mapper /proc/misc /proc/devices
        thinmap run -- $D rename twice renamed; test -b /dev/mapper/renamed; thinmap run -- $D remove renamed
        # Other users' set-user-id programs are not led by the environment.
        cp $D /usr/local/lib/d; chmod 4755 /usr/local/lib/d; mkdir /usr/local/lib/elsewhere; env -i $D create z --table '0 8 zero'
        setpriv --reuid 65534 --clear-groups env THINMAP_RUN_DIR=/usr/local/lib/elsewhere /usr/local/lib/d ls | cut -f1
        env -i $D remove z
        thinmap uninstall-shim
        { ls -d $LIST $DIR 2>&1 || true; } | sed 's/.*cannot/cannot/'
        refused $D ls | sed -n 1p
        thinmap uninstall-shim
        "#,
    );
    let installed = "/usr/local/lib/thinmap/preload/libthinmap_dm.so";
    let expected = format!(
        "{NO_DRIVER}{installed}: installed\n/etc/ld.so.preload: entry added\n{installed}\n755 0 0\n755 0 0\n755 0 0\n644 0 0\n\
         {NO_DRIVER}0 65536 thin 7\n1\n{installed}: installed\n/etc/ld.so.preload: names it already\n/proc/misc:1\n/proc/devices:1\nz\n\
         /etc/ld.so.preload: entry removed\n{installed}: removed\n\
         cannot access '/etc/ld.so.preload': No such file or directory\n\
         cannot access '/usr/local/lib/thinmap': No such file or directory\n\
         {NO_DRIVER}The shim is not installed.\n"
    );
    assert_eq!(said, expected);
    world.end();
}

#[test]
fn a_user_tells_nothing_to_a_daemon_of_another_user() {
    let name = "a_user_tells_nothing_to_a_daemon_of_another_user";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = apart(
        &world,
        r#"
        thinmap install-shim > /dev/null
        mkdir -m 777 /usr/local/lib/made
        as() { user=$1; shift; setpriv --reuid $user --clear-groups env THINMAP_RUN_DIR=/usr/local/lib/made "$@"; }
        as 1234 python3 -c 'if True:
            import os, socket
            os.umask(0)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind("/usr/local/lib/made/control.sock")
            listener.listen()
            open("/usr/local/lib/made/ready", "w")
            print(len(listener.accept()[0].recv(100)), "bytes")' > heard &
        until [ -e /usr/local/lib/made/ready ]; do sleep 0.01; done
        refused as 5678 $D ls | sed -n 1p
        wait; cat heard
        thinmap uninstall-shim > /dev/null
        "#,
    );
    assert_eq!(said, format!("{NO_DRIVER}0 bytes\n"));
    world.end();
}

#[test]
fn other_entries_stay_and_a_second_time_changes_nothing() {
    let name = "other_entries_stay_and_a_second_time_changes_nothing";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = apart(
        &world,
        r#"
        math=$(ls /lib/*/libm.so.6 | head -n 1)
        printf '# first\n%s # why\n' $math > $LIST; chmod 640 $LIST; cp $LIST before
        thinmap install-shim > /dev/null; ls -i --time-style=full-iso -l $LIST $SO > one
        thinmap install-shim; ls -i --time-style=full-iso -l $LIST $SO > two; cmp one two
        head -n 2 $LIST | cmp - before; tail -n 1 $LIST; stat -c %a $LIST
        # Half of it is gone: the rest is put back, and taken away.
        rm $SO; thinmap install-shim 2>/dev/null; cmp $SO $SHIM
        rm $SO; thinmap uninstall-shim 2>/dev/null; cmp $LIST before
        thinmap install-shim > /dev/null; cp before $LIST; thinmap uninstall-shim; cmp $LIST before; test ! -e $DIR
        # What a killed command left is in nobody's way.
        mkdir -p $DIR/preload; echo half > $DIR/preload/.libthinmap_dm.so.thinmap-new; echo half > /etc/.ld.so.preload.thinmap-new
        thinmap install-shim > /dev/null; ls -A $DIR/preload; ls -A /etc | grep thinmap-new || true
        # Several at once: one entry, whole.
        thinmap uninstall-shim > /dev/null
        for i in 1 2 3 4; do thinmap install-shim > /dev/null & done; wait; grep -c thinmap $LIST; /bin/true
        for i in 1 2 3 4; do thinmap uninstall-shim > /dev/null & done; wait; cmp $LIST before; test ! -e $DIR
        "#,
    );
    let installed = "/usr/local/lib/thinmap/preload/libthinmap_dm.so";
    let list = "/etc/ld.so.preload";
    let expected = format!(
        "{installed}: is up to date\n{list}: names it already\n{installed}\n640\n\
         {installed}: installed\n{list}: names it already\n\
         {list}: entry removed\n{installed}: removed\n\
         libthinmap_dm.so\n1\n"
    );
    assert_eq!(said, expected);
    world.end();
}

#[test]
fn what_would_do_harm_is_refused_and_leaves_nothing() {
    let name = "what_would_do_harm_is_refused_and_leaves_nothing";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = apart(
        &world,
        r#"
        clean() { test ! -e $LIST && test ! -e $DIR; }
        for file in misc devices; do
            { cat /proc/$file; echo '252 device-mapper'; } > fake; mount --bind fake /proc/$file
            refused thinmap install-shim; clean
            [ $file = misc ] || { thinmap install-shim --force; thinmap uninstall-shim; } | grep -c :
            umount /proc/$file
        done
        cp "$(readlink -f "$(command -v thinmap)")" /usr/local/lib/t
        for verb in install-shim uninstall-shim; do
            refused setpriv --reuid 65534 --clear-groups env THINMAP_RUN_DIR=/tmp /usr/local/lib/t $verb; clean
        done
        # Libraries that would not load, one of which would end every program.
        echo text > bad.so; refused env THINMAP_SHIM=bad.so thinmap install-shim; clean
        { head -c 4 $SHIM; printf '\1'; tail -c +6 $SHIM; } > bad.so
        refused env THINMAP_SHIM=bad.so thinmap install-shim; clean
        sed 's/GLIBC_2\.34/GLIBC_9.34/' $SHIM > bad.so; refused env THINMAP_SHIM=bad.so thinmap install-shim | sed 's/:.*`/: ... `/; s/ (.*//'; clean
        refused env THINMAP_SHIM=none.so thinmap install-shim; clean
        # A good one that was there stays.
        thinmap install-shim > /dev/null; refused env THINMAP_SHIM=bad.so thinmap install-shim > /dev/null
        cmp $SO $SHIM; /bin/true; thinmap uninstall-shim > /dev/null; clean
        # Places that others could change.
        mkdir -m 777 $DIR; refused thinmap install-shim; chgrp 50 $DIR; chmod 2775 $DIR; refused thinmap install-shim
        chgrp 0 $DIR; chmod 755 $DIR; chown 65534 $DIR; refused thinmap install-shim; rmdir $DIR
        ln -s elsewhere $LIST; refused thinmap install-shim; rm $LIST; test ! -e /etc/elsewhere
        mkdir $LIST; refused thinmap install-shim; refused thinmap uninstall-shim; rmdir $LIST; clean
        "#,
    );
    let why = |file: &str| {
        format!(
            "thinmap: the kernel has its own device mapper ({file} lists it): with the shim in every program, none would reach \
             it or its devices any more (--force installs all the same)\n"
        )
    };
    let root = "thinmap: only root may change what every program loads (/etc/ld.so.preload)\n";
    let bad = "thinmap: libthinmap_dm.so would not load in this system: ";
    let expected = [
        &*why("/proc/misc"),
        &why("/proc/devices"),
        "4\n",
        root,
        root,
        bad,
        "it is for another machine than /bin/true there\n",
        bad,
        "it is for another machine than /bin/true there\n",
        "thinmap: ... `GLIBC_9.34' not found\n",
        "thinmap: THINMAP_SHIM=none.so: No such file or directory (os error 2)\n",
        "thinmap: /usr/local/lib/thinmap: may be changed by every user\n",
        "thinmap: /usr/local/lib/thinmap: may be changed by group 50: chmod g-w /usr/local/lib/thinmap\n",
        "thinmap: /usr/local/lib/thinmap: belongs to user 65534, not to root\n",
        "thinmap: /etc/ld.so.preload: is a symbolic link; edit what it points to by hand\n",
        "thinmap: /etc/ld.so.preload: Invalid argument (os error 22)\n",
        "thinmap: /etc/ld.so.preload: Invalid argument (os error 22)\n",
    ];
    assert_eq!(said, expected.concat());
    world.end();
}

#[test]
fn an_image_gets_the_shim_inside_and_this_system_does_not() {
    let name = "an_image_gets_the_shim_inside_and_this_system_does_not";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = apart(
        &world,
        r#"
        # An image: two programs and what they need. Its /usr/local is a link that only makes sense inside.
        mkdir -p tree/etc tree/usr tree/lib tree/var/local/lib; ln -s /var/local tree/usr/local
        for library in $({ ldd $SHIM; ldd /bin/true; ldd /bin/cat; } | grep -o '/[^ ]*\.so[^ ]*' | sort -u); do
            mkdir -p tree/$(dirname $library); cp -L $library tree/$library
        done
        mkdir tree/bin; cp /bin/true /bin/cat tree/bin
        # This system's own device mapper would not matter.
        { cat /proc/misc; echo '236 device-mapper'; } > fake; mount --bind fake /proc/misc
        thinmap install-shim --root tree
        find tree/var -type f -printf '%P %m %U\n'
        chroot tree /bin/cat /etc/ld.so.preload 2>&1
        chroot tree /lib64/ld-linux-x86-64.so.2 --list /bin/cat | grep -o '^[^(]*thinmap[^(]*'
        test ! -e $LIST; test ! -e $DIR
        thinmap uninstall-shim --root tree; find tree/var -mindepth 3; ls tree/etc
        # One that lacks what the shim needs; one with nothing to try it with; none at all.
        rm tree/lib/*/libgcc_s.so.1; refused thinmap install-shim --root tree | cut -d: -f1-3; ls tree/etc
        rm tree/bin/true; thinmap install-shim --root tree 2>&1; thinmap uninstall-shim --root tree > /dev/null
        mkdir empty; refused thinmap install-shim --root empty; refused thinmap install-shim --root nowhere
        # This system by another name is this system.
        refused thinmap install-shim --root /proc/self/root | grep -c 'its own device mapper'
        "#,
    );
    let expected = "\
tree/usr/local/lib/thinmap/preload/libthinmap_dm.so: installed
tree/etc/ld.so.preload: entry added
local/lib/thinmap/preload/libthinmap_dm.so 755 0
/usr/local/lib/thinmap/preload/libthinmap_dm.so
\t/usr/local/lib/thinmap/preload/libthinmap_dm.so 
tree/etc/ld.so.preload: entry removed
tree/usr/local/lib/thinmap/preload/libthinmap_dm.so: removed
thinmap: libthinmap_dm.so would not load in tree: /bin/true
thinmap: libthinmap_dm.so was not tried in tree: /bin/true: No such file or directory (os error 2)
tree/usr/local/lib/thinmap/preload/libthinmap_dm.so: installed
tree/etc/ld.so.preload: entry added
thinmap: empty/etc: no such directory
thinmap: nowhere: No such file or directory (os error 2)
1
";
    assert_eq!(said, expected);
    world.end();
}
