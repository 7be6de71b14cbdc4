# info: the long form, and columns with their options.
disk A 8M
quiet dmsetup create i1 -u UUID-1 --table "0 128 linear $A 0"
quiet dmsetup create i2 --table "0 64 linear $A 128
64 64 zero"
quiet dmsetup create i3 -r --table "0 128 linear $DEVDIR/i1 0"
quiet dmsetup create i4 --notable
run dmsetup info
run dmsetup info i1
run dmsetup info i1 i2
run dmsetup info -u UUID-1
run dmsetup info --noopencount i1
run dmsetup info -c
run dmsetup info -C i1
run dmsetup info -c i1 i2
run dmsetup info -c --noheadings
run dmsetup info -c -o name
run dmsetup info -c -o +uuid,events
for field in name mangled_name unmangled_name uuid mangled_uuid unmangled_uuid read_ahead \
    attr tables_loaded suspended readonly open segments events device_count devs_used \
    devnos_used blkdevs_used device_ref_count names_using_dev devnos_using_dev subsystem \
    vg_name lv_name lv_layer; do
    run dmsetup info -c --noheadings -o name,$field
    run dmsetup info -c -o $field i1
done
run dmsetup info -c -o name,uuid,attr,open --separator : 
run dmsetup info -c --noheadings --separator ' ' -o name,uuid,segments
run dmsetup info -c --nameprefixes -o name,uuid,open,events i1
run dmsetup info -c --nameprefixes --noheadings --unquoted -o name,open i1
run dmsetup info -c --rows -o name,open
run dmsetup info -c -O name -o name
run dmsetup info -c -O -name -o name
run dmsetup info -c -O open,-name -o name,open
run dmsetup info -c -S 'name=i1' -o name,uuid
run dmsetup info -c -S 'open>0' -o name,open
run dmsetup info -c -S 'name=~"^i[12]$"' -o name
run dmsetup info -c -S 'name=~i && open=0' -o name
run dmsetup info -c -S 'nosuch=1' -o name
run dmsetup info -c -S 'name' -o name
run dmsetup info -c -o nosuch
run dmsetup info -c -o help
run dmsetup info -c -S help
run dmsetup info -c -o name_all i1
run dmsetup info -c absent
run dmsetup info i1 absent
run dmsetup info --nosuch
title 'the open count follows an opener'
exec 9<"$DEVDIR/i2"
run dmsetup info -c --noheadings -o name,open i2
exec 9<&-
run dmsetup info -c --noheadings -o name,open i2
