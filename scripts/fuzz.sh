#!/usr/bin/env bash
# Fuzzes: scripts/fuzz.sh [TARGET|all] [SECONDS]. Afterwards the corpus is minimised, packed into fuzz/corpus and the time is
# added to the table in docs/internals/fuzzing.md. Needs nightly Rust and cargo-fuzz (`cargo install cargo-fuzz --locked`).
#
# Of each target SECONDS (300). Exits with 1 when an input was found that fails; it lies in fuzz/artifacts/TARGET.
# FUZZ_UNTIL=HH:MM  ends in time, and goes over the targets again until then.
# FUZZ_PACK=0       leaves fuzz/corpus/*.pack and the table as they are (the time goes to fuzz/target/hours.tsv all the same).
# FUZZ_BUILD=0      takes the binaries that are there.
# FUZZ_TIMEOUT=20   seconds that an input may take; more beside other work, as they are the clock's and not the processor's.
# TARGET may be several, in quotes.
set -uo pipefail
cd "$(dirname "$0")/.."
# A worker that ends together with the process looks like a leak.
export ASAN_OPTIONS="detect_leaks=0${ASAN_OPTIONS:+:$ASAN_OPTIONS}"
wanted="${1:-all}" seconds="${2:-300}" pack="${FUZZ_PACK:-1}" until="${FUZZ_UNTIL:-}"
triple=$(rustc +nightly -vV | sed -n 's/^host: //p')
bin="fuzz/target/$triple/release"
deadline=0
[ -z "$until" ] || deadline=$(date -d "$until" +%s)

if [ "${FUZZ_BUILD:-1}" = 1 ]; then
    cargo +nightly fuzz build --fuzz-dir fuzz || exit 2
    cargo build -q --locked -p thinmap-fuzzing --example corpus || exit 2
fi
corpus="${CARGO_TARGET_DIR:-target}/debug/examples/corpus"
targets=$wanted
[ "$wanted" != all ] || targets=$("$corpus" targets)
failed=0

# Seconds left for a run of at most $1.
left() {
    [ "$deadline" = 0 ] && { echo "$1"; return; }
    local rest=$((deadline - $(date +%s)))
    [ "$rest" -lt "$1" ] && echo "$rest" || echo "$1"
}

# Processor seconds (user and system) of the command's process, also when it fails.
fuzz_one() {
    local target=$1 time dir="fuzz/corpus/$1" log="fuzz/target/$1.log" out
    time=$(left "$seconds")
    [ "$time" -gt 5 ] || return 0
    mkdir -p "$dir" "fuzz/artifacts/$target" fuzz/target
    [ -n "$(ls -A "$dir")" ] || "$corpus" unpack "$target" "$dir"
    out=$(TIMEFORMAT='%U %S'; { time "$bin/$target" "$dir" -artifact_prefix="fuzz/artifacts/$target/" \
        -max_total_time="$time" -timeout="${FUZZ_TIMEOUT:-20}" -rss_limit_mb=2048 -malloc_limit_mb=512 -max_len=16384 \
        -detect_leaks=0 -print_final_stats=1 >"$log" 2>&1; } 2>&1)
    [ "$(grep -c 'ERROR: libFuzzer\|ERROR: AddressSanitizer\|SUMMARY: ' "$log")" = 0 ] || {
        failed=1
        # The next round begins a new log.
        cp "$log" "fuzz/artifacts/$target/$(date +%H%M%S).log"
        echo "FOUND by $target: see fuzz/artifacts/$target"
    }
    local used runs
    used=$(awk '{printf "%.0f", $1 + $2}' <<<"$out")
    runs=$(sed -n 's/^stat::number_of_executed_units: //p' "$log" | tail -1)
    printf '%s\t%s\t%s\t%s\n' "$(date +%F)" "$target" "$used" "${runs:-0}" >>fuzz/target/hours.tsv
    echo "$target: $used s of processor time, ${runs:-0} runs"
    [ "$pack" != 1 ] || keep "$target" "$used" "${runs:-0}"
}

# Minimises the corpus, packs it, and adds to the table.
keep() {
    local target=$1 small="fuzz/target/min-$1"
    rm -rf "$small"
    mkdir -p "$small"
    if "$bin/$target" -merge=1 -timeout=20 -rss_limit_mb=2048 -max_len=4096 "$small" "fuzz/corpus/$target" >/dev/null 2>&1; then
        "$corpus" pack "$target" "$small"
        rm -rf "fuzz/corpus/$target"
        mv "$small" "fuzz/corpus/$target"
    fi
    awk -v target="$target" -v used="$2" -v runs="$3" -v today="$(date +%F)" -F ' *[|] *' '
        $2 == "`" target "`" && $3 ~ /^[0-9.]+$/ { printf "| `%s` | %.2f | %d | %s |\n", target, $3 + used / 3600, $4 + runs, today; next }
        { print }' docs/internals/fuzzing.md >fuzz/target/fuzzing.md && cp fuzz/target/fuzzing.md docs/internals/fuzzing.md
}

while :; do
    for target in $targets; do fuzz_one "$target"; done
    [ "$deadline" != 0 ] && [ "$(left 60)" -ge 60 ] || break
done
exit "$failed"
