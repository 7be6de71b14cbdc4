# Names: mangling, splitting, and the ways in which a device may be named.
run dmsetup create 'a b' --table "0 8 zero"
run dmsetup ls
run dmsetup info 'a b'
run dmsetup create 'x+y_z.-#:@=' --table "0 8 zero"
run dmsetup create 'tail\x20x' --table "0 8 zero"
run dmsetup create --manglename none 'raw' --table "0 8 zero"
run dmsetup create --manglename hex 'he x' --table "0 8 zero"
run dmsetup create --manglename nosuch 'q' --table "0 8 zero"
run dmsetup ls
run dmsetup info -c -o name,mangled_name,unmangled_name
run dmsetup create --manglename none 'no ne' --table "0 8 zero"
run dmsetup ls
run dmsetup --manglename none ls
run dmsetup mangle
run dmsetup ls
run dmsetup mangle raw
run dmsetup mangle absent
run dmsetup splitname vg-lv
run dmsetup splitname vg--x-lv--y-layer
run dmsetup splitname plain
run dmsetup splitname vg-lv LVM
run dmsetup splitname a b c
run dmsetup splitname -c --noheadings vg-lv-layer
run dmsetup table "$DEVDIR/raw"
run dmsetup info "$DEVDIR/raw"
run dmsetup info -j 253 -m 250
run dmsetup table -m 9999
run dmsetup table "$WORK/raw"
run dmsetup table --major 253
run dmsetup setgeometry raw 1 2 3 0
run dmsetup setgeometry raw 1 2 3
run dmsetup setgeometry raw x 2 3 0
run dmsetup setgeometry raw 100000 2 3 0
run dmsetup setgeometry absent 1 2 3 0
run dmsetup udevcookies
run dmsetup udevflags 0
run dmsetup udevflags 0xd4d0003
run dmsetup udevflags x
run dmsetup udevcomplete 0
run dmsetup measure raw
