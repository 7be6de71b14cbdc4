# raid: wrong parameters.
for n in 0 1 2 3; do
    disk m$n 1M
    disk d$n 4M
done
two="2 $m0 $d0 $m1 $d1"
three="3 $m0 $d0 $m1 $d1 $m2 $d2"
four="4 $m0 $d0 $m1 $d1 $m2 $d2 $m3 $d3"
wrong() { try r "0 ${2:-4096} raid $1"; }

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

