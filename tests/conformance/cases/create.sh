# create: names, uuids, the sources of a table, and what is refused.
disk A 8M
title 'from the command line, a file and standard input'
run dmsetup create c1 --table "0 128 linear $A 0"
echo "0 128 linear $A 128" >"$WORK/t"
run dmsetup create c2 "$WORK/t"
run_in "$WORK/t" dmsetup create c3
printf '# a remark\n\n0 64 linear %s 0\n64 64 zero\n' "$A" >"$WORK/t2"
run dmsetup create c4 "$WORK/t2"
run dmsetup create c5 --table "0 64 linear $A 0
64 64 error"
run dmsetup table
run dmsetup create c6 --notable
run dmsetup info c6
run dmsetup create -u UUID-7 c7 --table "0 8 zero"
run dmsetup create c8 -r --table "0 8 linear $A 0"
run dmsetup create c9 --addnodeoncreate --table "0 8 zero"
run dmsetup create c10 --addnodeonresume --table "0 8 zero"
run dmsetup create c11 -m 77 --table "0 8 zero"
run dmsetup create c12 --readahead 64 --table "0 8 zero"
run dmsetup create c13 --verifyudev --table "0 8 zero"
run dmsetup info -c --noheadings -o name,uuid,attr,segments c7 
run dmsetup info -c --noheadings -o name,uuid,attr c8 
title 'refused'
run dmsetup create c1 --table "0 8 zero"
run dmsetup create c1 --notable
run dmsetup create other -u UUID-7 --table "0 8 zero"
run dmsetup create other -u UUID-7 --notable
try bad ""
try bad "0"
try bad "0 8"
try bad "x 8 zero"
try bad "0 x zero"
try bad "0 8 nosuchtarget"
try bad "0 0 zero"
try bad "8 8 zero"
try bad "0 8 zero
16 8 zero"
try bad "0 8 zero
4 8 zero"
run dmsetup create bad "$WORK/absent"
run dmsetup create ''  --table "0 8 zero"
run dmsetup create a/b --table "0 8 zero"
run dmsetup create 'with space' --table "0 8 zero"
run dmsetup create nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn --table "0 8 zero"
run dmsetup create nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn --table "0 8 zero"
run dmsetup create bad -u uuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu --table "0 8 zero"
try bad "0 8 linear"
run dmsetup ls
title 'a number of its own choosing'
run dmsetup create other -j 99 -m 7 --table "0 8 zero"
run dmsetup create numbered -j 254 -m 300 --table "0 8 zero"
