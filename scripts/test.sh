#!/usr/bin/env bash
# Runs every test. Ends in one line "N passed, N failed, N skipped" over all of them.
set -uo pipefail
cd "$(dirname "$0")/.."
export THINMAP_BIN="$PWD/target/release/thinmap"
log=$(mktemp)
later=$(mktemp -d)
trap 'rm -rf "$log" "$later"' EXIT
failed=0

step() {
    printf '\n== %s\n' "$1"
    shift
    "$@" 2>&1 | tee -a "$log"
    [ "${PIPESTATUS[0]}" = 0 ] || { failed=1; echo "FAILED: $*"; }
}

# Those that mostly wait, all at once: what one has to say comes when it has ended.
run_later() {
    local name pids=() failed=0
    for name in "$later"/*.run; do
        bash "$name" >"$name.out" 2>&1 &
        pids+=($!)
    done
    # Names and processes are in one order.
    for name in "$later"/*.run; do
        wait "${pids[0]}" || failed=1
        pids=("${pids[@]:1}")
        cat "$name.out"
    done
    return "$failed"
}

step "format" cargo fmt --all --check
step "lints" cargo clippy --workspace --all-targets --locked -q -- -D warnings
# With the output of passing tests, so that skips and their reasons are seen. Two binaries wait for the others: see the runner.
host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
step "tests" env THINMAP_TESTS_LATER="$later" "CARGO_TARGET_${host}_RUNNER=$PWD/scripts/test-runner.sh" \
    cargo test --workspace --locked --no-fail-fast -- --show-output
step "tests beside each other" run_later

# The simulator must notice a broken order of commits.
step "canary" cargo test --locked -p thinmap-simulator --features canary --test canary -- --show-output

step "benchmark harness" /usr/bin/python3 -m unittest discover --start-directory benches

# Only the runner's own lines: tests print such words as well.
count() { grep '^test result:' "$log" | grep -oE "[0-9]+ $1" | awk '{s+=$1} END {print s+0}'; }
passed=$(count passed)
broken=$(count failed)
skipped=$(grep -c '^SKIP' "$log")
ignored=$(count ignored)
# What each failed test had to say, once more and in short, where it is found without searching.
grep -E '^test .*\.\.\. FAILED$' "$log" | sort -u | while read -r _ name _; do
    printf '\n== failed: %s\n' "$name"
    awk -v begin="---- $name stdout ----" '
        $0 == begin { on = 1; panicked = 0; next }
        on && /^---- / { on = 0 }
        on && /panicked at/ { panicked = 1 }
        on && panicked && shown < 60 { print substr($0, 1, 600); shown++ }' "$log"
done
grep '^SKIP' "$log" | sort | uniq -c
[ "$failed" = 1 ] && [ "$broken" = 0 ] && broken=1
printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$broken" "$((skipped + ignored))"
exit "$failed"
