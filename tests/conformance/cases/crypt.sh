# crypt: arguments, table, data on the device below, keys by message, failures.
disk A 4M
disk B 4M
K16=00112233445566778899aabbccddeeff
K32=${K16}0f1e2d3c4b5a69788796a5b4c3d2e1f0
K64=${K32}8f7e6d5c4b3a29180706f5e4d3c2b1a0102030405060708090a0b0c0d0e0f001

# below DEVICE: what lies on it.
below() { dd if="$1" bs=64k iflag=direct status=none | sha256sum; }

# cipher SPEC KEY [FEATURES]: what a mapping writes, and that it reads it back.
cipher() {
    blkdiscard -z "$A"
    run dmsetup create c --table "0 2048 crypt $1 $2 4294967288 $A 64 $3"
    fill "$DEVDIR/c" 0 2048 red
    fill "$DEVDIR/c" 40 8 blue
    holds "$DEVDIR/c" 48 16 nothing
    run dmsetup table --showkeys c
    quiet dmsetup remove c
    below "$A"
    run dmsetup create c --table "0 2048 crypt $1 $2 4294967288 $A 64 $3"
    holds "$DEVDIR/c" 40 8 blue
    quiet dmsetup remove c
}
title 'ciphers, modes and initial vectors'
cipher aes-xts-plain64 $K64
cipher aes-xts-plain64 $K32
cipher aes-xts-plain $K64
cipher aes-xts-plain64be $K64
cipher aes-cbc-essiv:sha256 $K32
cipher aes-cbc-essiv:sha256 $K16
cipher aes-xts-essiv:sha256 $K64
cipher aes-cbc-plain $K32
cipher aes-cbc-plain64 ${K32}
cipher aes-cbc-benbi $K16
cipher aes-cbc-null $K16
cipher aes-cbc-eboiv $K32
cipher aes-ecb $K16
cipher aes $K16
cipher capi:xts\(aes\)-plain64 $K64
cipher capi:cbc\(aes\)-essiv:sha256 $K32
title 'sectors of other sizes'
for size in 512 1024 2048 4096; do
    cipher aes-xts-plain64 $K64 "1 sector_size:$size"
    cipher aes-xts-plain64 $K64 "2 sector_size:$size iv_large_sectors"
    cipher aes-cbc-essiv:sha256 $K32 "2 iv_large_sectors sector_size:$size"
