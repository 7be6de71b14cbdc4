# How the demos talk. Sourced.

bold=$(tput bold 2>/dev/null || true) plain=$(tput sgr0 2>/dev/null || true)
say() { printf '\n%s# %s%s\n' "$bold" "$*" "$plain"; }
# Shown as it would be typed: what has blanks or the like is quoted.
typed() { local word; for word; do [[ $word =~ [^[:alnum:]_./:=+@%,-] ]] && word="'${word//\'/\'\\\'\'}'"; printf ' %s' "$word"; done; }
run() { printf '%s$%s%s\n' "$bold" "$(typed "$@")" "$plain"; "$@"; }
has_no_device_mapper() {
    grep -q device-mapper /proc/devices && echo "(this kernel has device mapper; thinmap does not use it)" \
        || echo "(this kernel has no device mapper: grep device-mapper /proc/devices finds nothing)"
}
