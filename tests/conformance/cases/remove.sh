# remove: busy, force, retry, deferred; remove_all.
disk A 8M
quiet dmsetup create low --table "0 128 linear $A 0"
quiet dmsetup create high --table "0 128 linear $DEVDIR/low 0"
run dmsetup remove low
run dmsetup remove absent
run dmsetup remove -u nosuch
run dmsetup remove --deferred low
run dmsetup info low
run dmsetup info -c -o name,attr low
run dmsetup message low 0 @cancel_deferred_remove
run dmsetup info low
run dmsetup remove --deferred low
run dmsetup remove high
run dmsetup info low
quiet dmsetup create low --table "0 128 linear $A 0"
quiet dmsetup create high --table "0 128 linear $DEVDIR/low 0"
run dmsetup remove high low
run dmsetup ls
title 'open'
quiet dmsetup create low --table "0 128 linear $A 0"
exec 9<"$DEVDIR/low"
run dmsetup remove low
run dmsetup remove --retry low
run dmsetup remove --deferred low
run dmsetup info -c --noheadings -o name,attr,open low
exec 9<&-
# Closes by other programs are noticed a little later.
sleep 1
run dmsetup info low
title 'force'
quiet dmsetup create low --table "0 128 linear $A 0"
quiet dmsetup create high --table "0 128 linear $DEVDIR/low 0"
run dmsetup remove --force low
run dmsetup table low
run dmsetup info low
run dmsetup remove high
run dmsetup remove low
title 'remove_all'
quiet dmsetup create a --table "0 8 zero"
quiet dmsetup create b --table "0 128 linear $A 0"
quiet dmsetup create c --table "0 128 linear $DEVDIR/b 0"
run dmsetup remove_all
run dmsetup ls
quiet dmsetup create a --table "0 8 zero"
quiet dmsetup create b --table "0 128 linear $A 0"
exec 9<"$DEVDIR/b"
run dmsetup remove_all
run dmsetup ls
run dmsetup remove_all --deferred
run dmsetup info -c -o name,attr
exec 9<&-
# Closes by other programs are noticed a little later.
sleep 1
run dmsetup ls
quiet dmsetup create a --table "0 8 zero"
run dmsetup remove_all --force
run dmsetup ls
title 'suspended'
quiet dmsetup create a --table "0 8 zero"
quiet dmsetup suspend a
run dmsetup remove a
run dmsetup ls
