# load, clear, suspend, resume, and what status, table and info say in each state.
disk A 8M
show() {
    run dmsetup info s
    run dmsetup table s
    run dmsetup table --inactive s
    run dmsetup status s
    run dmsetup status --inactive s
    run dmsetup info -c --noheadings -o name,attr,tables_loaded,suspended,readonly,open,segments,events s
}
run dmsetup create s --notable
show
run dmsetup load s --table "0 128 linear $A 0"
show
run dmsetup resume s
show
run dmsetup reload s --table "0 256 linear $A 0
256 8 zero"
show
run dmsetup clear s
show
run dmsetup clear s
run dmsetup load s --table "0 512 zero"
run dmsetup suspend s
show
run dmsetup suspend s
run dmsetup resume s
show
run dmsetup resume s
run dmsetup suspend --noflush s
run dmsetup resume s
run dmsetup suspend --nolockfs s
run dmsetup resume --noflush --nolockfs s
run dmsetup load s -r --table "0 512 linear $A 0"
run dmsetup resume s
show
title 'refused'
run dmsetup load s --table "0 8 linear $A"
run dmsetup load s --table "0 8 nosuch"
run dmsetup load absent --table "0 8 zero"
run dmsetup clear absent
run dmsetup suspend absent
run dmsetup resume absent
run dmsetup table absent
run dmsetup status absent
run dmsetup info absent
run dmsetup deps absent
run dmsetup wipe_table absent
run dmsetup create empty --notable
run dmsetup resume empty
run dmsetup suspend empty
run dmsetup resume empty
title 'wipe_table'
run dmsetup wipe_table s
show
run dmsetup ls
