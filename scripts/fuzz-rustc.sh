#!/usr/bin/env bash
# rustc for scripts/fuzz.sh: coverage, as cargo-fuzz sets it, for our own crates alone. Cryptography
# has no branch that bytes of a peer choose, and with it in, a handshake takes ten times as long.
set -euo pipefail
case " $* " in
*" --crate-name channel "* | *" --crate-name wire "*)
    exec "$@" \
        -Cpasses=sancov-module \
        -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
        -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares \
        -Ccodegen-units=1
    ;;
*) exec "$@" ;;
esac
