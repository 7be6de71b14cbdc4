#!/usr/bin/env bash
# Runs a test binary for cargo, or, of those that wait most of their time (for guests, for programs that take turns), writes down how to run it
# in the directory THINMAP_TESTS_LATER: scripts/test.sh runs them beside each other.
set -euo pipefail
case "${1##*/}" in
clients-* | conformance-*)
    {
        printf 'cd %q\n' "$PWD"
        # What cargo tells test binaries.
        export -p | grep -E '^declare -x (CARGO|RUST|LD_LIBRARY_PATH|OUT_DIR)' || true
        printf 'exec'
        printf ' %q' "$@"
        printf '\n'
    } >"$THINMAP_TESTS_LATER/${1##*/}.run"
    ;;
*) exec "$@" ;;
esac
