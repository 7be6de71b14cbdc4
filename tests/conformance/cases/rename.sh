# rename and set uuid.
run dmsetup create r --table "0 8 zero"
run dmsetup rename r r2
run dmsetup info r2
run dmsetup rename r2 --setuuid UUID-X
run dmsetup info r2
run dmsetup rename r2 --setuuid UUID-Y
run dmsetup rename -u UUID-X r3
run dmsetup rename r2 r3
run dmsetup info -u UUID-X
run dmsetup info r3
run dmsetup create other --table "0 8 zero" -u UUID-O
run dmsetup rename r3 other
run dmsetup rename r3 r3
run dmsetup rename absent x
run dmsetup rename absent other
run dmsetup rename r3 --setuuid UUID-X
run dmsetup rename absent --setuuid UUID-X
run dmsetup create bare --table "0 8 zero"
run dmsetup rename bare --setuuid UUID-O
run dmsetup rename r3 a/b
run dmsetup rename r3
run dmsetup rename r3 ''
run dmsetup rename r3 nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn
ls "$DEVDIR" | grep -v control
run dmsetup ls
