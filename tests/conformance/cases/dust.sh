# dust: arguments, every message, reads that fail, writes that heal.
disk A 4M

# reads DEVICE BLOCK BYTES: whether it can be read.
reads() {
    dd if="$1" of=/dev/null bs="$3" skip="$2" count=1 iflag=direct status=none 2>/dev/null
    echo "read of $2: $?"
}

# writes DEVICE BLOCK BYTES
writes() {
    dd if=/dev/zero of="$1" bs="$3" seek="$2" count=1 oflag=direct conv=notrunc status=none 2>/dev/null
    echo "write of $2: $?"
}

title 'blocks of 512 bytes'
run dmsetup create d --table "0 8192 dust $A 0 512"
run dmsetup table d
run dmsetup status d
run dmsetup deps d
run dmsetup message d 0 listbadblocks
run dmsetup message d 0 countbadblocks
run dmsetup message d 0 clearbadblocks
run dmsetup message d 0 addbadblock 60
run dmsetup message d 0 addbadblock 67
run dmsetup message d 0 AddBadBlock 72
run dmsetup message d 0 addbadblock 60
run dmsetup message d 0 listbadblocks
run dmsetup message d 0 countbadblocks
run dmsetup message d 0 queryblock 60
run dmsetup message d 0 queryblock 61
reads "$DEVDIR/d" 60 512
run dmsetup message d 0 enable
run dmsetup status d
reads "$DEVDIR/d" 59 512
reads "$DEVDIR/d" 60 512
reads "$DEVDIR/d" 7 4096
reads "$DEVDIR/d" 6 4096
writes "$DEVDIR/d" 60 512
reads "$DEVDIR/d" 60 512
run dmsetup message d 0 queryblock 60
run dmsetup message d 0 disable
reads "$DEVDIR/d" 67 512
writes "$DEVDIR/d" 67 512
run dmsetup message d 0 listbadblocks
run dmsetup message d 0 removebadblock 67
run dmsetup message d 0 removebadblock 67
run dmsetup message d 0 quiet
run dmsetup status d
run dmsetup message d 0 QUIET
run dmsetup status d
run dmsetup message d 0 clearbadblocks
run dmsetup message d 0 countbadblocks
title 'writes that fail first'
run dmsetup message d 0 enable
run dmsetup message d 0 addbadblock 80 2
writes "$DEVDIR/d" 80 512
writes "$DEVDIR/d" 80 512
reads "$DEVDIR/d" 80 512
writes "$DEVDIR/d" 80 512
reads "$DEVDIR/d" 80 512
run dmsetup message d 0 addbadblock 80 255
run dmsetup message d 0 addbadblock 81 256
title 'messages that are wrong'
run dmsetup message d 0 addbadblock
run dmsetup message d 0 removebadblock
run dmsetup message d 0 queryblock
run dmsetup message d 0 nothing
run dmsetup message d 0 nothing 1
run dmsetup message d 0 nothing 1 1
run dmsetup message d 0 queryblock 1 1
run dmsetup message d 0 addbadblock x
run dmsetup message d 0 addbadblock 1x
run dmsetup message d 0 addbadblock -1
run dmsetup message d 0 addbadblock 8192
run dmsetup message d 0 addbadblock 8193
run dmsetup message d 0 queryblock 8193
run dmsetup message d 0 addbadblock 1 x
run dmsetup message d 0 addbadblock x 1
run dmsetup message d 0 addbadblock 1 2 3
run dmsetup message d 0 enable 1
run dmsetup message d 0 listbadblocks
quiet dmsetup remove d
title 'larger blocks, a place of its own'
run dmsetup create d --table "0 4096 dust $A 64 4096"
run dmsetup table d
run dmsetup message d 0 addbadblock 10
run dmsetup message d 0 addbadblock 512
run dmsetup message d 0 addbadblock 513
run dmsetup message d 0 enable
reads "$DEVDIR/d" 10 4096
reads "$DEVDIR/d" 2 4096
reads "$DEVDIR/d" 0 65536
writes "$DEVDIR/d" 18 512
reads "$DEVDIR/d" 2 4096
run dmsetup message d 0 listbadblocks
quiet dmsetup remove d
run dmsetup create d --table "0 8192 dust $A 0 512"
run dmsetup status d
run dmsetup message d 0 listbadblocks
quiet dmsetup remove d
title 'every argument wrong in turn'
try bad "0 2048 dust"
try bad "0 2048 dust $A"
try bad "0 2048 dust $A 0"
try bad "0 2048 dust $A 0 512 0"
try bad "0 2048 dust $WORK/absent 0 512"
try bad "0 2048 dust $A x 512"
try bad "0 2048 dust $A 8192 512"
try bad "0 2048 dust $A 0 x"
try bad "0 2048 dust $A 0 0"
try bad "0 2048 dust $A 0 256"
try bad "0 2048 dust $A 0 768"
try good "0 2048 dust $A 0 1048576"
try bad "0 2048 dust $A 0 2097152"
try bad "0 2048 dust $A 0 4294967296"
run dmsetup ls
run dmsetup target-version dust