done
title 'features'
FEATURES="6 no_write_workqueue no_read_workqueue Submit_from_crypt_cpus same_cpu_crypt allow_discards sector_size:4096"
run dmsetup create c --table "0 2048 crypt aes-xts-plain64 $K64 8 $A 0 $FEATURES"
run dmsetup table c
run dmsetup table --showkeys c
run dmsetup status c
run dmsetup deps c
run blockdev --getss --getpbsz --getsz "$DEVDIR/c"
fill "$DEVDIR/c" 0 2048 green
holds "$DEVDIR/c" 0 2048 green
quiet dmsetup remove c
run dmsetup create c --readonly --table "0 2048 crypt aes-xts-plain64 $K64 8 $A 0 1 sector_size:4096"
holds "$DEVDIR/c" 0 2048 green
run blockdev --getro "$DEVDIR/c"
quiet dmsetup remove c
title 'two lines with keys of their own'
run dmsetup create c --table "0 1024 crypt aes-xts-plain64 $K64 0 $A 0
1024 1024 crypt aes-cbc-plain64 $K32 7 $B 512"
fill "$DEVDIR/c" 1000 48 grey
holds "$DEVDIR/c" 1000 48 grey
run dmsetup table c
quiet dmsetup remove c
below "$A"
below "$B"
title 'keys by message'
run dmsetup create c --table "0 2048 crypt aes-xts-plain64 $K64 0 $A 0"
fill "$DEVDIR/c" 0 64 one
run dmsetup message c 0 key wipe
run dmsetup suspend c
run dmsetup message c 0 key
run dmsetup message c 0 key set
run dmsetup message c 0 key wipe now
run dmsetup message c 0 key forget
run dmsetup message c 0 hello world
run dmsetup message c 0 key set $K32
run dmsetup message c 0 key set ${K64}00
run dmsetup message c 0 Key Wipe
run dmsetup table --showkeys c
run dmsetup resume c
run dmsetup message c 0 key set "${K32}${K32}"
run dmsetup table --showkeys c
run dmsetup resume c
holds "$DEVDIR/c" 0 64 one
run dmsetup suspend c
run dmsetup message c 0 key set "zz${K32}${K32%??}"
run dmsetup resume c
run dmsetup message c 0 KEY SET $K64
run dmsetup resume c
holds "$DEVDIR/c" 0 64 one
run dmsetup suspend c
run dmsetup message c 0 key wipe
run dmsetup load c --table "0 1024 crypt aes-xts-plain64 $K64 0 $A 0"
run dmsetup table --inactive --showkeys c
run dmsetup resume c
holds "$DEVDIR/c" 0 64 one
quiet dmsetup remove c
title "keys of the kernel's"
keyctl add user thinmap:test "$(printf '0123456789abcdef0123456789ABCDEF')" @u >/dev/null
try c "0 2048 crypt aes-cbc-plain64 :32:user:thinmap:test 0 $A 0"
try c "0 2048 crypt aes-cbc-plain64 30313233343536373839616263646566303132333435363738394142434445460 0 $A 0"
run dmsetup create c --table "0 2048 crypt aes-cbc-plain64 :32:user:thinmap:test 0 $A 0"
fill "$DEVDIR/c" 0 64 two
run dmsetup suspend c
run dmsetup message c 0 key wipe
run dmsetup table c
run dmsetup message c 0 key set :32:user:thinmap:absent
run dmsetup message c 0 key set :16:user:thinmap:test
run dmsetup message c 0 key set :32:user:thinmap:test
run dmsetup table c
run dmsetup resume c
holds "$DEVDIR/c" 0 64 two
quiet dmsetup remove c
try c "0 2048 crypt aes-cbc-plain64 :16:user:thinmap:test 0 $A 0"
try c "0 2048 crypt aes-cbc-plain64 :32:user:thinmap:absent 0 $A 0"
try c "0 2048 crypt aes-cbc-plain64 :32:logon:thinmap:absent 0 $A 0"
keyctl purge user thinmap:test >/dev/null 2>&1
title 'every argument wrong in turn'
try bad "0 2048 crypt"
try bad "0 2048 crypt aes-xts-plain64 $K64 0 $A"
try bad "0 2048 crypt aes-nomode-plain64 $K64 0 $A 0"
try bad "0 2048 crypt nocipher-xts-plain64 $K64 0 $A 0"
try bad "0 2048 crypt aes-xts-noiv $K64 0 $A 0"
try bad "0 2048 crypt aes-xts $K64 0 $A 0"
try bad "0 2048 crypt aes- $K16 0 $A 0"
try bad "0 2048 crypt aes-cbc-essiv $K32 0 $A 0"
try bad "0 2048 crypt aes-cbc-essiv: $K32 0 $A 0"
try bad "0 2048 crypt aes-cbc-essiv:nohash $K32 0 $A 0"
try bad "0 2048 crypt aes:3-cbc-plain $K32 0 $A 0"
try bad "0 2048 crypt aes:x-cbc-plain $K32 0 $A 0"
try bad "0 2048 crypt xts(aes)-plain64 $K64 0 $A 0"
try bad "0 2048 crypt capi:nothing(aes)-plain64 $K64 0 $A 0"
try bad "0 2048 crypt capi:xts(aes)-noiv $K64 0 $A 0"
try bad "0 2048 crypt aes-xts-plain64 - 0 $A 0"
try bad "0 2048 crypt aes-xts-plain64 0 0 $A 0"
try bad "0 2048 crypt aes-xts-plain64 $K16 0 $A 0"
try bad "0 2048 crypt aes-xts-plain64 ${K64}00 0 $A 0"
try bad "0 2048 crypt aes-cbc-plain64 ${K16}00 0 $A 0"
try bad "0 2048 crypt aes-xts-plain64 zz${K64%??} 0 $A 0"
try bad "0 2048 crypt aes-xts-plain64 : 0 $A 0"
try bad "0 2048 crypt aes-xts-plain64 :x:user:a 0 $A 0"
try bad "0 2048 crypt aes-xts-plain64 :64 0 $A 0"
try bad "0 2048 crypt aes-xts-plain64 :64: 0 $A 0"
try bad "0 2048 crypt aes-xts-plain64 :64:user 0 $A 0"
try bad "0 2048 crypt aes-xts-plain64 :64:user: 0 $A 0"
try bad "0 2048 crypt aes-xts-plain64 :64:notype:a 0 $A 0"
try bad "0 2048 crypt aes-xts-plain64 $K64 x $A 0"
try bad "0 2048 crypt aes-xts-plain64 $K64 -1 $A 0"
try bad "0 2048 crypt aes-xts-plain64 $K64 0 $WORK/absent 0"
try bad "0 2048 crypt aes-xts-plain64 $K64 0 $A x"
try bad "0 2048 crypt aes-xts-plain64 $K64 0 $A 8192"
try bad "0 16384 crypt aes-xts-plain64 $K64 0 $A 0"
try bad "0 2048 crypt aes-xts-plain64 $K64 0 $A 0 x"
try bad "0 2048 crypt aes-xts-plain64 $K64 0 $A 0 9"
try bad "0 2048 crypt aes-xts-plain64 $K64 0 $A 0 2 allow_discards"
try bad "0 2048 crypt aes-xts-plain64 $K64 0 $A 0 1 nofeature"
try good "0 2048 crypt aes-xts-plain64 $K64 0 $A 0 0 nofeature"
try bad "0 2048 crypt aes-xts-plain64 $K64 0 $A 0 1 sector_size:256"
try bad "0 2048 crypt aes-xts-plain64 $K64 0 $A 0 1 sector_size:8192"
try bad "0 2048 crypt aes-xts-plain64 $K64 0 $A 0 1 sector_size:1536"
try bad "0 2048 crypt aes-xts-plain64 $K64 0 $A 0 1 sector_size:x"
try bad "0 2047 crypt aes-xts-plain64 $K64 0 $A 0 1 sector_size:1024"
try bad "0 2048 crypt aes-xts-plain64 $K64 1 $A 0 1 sector_size:1024"
try bad "0 2048 crypt aes-xts-plain64 $K64 0 $A 1 1 sector_size:1024"
try bad "0 2048 crypt aes-xts-plain64 $K64 0 $A 0 1 integrity:0:aead"
try bad "0 2048 crypt aes-xts-plain64 $K64 0 $A 0 1 integrity:28:nothing"
try bad "0 2048 crypt aes-xts-plain64 $K64 0 $A 0 1 integrity:28:none"
run dmsetup ls
