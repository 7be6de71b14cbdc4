# Several devices on one line.
disk A 8M
run dmsetup create --concise "q1,,,rw,0 8 zero"
run dmsetup create --concise "q2,UUID-2,,ro,0 8 linear $A 0,8 8 zero;q3,,,,0 16 error"
run dmsetup table
run dmsetup table --concise
run dmsetup table --concise q2
run dmsetup info q2
echo "q4,,,rw,0 8 zero" >"$WORK/c"
run_in "$WORK/c" dmsetup create --concise
run dmsetup create --concise "q5,,,rw,0 8 nosuch"
run dmsetup create --concise "q6"
run dmsetup create --concise "q6,,,xx,0 8 zero"
run dmsetup create --concise "q1,,,rw,0 8 zero"
run dmsetup create --concise ""
run dmsetup create --concise 'q\,8,,,rw,0 8 zero'
run dmsetup ls
run dmsetup table --concise
run dmsetup create --concise "q7,,7,rw,0 8 zero"
