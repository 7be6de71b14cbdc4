# Devices on devices: suspends, data and removal through several layers.
disk M 4M
disk D 64M
T=$DEVDIR
quiet dmsetup create lowmeta --table "0 8192 linear $M 0"
quiet dmsetup create lowdata --table "0 65536 linear $D 0
65536 65536 linear $D 65536"
pool p "$T/lowmeta" "$T/lowdata" 131072
quiet dmsetup message p 0 "create_thin 0"
quiet dmsetup create t --table "0 32768 thin $T/p 0"
quiet dmsetup create top --table "0 16384 linear $T/t 16384
16384 16384 linear $T/t 0"
quiet dmsetup create topmost --table "0 32768 striped 1 32768 $T/top 0"
fill "$T/topmost" 16000 1000 red
holds "$T/topmost" 16000 1000 red
run dmsetup status
run dmsetup ls --tree
run dmsetup info -c --noheadings -o name,open,segments
run dmsetup remove p
run dmsetup remove t
run dmsetup remove lowdata
title 'a layer suspended and replaced under a device in use'
run dmsetup suspend top
run dmsetup info -c --noheadings -o name,attr top
run dmsetup load top --table "0 32768 linear $T/t 0"
run dmsetup resume top
holds "$T/t" 32384 384 red
zeroed "$T/topmost" 16384 616
run dmsetup suspend p
run dmsetup status p
run dmsetup resume p
run dmsetup suspend t
run dmsetup suspend p
run dmsetup resume p
run dmsetup resume t
title 'the data device grows under the pool'
run dmsetup load lowdata --table "0 65536 linear $D 0"
run dmsetup resume lowdata
run dmsetup load p --table "0 65536 thin-pool $T/lowmeta $T/lowdata 128 0 1 skip_block_zeroing"
run dmsetup resume p
run dmsetup load p --table "0 131072 thin-pool $T/lowmeta $T/lowdata 128 0 1 skip_block_zeroing"
run dmsetup clear p
run dmsetup resume p
run dmsetup status p
