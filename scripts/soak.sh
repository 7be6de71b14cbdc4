#!/usr/bin/env bash
# The random tests and the simulator again, with as many seeds as wanted, the daemon killed and a pool filled to the brim as often. Ends in
# "N passed, N failed".
set -uo pipefail
cd "$(dirname "$0")/.."
export THINMAP_BIN="$PWD/target/release/thinmap" THINMAP_SEEDS="${1:-2000}" THINMAP_KILLS="${THINMAP_KILLS:-500}"
export THINMAP_FULL_ROUNDS="${THINMAP_FULL_ROUNDS:-100}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=0
soak() { "$@" 2>&1 | tee -a "$log"; [ "${PIPESTATUS[0]}" = 0 ] || failed=1; }

echo "seeds: 0..$THINMAP_SEEDS, kills: $THINMAP_KILLS, full pools: $THINMAP_FULL_ROUNDS"
soak cargo run --release --locked -p thinmap-simulator -- "0..$THINMAP_SEEDS"
soak cargo test --release --locked --no-fail-fast -p thinmap-persistent-data -p thinmap-thin-metadata -p thinmap-targets -- --skip slow_
export THINMAP_CONTINUITY_KILLS="$THINMAP_KILLS" THINMAP_UPGRADES="${THINMAP_UPGRADES:-100}"
soak cargo test --release --locked -p thinmap-tests --test e2e -- --show-output --test-threads=1 kill:: continuity::
soak cargo test --release --locked -p thinmap-tests --test e2e -- --show-output full::
# 10,000 damages of metadata, thin_check beside our check, each repaired.
THINMAP_DAMAGES="${THINMAP_DAMAGES:-10000}" soak cargo test --release --locked -p thinmap-thin-tools --test damage -- --nocapture
THINMAP_POOLS=all soak cargo test --release --locked -p thinmap-thin-tools --test agree -- --nocapture

passed=$(grep -oE '[0-9]+ passed' "$log" | awk '{s+=$1} END {print s+0}')
broken=$(grep -oE '[0-9]+ failed' "$log" | awk '{s+=$1} END {print s+0}')
printf '\n%d passed, %d failed\n' "$passed" "$broken"
exit "$failed"
