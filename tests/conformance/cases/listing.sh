# ls, ls --tree, deps, targets.
run dmsetup ls
run dmsetup ls --tree
run dmsetup info
run dmsetup info -c
run dmsetup table
run dmsetup status
run dmsetup deps
run dmsetup remove_all
disk A 8M
disk M 4M
disk D 64M
quiet dmsetup create low --table "0 128 linear $A 0"
quiet dmsetup create high -u UUID-H --table "0 64 linear $DEVDIR/low 0
64 64 linear $A 256"
pool p "$M" "$D" 131072
quiet dmsetup message p 0 "create_thin 0"
quiet dmsetup create t --table "0 2048 thin $DEVDIR/p 0"
quiet dmsetup create z --table "0 8 zero"
quiet dmsetup create n --notable
run dmsetup ls
run dmsetup ls -o devno
run dmsetup ls -o blkdevname
run dmsetup ls -o devname
run dmsetup ls -o nosuch
run dmsetup ls --target linear
run dmsetup ls --target thin
run dmsetup ls --target nosuch
run dmsetup ls --exec 'echo got'
run dmsetup ls --target thin --exec 'echo got'
run dmsetup ls --tree
run dmsetup ls --tree -o ascii
run dmsetup ls --tree -o utf
run dmsetup ls --tree -o uuid
run dmsetup ls --tree -o open,active,rw
run dmsetup ls --tree -o nodevice
run dmsetup ls --tree -o inverted
run dmsetup ls --tree -o compact
run dmsetup ls --tree -o notrunc
run dmsetup ls --tree -o blkdevname
run dmsetup ls --tree -o devno,blkdevname,active
run dmsetup ls --tree -o vt100
run dmsetup ls --tree -o nosuch
run dmsetup ls --tree --target thin
run dmsetup deps
run dmsetup deps low
run dmsetup deps high t z
run dmsetup deps -o devno high
run dmsetup deps -o blkdevname high
run dmsetup deps -o devname high
run dmsetup deps -o nosuch high
run dmsetup deps n
run dmsetup deps absent
run dmsetup table
run dmsetup table --target linear
run dmsetup table --target nosuch
run dmsetup table low high
run dmsetup table --concise
run dmsetup table --concise high
run dmsetup status
run dmsetup status --target zero
run dmsetup status low t
run dmsetup table --exec 'echo got'
run dmsetup status low --exec 'echo got'
run dmsetup status -S 'name=low'
run dmsetup -v status low
run dmsetup -v table low
run dmsetup -v info low
run dmsetup targets | grep -E '^(linear|striped|zero|error|thin|thin-pool) '
for target in linear striped zero error thin thin-pool nosuch; do
    run dmsetup target-version $target
done
run dmsetup target-version linear nosuch
run dmsetup mknodes
run dmsetup mknodes low
run dmsetup mknodes absent
rm "$DEVDIR/low"
run dmsetup mknodes
[ -b "$DEVDIR/low" ] && echo "node is back"
