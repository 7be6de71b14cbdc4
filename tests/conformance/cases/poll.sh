# Poll of the control node: readable after an event of any device, until it is armed again.
watch() { $VIA python3 "$WORK/poll.py"; }
cat >"$WORK/poll.py" <<'PROGRAM'
import fcntl, os, select, subprocess, sys

DM_DEV_ARM_POLL = 0xC138FD10
control_node = os.environ["DEVDIR"] + "/control"

def arm(fd):
    buffer = bytearray(312)
    buffer[0:4] = (4).to_bytes(4, sys.byteorder)
    buffer[12:16] = len(buffer).to_bytes(4, sys.byteorder)
    fcntl.ioctl(fd, DM_DEV_ARM_POLL, buffer)

def state(fd):
    poller = select.poll()
    poller.register(fd, select.POLLIN | select.POLLPRI)
    return "readable" if poller.poll(0) else "quiet"

control = os.open(control_node, os.O_RDWR)
print("opened:", state(control))
for command in sys.stdin.read().splitlines():
    # Not told of a command's own words: they are for other cases.
    code = subprocess.run(command, shell=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
    print(f"{command}: {code}, {state(control)}")
    arm(control)
    print("  armed:", state(control))
subprocess.run("dmsetup create last --notable", shell=True)
later = os.open(control_node, os.O_RDWR)
print("the first:", state(control), "one that was opened later:", state(later))
subprocess.run("dmsetup remove last", shell=True)
print("the first:", state(control), "one that was opened later:", state(later))
arm(later)
print("the first:", state(control), "one that is armed:", state(later))
PROGRAM
cat >"$WORK/commands" <<COMMANDS
dmsetup create p1 --notable
dmsetup load p1 --table "0 8 zero "
dmsetup resume p1
dmsetup suspend p1
dmsetup suspend p1
dmsetup resume p1
dmsetup resume p1
dmsetup load p1 --table "0 16 zero "
dmsetup clear p1
dmsetup load p1 --table "0 16 zero "
dmsetup resume p1
dmsetup status
dmsetup message p1 0 hello
dmsetup rename p1 p2
dmsetup rename p2 --setuuid some-uuid
dmsetup rename p2 --setuuid another
dmsetup rename absent p3
dmsetup create p2 --notable
dmsetup create p3 --table "0 8 linear $DEVDIR/p2 0"
dmsetup remove p2
dmsetup remove --deferred p2
dmsetup remove p3
dmsetup ls
dmsetup remove absent
dmsetup remove_all
COMMANDS
run_in "$WORK/commands" watch
title 'low water mark of a pool'
disk M 4M
disk D 8M
pool p "$M" "$D" 16384 128 100
quiet dmsetup message p 0 "create_thin 0"
quiet dmsetup create t --table "0 16384 thin $DEVDIR/p 0"
cat >"$WORK/commands" <<COMMANDS
dd if=/dev/zero of=$DEVDIR/t bs=64k count=20 oflag=direct
dd if=/dev/zero of=$DEVDIR/t bs=64k seek=20 count=20 oflag=direct
dd if=/dev/zero of=$DEVDIR/t bs=64k seek=40 count=20 oflag=direct
COMMANDS
run_in "$WORK/commands" watch
