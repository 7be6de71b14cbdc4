# raid: what levels 4, 5 and 6 leave on their members, byte by byte: in every layout, degraded, rebuilt, checked, repaired.
for name in A B C D E; do
    disk M$name 1M
    disk $name 128K
done

# insync NAME: wait for the end of a resync, recovery or check.
insync() {
    for turn in $(seq 300); do
        case $(dmsetup status "$1" 2>&1) in *' idle '*) return ;; *' raid '*) ;; *) break ;; esac
        sleep 0.1
    done
    echo "= $1 never becomes idle"
}

ALL="$MA $A $MB $B $MC $C $MD $D $ME $E"

# on_members: what lies on them, once the array is gone.
on_members() {
    for name in A B C D E; do sha256sum <"$WORK/$name.img"; done
}

# small_writes SEED: some that begin and end inside chunks.
small_writes() {
    fill "$DEVDIR/r" 3 5 "$1"
    fill "$DEVDIR/r" 201 77 "$1"
    fill "$DEVDIR/r" 500 200 "$1"
    holds "$DEVDIR/r" 201 77 "$1"
    holds "$DEVDIR/r" 500 200 "$1"
}

# layout TYPE DATA: an array of 256 sectors of each member, written from begin to end, then in small pieces.
layout() {
    title "$1"
    head -c 4096 /dev/zero | tee "$MA" "$MB" "$MC" "$MD" "$ME" >/dev/null
    run dmsetup create r --table "0 $((256 * $2)) raid $1 3 16 region_size 64 5 $ALL"
    insync r
    run dmsetup status r
    fill "$DEVDIR/r" 0 $((256 * $2)) red
    small_writes blue
    quiet dmsetup remove r
    on_members
}

# degraded TYPE DATA: without B; for raid6 without D as well; then both are rebuilt.
degraded() {
    title "$1 degraded"
    fourth="$MD $D" rebuild="rebuild 1" count=5
    case $1 in raid6*) fourth="- -" rebuild="rebuild 1 rebuild 3" count=7 ;; esac
    run dmsetup create r --table "0 $((256 * $2)) raid $1 3 16 region_size 64 5 $MA $A - - $MC $C $fourth $ME $E"
    run dmsetup status r
    holds "$DEVDIR/r" 3 5 blue
    small_writes green
    fill "$DEVDIR/r" 300 128 grey
    holds "$DEVDIR/r" 300 128 grey
    quiet dmsetup remove r
    blkdiscard -z "$B"
    [ "$fourth" = "- -" ] && blkdiscard -z "$D"
    on_members
    run dmsetup create r --table "0 $((256 * $2)) raid $1 $count 16 region_size 64 $rebuild 5 $ALL"
    insync r
    run dmsetup status r
    holds "$DEVDIR/r" 300 128 grey
    quiet dmsetup remove r
    on_members
}

# checked TYPE DATA: two members are written behind the array's back.
checked() {
    title "$1 checked and repaired"
    fill "$C" 16 1 wrong
    fill "$C" 22 1 wrong
    fill "$E" 16 1 wrong
    fill "$E" 200 9 wrong
    run dmsetup create r --table "0 $((256 * $2)) raid $1 3 16 region_size 64 5 $ALL"
    run dmsetup message r 0 check
    insync r
    run dmsetup status r
    run dmsetup message r 0 repair
    insync r
    run dmsetup status r
    quiet dmsetup remove r
    on_members
    run dmsetup create r --table "0 $((256 * $2)) raid $1 3 16 region_size 64 5 $ALL"
    run dmsetup message r 0 check
    insync r
    run dmsetup status r
    quiet dmsetup remove r
}

for kind in raid4 raid5_la raid5_ra raid5_ls raid5_rs raid5_n; do
    layout $kind 4
    case $kind in raid4 | raid5_ls) degraded $kind 4 ;; esac
done
checked raid5_n 4
for kind in zr nr nc la_6 ra_6 ls_6 rs_6 n_6; do
    layout raid6_$kind 3
    case $kind in zr | nc) degraded raid6_$kind 3 ;; esac
done
checked raid6_n_6 3
