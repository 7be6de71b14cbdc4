#!/usr/bin/env bash
# After runs with FUZZ_PACK=0: minimises and packs each target's corpus and adds the hours of fuzz/target/hours.tsv to the table
# in docs/internals/fuzzing.md, once.
set -euo pipefail
cd "$(dirname "$0")/.."
# As in fuzz.sh: what workers hold when the process ends is no leak.
export ASAN_OPTIONS="${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0"
triple=$(rustc +nightly -vV | sed -n 's/^host: //p')
bin="fuzz/target/$triple/release" corpus="${CARGO_TARGET_DIR:-target}/debug/examples/corpus"
for target in $("$corpus" targets); do
    [ -d "fuzz/corpus/$target" ] || continue
    small="fuzz/target/min-$target"
    rm -rf "$small"
    mkdir -p "$small"
    "$bin/$target" -merge=1 -timeout=20 -rss_limit_mb=2048 -max_len=4096 "$small" "fuzz/corpus/$target" >/dev/null 2>&1
    "$corpus" pack "$target" "$small"
    rm -rf "$small"
done
[ -s fuzz/target/hours.tsv ] || exit 0
awk -F '\t' 'NR == FNR { used[$2] += $3; runs[$2] += $4; day[$2] = $1; next }
    { split($0, f, / *[|] */); name = f[2]; gsub(/`/, "", name) }
    # Other tables begin with the names as well.
    name in used && f[3] ~ /^[0-9.]+$/ { printf "| `%s` | %.2f | %d | %s |\n", name, f[3] + used[name] / 3600, f[4] + runs[name], day[name]; next }
    { print }' fuzz/target/hours.tsv docs/internals/fuzzing.md >fuzz/target/fuzzing.md
cp fuzz/target/fuzzing.md docs/internals/fuzzing.md
rm fuzz/target/hours.tsv
