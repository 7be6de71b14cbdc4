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

title parameters
wrong "raid1 3 0 sync sync $two"
wrong "raid1 3 0 nosync nosync $two"
wrong "raid1 3 0 sync nosync $two"
wrong "raid1 4 0 sync rebuild 0 $two"
wrong "raid1 3 0 rebuild x $two"
wrong "raid1 3 0 rebuild 2 $two"
wrong "raid1 3 0 rebuild -1 $two"
wrong "raid1 5 0 rebuild 1 rebuild 1 $two"
wrong "raid10 3 64 write_mostly 0 $four"
wrong "raid1 3 0 write_mostly 2 $two"
wrong "raid1 5 0 write_mostly 0 write_mostly 1 $two"
wrong "raid10 3 64 max_write_behind 9 $four"
wrong "raid1 3 0 max_write_behind -1 $two"
wrong "raid1 3 0 max_write_behind 32768 $two"
wrong "raid1 3 0 daemon_sleep -1 $two"
wrong "raid0 3 64 data_offset 8 $two"
wrong "raid0 3 64 data_offset 33 $two"
wrong "raid1 3 0 delta_disks 0 $two"
wrong "raid1 3 0 delta_disks 252 $two"
wrong "raid1 3 0 stripe_cache 9 $two"
wrong "raid5_ls 3 64 stripe_cache -9 $three" 8192
wrong "raid5_ls 3 8 stripe_cache 9 $three" 8192
wrong "raid1 3 0 min_recovery_rate -1 $two"
wrong "raid1 3 0 max_recovery_rate -1 $two"
wrong "raid1 5 0 min_recovery_rate 9 max_recovery_rate 8 $two"
wrong "raid1 5 0 region_size 512 region_size 512 $two"
wrong "raid1 3 0 region_size 8192 $two"
wrong "raid1 3 0 region_size -8 $two"
wrong "raid1 3 0 region_size 1000 $two"
wrong "raid10 3 1024 region_size 512 $four"
wrong "raid10 3 64 raid10_copies 1 $four"
wrong "raid10 3 64 raid10_copies 5 $four"
wrong "raid10 1 64 1 $m0 $d0"
wrong "raid1 3 0 raid10_format near $two"
wrong "raid10 3 64 raid10_format nearby $four"
wrong "raid10 2 64 raid10_use_near_sets $four"
wrong "raid1 3 0 journal_dev $d3 $two"
wrong "raid5_ls 3 64 journal_mode writeback $three" 8192
wrong "raid5_ls 3 64 journal_dev $m3 $three" 8192
wrong "raid1 3 0 fast 1 $two"
wrong "raid0 2 64 sync $two"
wrong "raid0 3 64 region_size 512 $two"
wrong "raid6_zr 2 64 nosync $four"
wrong "raid1 3 0 raid10_copies 2 $two"

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
wrong "raid10 1 64 $two"
wrong "raid5_ls 1 64 3 $m0 $d0 $m1 $d1 $m2 $d2" 8192
printf '\001' | dd of=$m0 bs=1 seek=144 conv=notrunc,fsync status=none
wrong "raid1 1 0 $two"
printf '\000' | dd of=$m0 bs=1 seek=144 conv=notrunc,fsync status=none
dd if=/dev/zero of=$m0 bs=512 seek=8 count=1 conv=notrunc,fsync status=none
wrong "raid1 1 0 $two"
