# Metadata devices that are too small, as large as may be, and larger.
disk D 64M
for size in 4K 8K 16K 32K 64K 128K 1M; do
    title "$size"
    disk M $size
    # A name of its own: here thinmap keeps more room than the kernel.
    [ $size = 64K ] && name=tiny || name=p
    run dmsetup create $name --table "0 131072 thin-pool $M $D 128 0 0"
    run dmsetup status $name
    dmsetup remove $name >/dev/null 2>&1
done
for size in 15G 16G 17G 1T; do
    title "$size"
    disk M $size
    run dmsetup create p --table "0 131072 thin-pool $M $D 128 0 0"
    run dmsetup status p
    dmsetup remove p >/dev/null 2>&1
done
