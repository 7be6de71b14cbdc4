# Wrong counts of arguments and unknown words: the usage text and the exit code.
run dmsetup
run dmsetup nonsense
run dmsetup --nonsense
run dmsetup help
run dmsetup help -c
run dmsetup version
run dmsetup --version
for command in clear create deps info load ls mangle message mknodes measure reload remove \
    remove_all rename resume setgeometry splitname status suspend table target-version targets \
    udevcomplete udevcomplete_all udevcookies udevcreatecookie udevflags udevreleasecookie \
    version wait wipe_table; do
    title "$command"
    run dmsetup $command a b c d e f g h
    case $command in
    help | ls | info | deps | status | table | targets | version | remove_all | mknodes | mangle | \
        udev* | target-version | measure) ;;
    *) run dmsetup $command ;;
    esac
done
