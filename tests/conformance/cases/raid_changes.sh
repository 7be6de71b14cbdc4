# raid: mismatches, members that are missing, come back, are replaced; messages; growth; raid1's members.
for n in 0 1 2 3 4; do
    disk m$n 1M
    disk d$n 4M
done
two="2 $m0 $d0 $m1 $d1"
three="3 $m0 $d0 $m1 $d1 $m2 $d2"

# Waits until nothing is synced and nothing is to be, and shows that.
settle() {
    for turn in $(seq 100); do
        ratio=$(dmsetup status "$1" 2>/dev/null | cut -d' ' -f7)
        case $(dmsetup status "$1" 2>&1) in
        *' idle '*) [ "${ratio%/*}" = "${ratio#*/}" ] && break ;;
        *' raid '*) ;;
        *) break ;;
        esac
        sleep 0.1
    done
    run dmsetup status "$1"
}

superblock() {
    dd if="$1" bs=512 count=1 status=none | od -A d -t x8 -v -N 160 |
        sed 's/^\(0000016 \)................ /\1---------------- /'
}

swap() {
    run dmsetup load r --table "$1"
    run dmsetup resume r
    settle r
}

title mismatches and messages
run dmsetup create r --table "0 4096 raid raid1 3 0 region_size 1024 $two"
settle r
fill $d0 2000 20 9
run dmsetup message r 0 check
settle r
run dmsetup message r 0 repair
settle r
run dmsetup message r 0 CHECK
settle r
run dmsetup message r 0 nonsense
run dmsetup message r 0 reshape
run dmsetup message r 0 frozen
sleep 0.5
run dmsetup status r
run dmsetup message r 0 idle
settle r
run dmsetup message r 0 resync
settle r
run dmsetup message r 0 recover
settle r
run dmsetup remove r

title a leg is missing and comes back
run dmsetup create r --table "0 4096 raid raid1 3 0 region_size 1024 2 $m0 $d0 - -"
settle r
run dmsetup table r
fill "$DEVDIR/r" 3000 20 5
run dmsetup remove r
superblock $m0
run dmsetup create r --table "0 4096 raid raid1 3 0 region_size 1024 $two"
settle r
run dmsetup remove r
superblock $m0
superblock $m1
cmp -n 2097152 $d0 $d1
run dmsetup create r --table "0 4096 raid raid1 3 0 region_size 1024 2 - - $m1 $d1"
settle r
holds "$DEVDIR/r" 3000 20 5
run dmsetup remove r

title a leg is replaced, added, taken away
run dmsetup create r --table "0 4096 raid raid1 5 0 region_size 1024 rebuild 0 2 $m2 $d2 $m1 $d1"
settle r
run dmsetup table r
superblock $m2
swap "0 4096 raid raid1 3 0 region_size 1024 2 $m2 $d2 $m1 $d1"
swap "0 4096 raid raid1 5 0 region_size 1024 rebuild 2 3 $m2 $d2 $m1 $d1 $m3 $d3"
swap "0 4096 raid raid1 3 0 region_size 1024 3 $m2 $d2 $m1 $d1 $m3 $d3"
swap "0 4096 raid raid1 3 0 region_size 1024 1 $m3 $d3"
holds "$DEVDIR/r" 3000 20 5
run dmsetup remove r

title raid5
for m in $m0 $m1 $m2 $m3 $m4; do dd if=/dev/zero of=$m bs=64k count=1 conv=fsync status=none; done
run dmsetup create r --table "0 8192 raid raid5_ls 1 64 $three"
settle r
fill "$DEVDIR/r" 100 1000 6
run dmsetup load r --table "0 8192 raid raid5_ls 1 64 3 $m0 $d0 $m1 $d1 - -"
run dmsetup table --inactive r
run dmsetup status --inactive r
run dmsetup resume r
settle r
holds "$DEVDIR/r" 100 1000 6
fill "$DEVDIR/r" 500 300 7
swap "0 8192 raid raid5_ls 3 64 rebuild 2 3 $m0 $d0 $m1 $d1 $m4 $d4"
run dmsetup table r
swap "0 8192 raid raid5_ls 1 64 3 $m0 $d0 $m1 $d1 $m4 $d4"
run dmsetup load r --table "0 8192 raid raid5_ls 1 64 3 $m0 $d0 $m4 $d4 $m1 $d1"
swap "0 12288 raid raid5_ls 1 64 3 $m0 $d0 $m1 $d1 $m4 $d4"
holds "$DEVDIR/r" 500 300 7
swap "0 8192 raid raid5_ls 1 64 3 $m0 $d0 $m1 $d1 $m4 $d4"
swap "0 8192 raid raid5_ls 3 64 rebuild 0 3 $m3 $d3 $m1 $d1 $m4 $d4"
holds "$DEVDIR/r" 500 300 7
run dmsetup message r 0 check
settle r
run dmsetup remove r

title raid6 without two
for m in $m0 $m1 $m2 $m3 $m4; do dd if=/dev/zero of=$m bs=64k count=1 conv=fsync status=none; done
run dmsetup create r --table "0 6144 raid raid6_zr 1 64 5 $m0 $d0 $m1 $d1 $m2 $d2 $m3 $d3 $m4 $d4"
settle r
fill "$DEVDIR/r" 0 6144 8
run dmsetup load r --table "0 6144 raid raid6_zr 1 64 5 - - $m1 $d1 - - $m3 $d3 $m4 $d4"
run dmsetup resume r
settle r
holds "$DEVDIR/r" 0 6144 8
run dmsetup load r --table "0 6144 raid raid6_zr 1 64 5 - - $m1 $d1 - - - - $m4 $d4"
for m in $m0 $m2; do dd if=/dev/zero of=$m bs=64k count=1 conv=fsync status=none; done
swap "0 6144 raid raid6_zr 5 64 rebuild 0 rebuild 2 5 $m0 $d0 $m1 $d1 $m2 $d2 $m3 $d3 $m4 $d4"
holds "$DEVDIR/r" 0 6144 8
run dmsetup message r 0 check
settle r
run dmsetup remove r
