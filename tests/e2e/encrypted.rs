//! crypt in stacks: a pool on an encrypted data device, and an encrypted volume on that pool, verified by fio.

use thinmap_tests::world::{World, can_make_block_devices};

#[test]
fn encrypted_below_a_pool_and_above_a_volume() {
    if !can_make_block_devices("encrypted_below_a_pool_and_above_a_volume") {
        return;
    }
    let world = World::new();
    let said = world.sh(
        "truncate -s 256M data.img; truncate -s 16M meta.img
         key() { head -c 64 /dev/urandom | od -An -tx1 | tr -d ' \\n'; }
         below=$(key); above=$(key)
         make() {
             dmsetup create below --table \"0 524288 crypt aes-xts-plain64 $below 0 $PWD/data.img 0 2 allow_discards sector_size:4096\"
             dmsetup create pool --table \"0 524288 thin-pool $PWD/meta.img $M/below 128 0\"
             [ \"$1\" = again ] || dmsetup message pool 0 'create_thin 1'
             dmsetup create vol --table \"0 262144 thin $M/pool 1\"
             dmsetup create above --table \"0 262144 crypt aes-cbc-essiv:sha256 ${above:64} 0 $M/vol 0 1 allow_discards\"
         }
         verify() {
             fio --name=verify --direct=1 --ioengine=libaio --iodepth=16 --bsrange=4k-512k --blockalign=4k --size=96m \
                 --rw=randwrite --verify=crc32c --verify_fatal=1 --randrepeat=1 --filename=$M/above \"$@\" >fio.out || { cat fio.out >&2; exit 1; }
         }
         make first
         verify --serialize_overlap=1 --fsync=64
         sum=$(sha256sum <$M/above)
         # A suspend without flush hands requests back below the cipher: what is written again must not be encrypted twice.
         dd if=/dev/urandom of=noise bs=1M count=32 status=none
         dd if=noise of=$M/above bs=256k oflag=direct status=none &
         for i in 1 2 3 4 5 6 7 8; do
             dmsetup suspend --noflush --nolockfs vol; dmsetup resume vol
             dmsetup suspend --noflush --nolockfs below; dmsetup resume below
         done
         wait
         cmp -n 33554432 noise $M/above && echo the same
         sum=$(sha256sum <$M/above)
         for name in above vol pool below; do dmsetup remove $name; done
         thin_check meta.img >/dev/null
         make again
         [ \"$(sha256sum <$M/above)\" = \"$sum\" ] && echo the same again
         blkdiscard -o 0 -l 16M $M/above; dmsetup status vol | cut -d' ' -f4
         { yes 'nobody may read this' || true; } | head -c 1M | dd of=$M/above bs=64k seek=500 iflag=fullblock oflag=direct conv=notrunc status=none
         dd if=$M/above bs=64k skip=500 count=16 status=none | grep -c 'nobody may read this'
         for name in above vol pool below; do dmsetup remove $name; done
         grep -ca 'nobody may' data.img || true",
    );
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..2], ["the same", "the same again"], "{said}");
    let mapped: u64 = lines[2].parse().expect("mapped sectors");
    assert!(mapped < 262_144, "the discard did not arrive: {said}");
    assert_eq!(lines[3..], ["49932", "0"], "{said}");
    world.end();
}
