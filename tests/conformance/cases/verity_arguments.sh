# verity: every argument wrong in turn.
disk A 4M
disk H 4M
R32=00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF
R20=00112233445566778899aabbccddeeff00112233

# wrong TAIL: as a read-only table of 80 sectors.
wrong() {
    run dmsetup create bad --readonly --table "0 80 verity $1"
    dmsetup info bad >/dev/null 2>&1 || return 0
    run dmsetup table bad
    run dmsetup status bad
    quiet dmsetup remove bad
}
run dmsetup create bad --table "0 80 verity 1 $A $H 4096 4096 1024 2 sha256 $R32 -"
run dmsetup create bad --table "0 80 verity"
wrong ""
wrong "1 $A $H 4096 4096 1024 2 sha256 $R32"
wrong "2 $A $H 4096 4096 1024 2 sha256 $R32 -"
wrong "x $A $H 4096 4096 1024 2 sha256 $R32 -"
wrong "1 $WORK/absent $H 4096 4096 1024 2 sha256 $R32 -"
wrong "1 $A $WORK/absent 4096 4096 1024 2 sha256 $R32 -"
for size in 0 256 1536 8192 x 4096k; do
    wrong "1 $A $H $size 4096 1024 2 sha256 $R32 -"
done
for size in 0 256 1536 x 4294967296; do
    wrong "1 $A $H 4096 $size 1024 2 sha256 $R32 -"
done
wrong "1 $A $H 4096 4096 x 2 sha256 $R32 -"
wrong "1 $A $H 4096 4096 9 2 sha256 $R32 -"
wrong "1 $A $H 4096 4096 0 2 sha256 $R32 -"
wrong "1 $A $H 4096 4096 2305843009213693952 2 sha256 $R32 -"
wrong "1 $A $H 4096 4096 1024 x sha256 $R32 -"
wrong "1 $A $H 4096 4096 1024 -1 sha256 $R32 -"
wrong "1 $A $H 4096 4096 1024 2305843009213693952 sha256 $R32 -"
wrong "1 $A $H 4096 4096 1024 1015 sha256 $R32 -"
wrong "1 $A $H 4096 4096 1024 1016 sha256 $R32 -"
wrong "1 $A $H 4096 4096 100000000 2 sha256 $R32 -"
wrong "1 $A $H 4096 4096 1024 2 nohash $R32 -"
wrong "1 $A $H 4096 512 1024 2 sha512 $R32 -"
wrong "1 $A $H 4096 4096 1024 2 sha256 $R20 -"
wrong "1 $A $H 4096 4096 1024 2 sha1 $R32 -"
wrong "1 $A $H 4096 4096 1024 2 sha1 $R20 -"
wrong "1 $A $H 4096 4096 1024 2 sha256 ${R32%?}x -"
wrong "1 $A $H 4096 4096 1024 2 sha256 $R32 abc"
wrong "1 $A $H 4096 4096 1024 2 sha256 $R32 zz"
wrong "1 $A $H 4096 4096 1024 2 sha256 $R32 - x"
wrong "1 $A $H 4096 4096 1024 2 sha256 $R32 - 99"
wrong "1 $A $H 4096 4096 1024 2 sha256 $R32 - 2 ignore_zero_blocks"
wrong "1 $A $H 4096 4096 1024 2 sha256 $R32 - 1 nonsense"
wrong "1 $A $H 4096 4096 1024 2 sha256 $R32 - 2 ignore_corruption panic_on_corruption"
wrong "1 $A $H 4096 4096 1024 2 sha256 $R32 - 2 ignore_corruption ignore_corruption"
wrong "1 $A $H 4096 4096 2147483648 2 sha256 $R32 - 1 check_at_most_once"
wrong "1 $A $H 4096 4096 1024 2 sha256 $R32 - 2 root_hash_sig_key_desc thinmap:absent"
wrong "1 $A $H 4096 4096 1024 2 sha256 $R32 - 1 use_fec_from_device"
wrong "1 $A $H 4096 4096 1024 2 sha256 $R32 - 2 fec_roots 1"
wrong "1 $A $H 4096 4096 1024 2 sha256 $R32 - 4 use_fec_from_device $H fec_roots 2"
run dmsetup create bad --readonly --table "0 16384 verity 1 $A $H 4096 4096 2048 2 sha256 $R32 -"
run dmsetup ls
