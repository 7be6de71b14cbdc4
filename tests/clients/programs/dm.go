// A program that speaks to device mapper itself, linked with nothing: the Go runtime makes its own system calls, on many threads,
// with signals of its own among them.
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"
)

const (
	headerBytes = 312
	bufferBytes = 16 << 10
	specBytes   = 40

	version     = 0
	listDevices = 2
	create      = 3
	remove      = 4
	suspend     = 6
	devStatus   = 7
	devWait     = 8
	tableLoad   = 9
	tableDeps   = 11
	tableStatus = 12
	message     = 14

	statusTable = 1 << 4
	suspendFlag = 1 << 1
)

// Offsets in struct dm_ioctl (bytes).
const (
	atSize, atStart, atTargets, atFlags, atEvent, atDev, atName = 12, 16, 20, 28, 32, 40, 48
)

var order = binary.LittleEndian

type mapper struct{ control *os.File }

func open() mapper {
	// As libdevmapper finds its way: the numbers of the control node, then the node.
	misc, err := os.ReadFile("/proc/misc")
	check("/proc/misc", err)
	devices, err := os.ReadFile("/proc/devices")
	check("/proc/devices", err)
	if !strings.Contains(string(misc), " device-mapper\n") || !strings.Contains(string(devices), " device-mapper\n") {
		fail("no device mapper in /proc")
	}
	info, err := os.Stat("/dev/mapper/control")
	check("stat /dev/mapper/control", err)
	if info.Mode()&os.ModeCharDevice == 0 {
		fail("the control node is no character device: %v", info.Mode())
	}
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	check("open /dev/mapper/control", err)
	return mapper{control}
}

func (m mapper) ioctl(command int, name string, flags uint32, fill func(payload []byte) uint32, event uint32) ([]byte, syscall.Errno) {
	buffer := make([]byte, bufferBytes)
	order.PutUint32(buffer[0:], 4)
	order.PutUint32(buffer[atSize:], bufferBytes)
	order.PutUint32(buffer[atStart:], headerBytes)
	order.PutUint32(buffer[atFlags:], flags)
	order.PutUint32(buffer[atEvent:], event)
	copy(buffer[atName:], name)
	if fill != nil {
		order.PutUint32(buffer[atTargets:], fill(buffer[headerBytes:]))
	}
	request := uintptr(3<<30 | headerBytes<<16 | 0xfd<<8 | command)
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, m.control.Fd(), request, uintptr(unsafe.Pointer(&buffer[0])))
	return buffer, errno
}

func (m mapper) do(command int, name string, flags uint32, fill func([]byte) uint32) []byte {
	buffer, errno := m.ioctl(command, name, flags, fill, 0)
	if errno != 0 {
		fail("command %d on %q: %v", command, name, errno)
	}
	return buffer
}

func table(text string) func([]byte) uint32 {
	return func(payload []byte) uint32 {
		lines := strings.Split(strings.TrimSpace(text), "\n")
		for _, line := range lines {
			words := append(strings.SplitN(strings.TrimSpace(line), " ", 4), "")
			start, _ := strconv.ParseUint(words[0], 10, 64)
			length, _ := strconv.ParseUint(words[1], 10, 64)
			order.PutUint64(payload[0:], start)
			order.PutUint64(payload[8:], length)
			copy(payload[24:], words[2])
			copy(payload[specBytes:], words[3])
			next := (specBytes + len(words[3]) + 1 + 7) &^ 7
			order.PutUint32(payload[20:], uint32(next))
			payload = payload[next:]
		}
		return uint32(len(lines))
	}
}

func text(bytesAt []byte) string {
	end := bytes.IndexByte(bytesAt, 0)
	return string(bytesAt[:end])
}

func (m mapper) create(name, lines, devDir string) {
	buffer := m.do(create, name, 0, nil)
	m.do(tableLoad, name, 0, table(lines))
	m.do(suspend, name, 0, nil)
	// libdevmapper's own way without udev; the daemon may have been quicker.
	number := order.Uint64(buffer[atDev:])
	if devDir != "" {
		err := syscall.Mknod(filepath.Join(devDir, name), syscall.S_IFBLK|0o600, int(number))
		if err != nil && err != syscall.EEXIST {
			check("mknod", err)
		}
	}
}

