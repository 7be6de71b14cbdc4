# raid: tables and statuses of every level, checks and repairs, superblocks, what lies where on the members.
for n in 0 1 2 3 4; do
    disk m$n 1M
    disk d$n 4M
done

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

# The superblock of a metadata device, without its count of events.
superblock() {
    dd if="$1" bs=512 count=1 status=none | od -A d -t x8 -v -N 160 |
        sed 's/^\(0000016 \)................ /\1---------------- /'
}

wipe() {
    for d in $m0 $m1 $m2 $m3 $m4 $d0 $d1 $d2 $d3 $d4; do
        dd if=/dev/zero of=$d bs=64k count=64 conv=fsync status=none 2>/dev/null
    done
}

# level LENGTH MEMBERS TYPE [PARAMETER]...
level() {
    title "$3" "$4" "$5" "$6" "$7" "$8"
    length=$1
    members=$2
    shift 2
    wipe
    line=$members
    n=0
    while [ $n -lt $members ]; do
        eval "line=\"\$line \$m$n \$d$n\""
        n=$((n + 1))
    done
    type=$1
    shift
    run dmsetup create r --table "0 $length raid $type $# $* $line"
    settle r
    run dmsetup table r
    dmsetup info r >/dev/null 2>&1 || return 0
    fill "$DEVDIR/r" 0 1500 3
    fill "$DEVDIR/r" $((length - 100)) 100 5
    fill "$DEVDIR/r" 1001 77 4
    run dmsetup message r 0 check
    settle r
    holds "$DEVDIR/r" 1001 77 4
    run dmsetup suspend r
    run dmsetup status r
    run dmsetup remove r
    superblock $m1
    n=0
    while [ $n -lt $members ]; do
        eval "dd if=\$d$n bs=64k count=64 status=none" | sha256sum
        n=$((n + 1))
    done
}

level 4096 2 raid0 64
level 4096 3 raid1 0 region_size 512 write_mostly 1
level 4096 2 raid1 64 max_write_behind 100 min_recovery_rate 5 daemon_sleep 700
level 4096 2 raid1 0 nosync
level 8192 4 raid10 64
level 6144 3 raid10 16
level 5120 5 raid10 32 raid10_copies 3 raid10_format near
level 6144 3 raid10 64 raid10_format far
level 10240 5 raid10 16 raid10_format far raid10_copies 2
level 6144 3 raid10 64 raid10_format offset
level 8192 4 raid10_far 64
level 8192 3 raid4 64
level 8192 3 raid5_n 32 stripe_cache 1000
level 8192 3 raid5_rs 64
level 6144 5 raid6_nc 64
