#!/usr/bin/env bash
# Debian's dockerd, unmodified, with its devicemapper storage driver on thinmap; then containerd with its devmapper snapshotter.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/demo-clients.sh
if [ "${1:-}" != --inside ]; then
    (own_namespaces scripts/demo-docker.sh)
    exec scripts/demo-containerd.sh
fi
own_world docker
mkdir "$work"/{client,layered}
ln -s "$thinmap" "$work/bin/dmsetup"
export DOCKER_HOST=unix://$work/docker.sock DOCKER_CONFIG=$work/client DOCKER_BUILDKIT=0

clean_up() {
    status=$?
    set +e
    [ $status = 0 ] || grep -vE 'level=(info|debug)' "$work/dockerd.log" 2>/dev/null | tail -n 20 >&2
    stop_dockerd
    leave_world
    [ $status = 0 ] || echo "the Docker demo failed (exit code $status)" >&2
    exit $status
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

dockerd=
start_dockerd() {
    printf '%s$ thinmap run -- dockerd --storage-driver devicemapper --storage-opt dm.override_udev_sync_check=true &%s\n' "$bold" "$plain"
    # Without a network: the demo is about disks, and changes nothing else on this machine.
    # Out of the way of a Ctrl-C, which is for the demo.
    setsid thinmap run -- dockerd --storage-driver devicemapper --storage-opt dm.override_udev_sync_check=true \
        --data-root "$work/docker" --exec-root "$work/exec" --pidfile "$work/dockerd.pid" --host "$DOCKER_HOST" \
        --cgroup-parent "/$cgroup" --bridge none --iptables=false --ip6tables=false --ip-forward=false >>"$work/dockerd.log" 2>&1 &
    dockerd=$!
    until docker version >/dev/null 2>&1; do
        kill -0 $dockerd 2>/dev/null || wrong "dockerd ended"
        sleep 0.1
    done
}
stop_dockerd() {
    [ -n "$dockerd" ] || return 0
    kill $dockerd
    wait $dockerd || true
    dockerd=
}

data=$work/docker/devicemapper/devicemapper/data
used_kib() { sync -f "$data"; du -k "$data" | cut -f1; }
used() { printf '%s MiB of the data file are really used on the host\n' $(($(used_kib) / 1024)); }

say "dockerd, as Debian ships it. The one option: no udev makes nodes here, and Docker must not wait for it."
has_no_device_mapper
start_dockerd

say "Docker has made its loop-lvm pool: two sparse files, two loop devices, a thin pool, a base device with a file system."
run docker info --format '{{.ServerVersion}} {{.Driver}}'
pool_info() { docker info 2>/dev/null | sed -n '/Storage Driver/,/Library Version/p'; }
pool_info
run dmsetup table
run dmsetup status
(cd "${data%/*}" && run ls -lsh --time-style=+ data metadata)
empty=$(used_kib)

say "A small image, made on the spot of busybox alone."
busybox_root
tar -C "$work/rootfs" -c . | docker import - small >/dev/null
run docker images

say "Another one on it. Each layer is a thin snapshot of the layer below."
echo 'a file of the host' >"$work/layered/hello"
cat >"$work/layered/Dockerfile" <<'DOCKERFILE'
FROM small
RUN echo one > /one
RUN dd if=/dev/urandom of=/two bs=1M count=8
COPY hello /three
CMD ["/bin/cat", "/one", "/three"]
DOCKERFILE
cat "$work/layered/Dockerfile"
run docker build --quiet --network none --tag layered "$work/layered"
run docker history --format '{{.Size}} {{.CreatedBy}}' layered
says "one a file of the host" docker run --rm --network none layered

say "Containers that write, at once. What each has changed is found by comparing two thin devices."
for name in ann bob cyd; do
    quietly docker run --detach --name $name --network none layered \
        sh -c "echo $name > /name; dd if=/dev/urandom of=/big bs=1M count=40; rm /one; sync; while :; do /bin/busybox sleep 1; done"
done
for name in ann bob cyd; do
    until docker diff $name 2>/dev/null | grep -qx 'D /one'; do /bin/sleep 0.1; done
done
run docker ps --format '{{.Names}} {{.Image}} {{.Status}}'
run dmsetup ls
run docker diff bob
[ "$(docker diff bob | sort | tr '\n' ' ')" = "A /big A /name D /one " ] || wrong "docker diff says something else"
says cyd docker exec cyd cat /name

say "The pool's figures, as Docker and as dmsetup say them."
pool_info | grep -E 'Used|Available'
run dmsetup status --target thin-pool
used
full=$(used_kib)

say "dockerd goes down and comes up again, and so does thinmap: the pool is in its files, not in a daemon's memory."
stop_dockerd
run thinmap stop
start_dockerd
run docker cp ann:/name "$work/name"
says ann cat "$work/name"
run docker diff ann

say "All of it removed: the space goes back through Docker's discards, the pool and the loop device to the host."
run docker rm --force ann bob cyd
quietly docker rmi layered small
pool_info | grep -E 'Data Space Used|Deferred Deleted'
sync -f "$data"
used
after=$(used_kib)
[ "$full" -gt $((empty + 100 * 1024)) ] && [ "$after" -lt $((empty + 20 * 1024)) ] \
    || wrong "the space did not come back: $empty KiB empty, $full KiB full, $after KiB after"

say "Take it all down."
stop_dockerd
run dmsetup ls
run thinmap stop
nothing_left

say "Done, and nothing is left behind. docs/clients/docker.md says what else works and what differs."
