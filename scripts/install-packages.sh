#!/usr/bin/env bash
# Installs the Debian packages that the demo, the tests or the benchmarks use, as far as they are missing and we may.
set -euo pipefail

demo=(e2fsprogs util-linux libnbd-bin)
clients=(docker.io containerd runc busybox-static xfsprogs e2fsprogs util-linux)
test=("${demo[@]}" "${clients[@]}" lvm2 dmsetup multipath-tools kpartx cryptsetup-bin keyutils thin-provisioning-tools user-mode-linux kmod fio btrfs-progs
      qemu-utils nbdkit golang-go python3 python3-libnbd procps fuse3)
# qemu-storage-daemon is in qemu-system-common.
bench=(fio qemu-system-common qemu-utils nbdkit xfsprogs btrfs-progs thin-provisioning-tools python3 python3-libnbd python3-matplotlib
       fuse3 mount util-linux)

case "${1:-demo}" in
    demo) wanted=("${demo[@]}") ;;
    clients) wanted=("${clients[@]}") ;;
    test) wanted=("${test[@]}") ;;
    bench) wanted=("${bench[@]}") ;;
    *) echo "usage: $0 demo|clients|test|bench" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null; then
    echo "not a Debian system: please install what ${wanted[*]} hold by hand" >&2
    exit 0
fi
missing=()
for package in "${wanted[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" != 0 ]; then
    echo "missing packages: ${missing[*]} (as root: apt-get install ${missing[*]})" >&2
    exit 0
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || {
    apt-get update -q >/dev/null
    apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
}
