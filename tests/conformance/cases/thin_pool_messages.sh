# thin-pool messages: each one right, then each argument wrong.
disk M 4M
disk D 64M
pool p "$M" "$D" 131072
m() { run dmsetup message p 0 "$@"; }
title 'right'
m "create_thin 0"
m create_thin 1
m "create_thin 16777215"
m "create_snap 2 0"
m "create_snap 3 2"
m "set_transaction_id 0 1"
run dmsetup status p
m "set_transaction_id 1 5"
run dmsetup status p
m reserve_metadata_snap
# Where the held root lies is the allocator's business.
run dmsetup status p | sed 's/ [0-9]*\/1024 / META\/1024 /; s/\(0\/1024\) [0-9]* /\1 HELD /'
m release_metadata_snap
run dmsetup status p
m "delete 3"
m "delete 16777215"
run dmsetup status p
title 'unknown'
m nonsense
m ""
m "nonsense 1 2"
m "CREATE_THIN 9"
title 'counts'
m create_thin
m "create_thin 1 2"
m create_snap
m "create_snap 1"
m "create_snap 1 2 3"
m delete
m "delete 1 2"
m set_transaction_id
m "set_transaction_id 1"
m "set_transaction_id 1 2 3"
m "reserve_metadata_snap 1"
m "release_metadata_snap 1"
title 'values'
m "create_thin x"
m "create_thin -1"
m "create_thin 16777216"
m "create_thin 4294967296"
m "create_thin 18446744073709551616"
m "create_thin 0"
m "create_thin 0x7"
m "create_snap 0 1"
m "create_snap 10 8"
m "create_snap 16777216 0"
m "create_snap x 0"
m "create_snap 10 x"
m "create_snap 0 0"
m "delete 3"
m "delete x"
m "delete 16777216"
m "set_transaction_id 4 6"
m "set_transaction_id x 6"
m "set_transaction_id 5 x"
m "set_transaction_id 5 5"
m release_metadata_snap
m reserve_metadata_snap
m reserve_metadata_snap
m release_metadata_snap
m "delete 1"
title 'a device in use'
quiet dmsetup create t --table "0 2048 thin $DEVDIR/p 0"
m "delete 0"
quiet dmsetup suspend t
m "delete 0"
m "create_snap 7 0"
quiet dmsetup resume t
title 'a suspended pool'
quiet dmsetup suspend t
quiet dmsetup suspend p
m "create_thin 40"
run dmsetup status p
quiet dmsetup resume p
quiet dmsetup resume t
title 'sectors other than 0'
run dmsetup message p 1 "create_thin 41"
run dmsetup message p 131071 "create_thin 42"
run dmsetup message p 131072 "create_thin 43"
run dmsetup message p x "create_thin 44"
run dmsetup message -u nosuch 0 hello
run dmsetup status p
title 'no table'
quiet dmsetup create n --notable
run dmsetup message n 0 hello
run dmsetup status p