func (m mapper) lines(name string, flags uint32) {
	buffer := m.do(tableStatus, name, flags, nil)
	at := order.Uint32(buffer[atStart:])
	base := at
	for i := uint32(0); i < order.Uint32(buffer[atTargets:]); i++ {
		spec := buffer[at:]
		params := text(spec[specBytes:])
		fmt.Printf("%d %d %s %s\n", order.Uint64(spec[0:]), order.Uint64(spec[8:]), text(spec[24:40]), params)
		at = base + order.Uint32(spec[20:])
	}
}

// threads makes and removes devices from many threads at once, with children and other system calls between.
func (m mapper) threads(count, rounds int) {
	var group sync.WaitGroup
	for thread := 0; thread < count; thread++ {
		group.Add(1)
		go func(thread int) {
			defer group.Done()
			runtime.LockOSThread()
			for round := 0; round < rounds; round++ {
				name := fmt.Sprintf("thread%d-%d", thread, round)
				m.create(name, "0 8 zero ", "")
				m.do(devStatus, name, 0, nil)
				if _, err := os.Stat("/no/such/file"); err == nil {
					fail("/no/such/file exists")
				}
				if round%8 == 0 {
					out, err := exec.Command(os.Args[0], "status", name).Output()
					check("child", err)
					if string(out) != "0 8 zero \n" {
						fail("a child sees %q", out)
					}
				}
				m.do(remove, name, 0, nil)
			}
		}(thread)
	}
	group.Wait()
	fmt.Println("done")
}

func main() {
	m := open()
	args := append(os.Args[1:], "", "", "")
	switch args[0] {
	case "version":
		buffer := m.do(version, "", 0, nil)
		fmt.Printf("%d.%d\n", order.Uint32(buffer[0:]), order.Uint32(buffer[4:]))
	case "create":
		m.create(args[1], args[2], os.Getenv("THINMAP_DEV_DIR"))
	case "message":
		m.do(message, args[1], 0, func(payload []byte) uint32 {
			copy(payload[8:], args[2])
			return 0
		})
	case "status":
		m.lines(args[1], 0)
	case "table":
		m.lines(args[1], statusTable)
	case "suspend":
		m.do(suspend, args[1], suspendFlag, nil)
	case "resume":
		m.do(suspend, args[1], 0, nil)
	case "remove":
		m.do(remove, args[1], 0, nil)
	case "deps":
		buffer := m.do(tableDeps, args[1], 0, nil)
		fmt.Println(order.Uint32(buffer[order.Uint32(buffer[atStart:]):]), "dependencies")
	case "ls":
		buffer := m.do(listDevices, "", 0, nil)
		for at := order.Uint32(buffer[atStart:]); order.Uint64(buffer[at:]) != 0; {
			fmt.Println(text(buffer[at+12:]))
			next := order.Uint32(buffer[at+8:])
			if next == 0 {
				break
			}
			at += next
		}
	case "wait":
		event, _ := strconv.Atoi(args[2])
		buffer, errno := m.ioctl(devWait, args[1], 0, nil, uint32(event))
		fmt.Println("waited:", int(errno), order.Uint32(buffer[atEvent:]))
	case "errno":
		_, errno := m.ioctl(devStatus, args[1], 0, nil, 0)
		fmt.Println(int(errno), errno)
		_, _, bad := syscall.Syscall(syscall.SYS_IOCTL, m.control.Fd(), uintptr(3<<30|headerBytes<<16|0xfd<<8|devStatus), 8)
		fmt.Println(int(bad), bad)
		_, _, other := syscall.Syscall(syscall.SYS_IOCTL, 1, uintptr(0xfd<<8), 0)
		fmt.Println(int(other), other)
	case "threads":
		m.threads(8, 25)
	default:
		fail("unknown command %q", args[0])
	}
}

func check(what string, err error) {
	if err != nil {
		fail("%s: %v", what, err)
	}
}

func fail(format string, args ...interface{}) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(3)
}
