# zero and error: the two targets that need no device.
run dmsetup create z --table "0 1024 zero"
run dmsetup table z
run dmsetup status z
quiet sh -c "head -c 4096 /etc/services | dd of=$DEVDIR/z bs=4096 oflag=direct"
zeroed "$DEVDIR/z" 0 1024
run dmsetup create e --table "0 1024 error"
run dmsetup table e
run dmsetup status e
run dd if="$DEVDIR/e" of=/dev/null bs=4096 count=1 iflag=direct status=none
run dd if=/dev/zero of="$DEVDIR/e" bs=4096 count=1 oflag=direct status=none
run dmsetup create mixed --table "0 64 zero
64 64 error
128 64 zero"
run dmsetup table mixed
run dmsetup status mixed
run dd if="$DEVDIR/mixed" of=/dev/null bs=4096 count=8 iflag=direct status=none
run dd if="$DEVDIR/mixed" of=/dev/null bs=4096 skip=8 count=1 iflag=direct status=none
run dd if="$DEVDIR/mixed" of=/dev/null bs=4096 skip=16 count=8 iflag=direct status=none
title 'wrong arguments'
try bad "0 8 zero x"
run dmsetup create e2 --table "0 8 error x y"
run dmsetup table e2
run dmsetup message z 0 hello
run dmsetup message e 0 hello
run dmsetup ls
