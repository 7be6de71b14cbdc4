# raid: wrong arguments, and superblocks that a table does not fit. What becomes of good ones is in raid_levels.
for n in 0 1 2 3; do
    disk m$n 1M
    disk d$n 4M
done
two="2 $m0 $d0 $m1 $d1"
three="3 $m0 $d0 $m1 $d1 $m2 $d2"
four="4 $m0 $d0 $m1 $d1 $m2 $d2 $m3 $d3"
wrong() { try r "0 ${2:-4096} raid $1"; }

title counts
wrong ""
wrong "raid7 1 64 $two"
wrong raid1
wrong "raid1 x 0 $two"
wrong "raid1 99 0 $two"
wrong "raid1 0 $two"
wrong "raid1 1 0"
wrong "raid1 1 0 x $m0 $d0"
wrong "raid1 1 0 0 $m0 $d0"
wrong "raid1 1 0 3 $m0 $d0 $m1 $d1"
wrong "raid6_zr 1 64 $two"
wrong "raid5_ls 1 64 1 $m0 $d0"
wrong "raid5_ls 1 64 $four" 4096
wrong "raid1 1 0 $two" 8200

title chunks
wrong "raid1 1 x $two"
wrong "raid0 1 100 $two"
wrong "raid0 1 0 $two"
wrong "raid0 1 4 $two"

title devices
wrong "raid1 1 0 2 $m0 - $m1 $d1"
wrong "raid1 3 0 rebuild 0 2 - - $m1 $d1"
wrong "raid1 1 0 2 - - - -"
wrong "raid5_ls 1 64 3 $m0 $d0 $m1 $d1 - -" 8192
wrong "raid10 1 64 4 $m0 $d0 - - $m2 $d2 - -" 8192
wrong "raid10 1 64 4 - $d0 - $d1 - $d2 - $d3" 8192
wrong "raid5_ls 3 64 rebuild 1 $three" 8192

title superblocks
quiet dmsetup create r --table "0 4096 raid raid1 1 0 $two"
quiet dmsetup remove r
wrong "raid1 1 0 2 $m0 $d0 $m2 $d2"
wrong "raid5_ls 1 64 3 $m0 $d0 $m1 $d1 $m2 $d2" 8192
printf '\001' | dd of=$m0 bs=1 seek=144 conv=notrunc,fsync status=none
wrong "raid1 1 0 $two"
printf '\000' | dd of=$m0 bs=1 seek=144 conv=notrunc,fsync status=none
dd if=/dev/zero of=$m0 bs=512 seek=8 count=1 conv=notrunc,fsync status=none
wrong "raid1 1 0 $two"
