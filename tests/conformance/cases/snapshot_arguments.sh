# snapshot, snapshot-origin, snapshot-merge: every argument wrong in turn, and those that are right.
disk O 2M
disk C 2M
disk C2 2M
good="$O $C P 8"
title 'snapshot'
try bad "0 4096 snapshot"
try bad "0 4096 snapshot $O $C P"
try bad "0 4096 snapshot $WORK/absent $C P 8"
try bad "0 4096 snapshot 250:250 $C P 8"
try bad "0 4096 snapshot $O $WORK/absent P 8"
try bad "0 4096 snapshot $O nosuchname P 8"
try bad "0 4096 snapshot $O $O P 8"
try bad "0 4096 snapshot $O $C X 8"
try bad "0 4096 snapshot $O $C PX 8"
try bad "0 4096 snapshot $O $C OP 8"
try bad "0 4096 snapshot $O $C P x"
try bad "0 4096 snapshot $O $C P -8"
try bad "0 4096 snapshot $O $C P 8k"
try bad "0 4096 snapshot $O $C P 3"
try bad "0 4096 snapshot $O $C P 4294967296"
try bad "0 4096 snapshot $O $C P 4194304"
try bad "0 4096 snapshot $O $C P 2147483648"
try bad "0 4096 snapshot $O $C P 8192"
try bad "0 4097 snapshot $O $C P 8"
try bad "0 4096 snapshot $good x"
try bad "0 4096 snapshot $good 3"
try bad "0 4096 snapshot $good 1"
try bad "0 4096 snapshot $good 1 nonsense"
try bad "0 4096 snapshot $good 2 discard_zeroes_cow"
try bad "0 4096 snapshot $good 1 discard_passdown_origin"
title 'what is right'
try good "0 4096 snapshot $good"
try good "0 4096 snapshot $O $C p 8 0"
try good "0 4096 snapshot $O $C PO 8"
try good "0 4096 snapshot $O $C poe 8"
try good "0 4096 snapshot $O $C P +8"
try good "0 4096 snapshot $O $C P 32"
try good "0 4096 snapshot $O $C2 P 0"
try good "0 4096 snapshot $O $C2 N 16"
try good "0 4096 snapshot $O $C2 Nonsense 1"
try good "0 4096 snapshot $good 1 discard_zeroes_cow"
try good "0 4096 snapshot $good 2 DISCARD_zeroes_cow discard_passdown_origin more"
try good "0 1000 snapshot $good"
title 'a COW device that holds something else'
fill "$C2" 0 8 red
try bad "0 4096 snapshot $O $C2 P 8"
try good "0 4096 snapshot $O $C2 N 8"
quiet dd if=/dev/zero of="$C2" bs=4k count=1 conv=fsync
quiet dmsetup create s --table "0 4096 snapshot $O $C2 P 8"
quiet dmsetup remove s
printf '\002' | dd of="$C2" bs=1 seek=8 conv=notrunc,fsync status=none
try bad "0 4096 snapshot $O $C2 P 8"
printf '\001' | dd of="$C2" bs=1 seek=8 conv=notrunc,fsync status=none
printf '\007' | dd of="$C2" bs=1 seek=12 conv=notrunc,fsync status=none
try bad "0 4096 snapshot $O $C2 P 8"
printf '\010' | dd of="$C2" bs=1 seek=12 conv=notrunc,fsync status=none
printf '\000' | dd of="$C2" bs=1 seek=4 conv=notrunc,fsync status=none
try good "0 4096 snapshot $O $C2 P 8"
title 'snapshot-merge'
try bad "0 4096 snapshot-merge $O $C P"
try bad "0 4096 snapshot-merge $O $WORK/absent P 8"
try bad "0 4096 snapshot-merge $O $C X 8"
try bad "0 4096 snapshot-merge $O $C P 3"
try good "0 4096 snapshot-merge $good"
title 'snapshot-origin'
try bad "0 4096 snapshot-origin"
try bad "0 4096 snapshot-origin $O 0"
try bad "0 4096 snapshot-origin $WORK/absent"
try bad "0 4097 snapshot-origin $O"
try good "0 4096 snapshot-origin $O"
title 'messages, deps, versions'
quiet dmsetup create o --table "0 4096 snapshot-origin $O"
quiet dmsetup create s --table "0 4096 snapshot $good"
run dmsetup message o 0 hello
run dmsetup message s 0 hello
run dmsetup deps
run dmsetup ls --target snapshot
run dmsetup info -c --noheadings -o name,events,open,attr
for target in snapshot snapshot-origin snapshot-merge; do
    run dmsetup target-version $target
done
