#!/usr/bin/env bash
# The random tests and the simulator again, with as many seeds as wanted, and the daemon killed as often. Ends in "N passed, N failed".
set -uo pipefail
cd "$(dirname "$0")/.."
export THINMAP_BIN="$PWD/target/release/thinmap" THINMAP_SEEDS="${1:-2000}" THINMAP_KILLS="${THINMAP_KILLS:-500}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=0
soak() { "$@" 2>&1 | tee -a "$log"; [ "${PIPESTATUS[0]}" = 0 ] || failed=1; }

echo "seeds: 0..$THINMAP_SEEDS, kills: $THINMAP_KILLS"
soak cargo run --release --locked -p thinmap-simulator -- "0..$THINMAP_SEEDS"
soak cargo test --release --locked --no-fail-fast -p thinmap-persistent-data -p thinmap-thin-metadata -p thinmap-targets -- --skip slow_
soak cargo test --release --locked -p thinmap-tests --test e2e -- --show-output kill::

passed=$(grep -oE '[0-9]+ passed' "$log" | awk '{s+=$1} END {print s+0}')
broken=$(grep -oE '[0-9]+ failed' "$log" | awk '{s+=$1} END {print s+0}')
printf '\n%d passed, %d failed\n' "$passed" "$broken"
exit "$failed"
