# One volume group on one image, made, changed and read back by whoever has device mapper: the kernel or thinmap.
#
# Sourced by sh, with IMAGE naming the physical volume's file, SUMS the list of what volumes hold ("name sha256"), and `l` a function
# that runs a command of lvm2's.

set -eu
export LVM_SUPPRESS_FD_WARNINGS=1 LC_ALL=C TZ=UTC
VG=exchange
V=/dev/$VG
M=$(mktemp -d /run/exchange.XXXX)

open_image() { PV=$(losetup -f --show "$IMAGE"); }

# Leaves no trace but the image.
close_image() {
    l vgchange -q -an $VG
    [ ! -e $V/t1 ]
    sync
    losetup -d "$PV"
    # Not a second time: the number may be somebody else's by then.
    PV=
    rmdir "$M"
}

# files VOLUME COMMAND...: with its file system mounted, run the command in it.
files() {
    mount "$V/$1" "$M"
    shift
    (cd "$M" && "$@")
    umount "$M"
}

# text SEED MIB: seq may find that nobody reads its last ones.
text() { { seq -f "$1 line %020.0f" 1 $(($2 * 1024 * 1024 / 24)) 2>/dev/null || :; } | head -c $(($2 * 1024 * 1024)); }
put() { text "$1" "$2" >"$1"; }

make() {
    truncate -s 700M "$IMAGE"
    open_image
    l pvcreate -qq "$PV"
    l vgcreate -qq $VG "$PV"
    l lvcreate -qq -y -n base -L 20M $VG
    text base 20 | dd of=$V/base bs=1M iflag=fullblock conv=fsync status=none
    l lvcreate -qq -y --type thin-pool -n pool -L 200M $VG
    l lvcreate -qq -y -n t1 -V 100M --thinpool pool $VG
    mkfs.ext4 -q $V/t1
    files t1 put one 20
    l lvcreate -qq -y -n s1 -s $VG/t1
    files t1 put two 10
    l lvcreate -qq -y -n s2 -s -kn $VG/s1
    files s2 put three 5
    l lvconvert -qq -y --type thin --thinpool pool --originname outside $VG/base
    text changed 3 | dd of=$V/base bs=1M seek=7 iflag=fullblock conv=notrunc,fsync status=none
}

change() {
    files t1 rm one
    files s2 put four 8
    l lvcreate -qq -y -n s3 -s -kn $VG/s2
    files s3 put five 3
    l lvconvert -qq -y --merge $VG/s1
    l lvextend -qq -y -L +50M $VG/pool
    l lvextend -qq -y --poolmetadatasize +4M $VG/pool
    l lvremove -qq -y $VG/s2
    l lvrename -qq $VG s3 s4
    text again 2 | dd of=$V/base bs=1M seek=1 iflag=fullblock conv=notrunc,fsync status=none
}

volumes() { l lvs --noheadings -o lv_name -S 'segtype=thin' $VG; }

activate() {
    l vgchange -q -ay -K $VG
}

note_sums() {
    for name in $(volumes); do
        echo "$name $(sha256sum <"$V/$name" | cut -d' ' -f1)"
    done >"$SUMS"
}

check_sums() {
    while read -r name sum; do
        if [ "$(sha256sum <"$V/$name" | cut -d' ' -f1)" = "$sum" ]; then
            echo "$name: right"
        else
            echo "$name: WRONG"
        fi
    done <"$SUMS"
}

# What the group looks like while it is active.
report() {
    echo "report begins"
    l lvs -a -o +seg_monitor,lv_active,lv_device_open $VG
    l lvs -a --units b --reportformat json \
        -o lv_all,seg_all $VG
    l pvs --units b -o pv_name,vg_name,pv_attr,pv_size,pv_free,pv_used,pv_uuid "$PV"
    l vgs --units b -o vg_all $VG
    l lvdisplay $VG
    l vgdisplay $VG
    l pvdisplay "$PV"
    l vgck $VG
    l dmsetup status
    l dmsetup table
    echo "report ends"
}
