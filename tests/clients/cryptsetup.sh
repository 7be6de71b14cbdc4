# cryptsetup's words for the tests: sourced by bash. `c COMMAND...` is cryptsetup, on the side that the variable VIA says; PASS and
# OTHER are passphrases. Key derivation is as cheap as it may be: what is tested is not its strength.

printf secret >pass
printf 'another one' >other
CHEAP="--pbkdf pbkdf2 --pbkdf-force-iterations 1000"
NODES=/dev/mapper
DEVICES=

c() { $VIA cryptsetup -q "$@"; }

# refused ARGUMENTS...: cryptsetup fails.
refused() { if c "$@" 2>refusal; then return 1; fi; }

# file NAME SIZE: a loop device under $NAME, named by the variable.
file() {
    [ -e "$1.img" ] || truncate -s "$2" "$1.img"
    printf -v "$1" %s "$(losetup -f --show "$1.img")"
    DEVICES="$DEVICES ${!1}"
}
off() { for device in $DEVICES; do losetup -d "$device"; done; }
trap off EXIT

# noise NODE: fill it with noise; its sum.
noise() {
    head -c "$(blockdev --getsize64 "$1")" /dev/urandom | dd of="$1" bs=1M oflag=direct iflag=fullblock status=none
    sum_of "$1"
}
sum_of() { dd if="$1" bs=64k iflag=direct status=none | sha256sum | cut -d' ' -f1; }
