#!/usr/bin/env bash
# Searches for bytes that do harm, or makes the corpus small again:
#   scripts/fuzz.sh run TARGET SECONDS    TARGET: a name of fuzz/src/lib.rs, or all
#   scripts/fuzz.sh corpus TARGET         what was found goes into fuzz/corpus, as few files as do
# libFuzzer with the compiler's own coverage, which stable Rust has; only sanitizers would need more,
# and safe Rust has little use for them.
set -euo pipefail
cd "$(dirname "$0")/.."

HOST=$(rustc -vV | sed -n 's/^host: //p')
BUILT=target/fuzz
FUZZER=$BUILT/$HOST/release/fuzzer
FILES_MAX=150          # of each corpus; the test that plays it allows 200
INPUT_BYTES_MAX=8192   # more than any message of the handshake that is not all statement

build() {
    RUSTC_WRAPPER=$PWD/scripts/fuzz-rustc.sh cargo build --quiet --release \
        --manifest-path fuzz/fuzzer/Cargo.toml --target "$HOST" --target-dir $BUILT
    cargo run --quiet --locked --package fuzz --example seeds -- $BUILT/seeds
}

targets() {
    if [ "$1" = all ]; then ls $BUILT/seeds; else echo "$1"; fi
}

run() {
    local target=$1 seconds=$2
    mkdir -p "$BUILT/found/$target" "fuzz/corpus/$target" $BUILT/harm
    echo "fuzz: $target, $seconds s"
    FUZZ_TARGET=$target "$FUZZER" "$BUILT/found/$target" "fuzz/corpus/$target" "$BUILT/seeds/$target" \
        -max_total_time="$seconds" -max_len=$INPUT_BYTES_MAX -timeout=10 -rss_limit_mb=1024 -use_value_profile=1 \
        -print_final_stats=1 -artifact_prefix="$BUILT/harm/$target-" >"$BUILT/$target.log" 2>&1 || {
        grep -A 3 'panicked at' "$BUILT/$target.log" >&2 || tail -n 20 "$BUILT/$target.log" >&2
        echo "fuzz: $target: harm was done; the bytes are in $BUILT/harm, all of it in $BUILT/$target.log" >&2
        return 1
    }
    sed -n -e '/^#.*DONE/p' -e '/number_of_executed_units/p' "$BUILT/$target.log"
}

corpus() {
    local target=$1 small
    small=$(mktemp -d)
    FUZZ_TARGET=$target "$FUZZER" -set_cover_merge=1 -max_len=$INPUT_BYTES_MAX "$small" "fuzz/corpus/$target" \
        "$BUILT/seeds/$target" "$BUILT/found/$target" >"$BUILT/$target.log" 2>&1
    rm -rf "fuzz/corpus/$target"
    mkdir -p "fuzz/corpus/$target"
    # The shortest, if there are too many.
    ls -Sr "$small" | head -n $FILES_MAX | while read -r file; do
        cp "$small/$file" "fuzz/corpus/$target/$file"
    done
    rm -rf "$small"
    echo "fuzz: $target: $(ls "fuzz/corpus/$target" | wc -l) files, $(cat "fuzz/corpus/$target"/* | wc -c) bytes"
}

what=$1
build
failed=0
for target in $(targets "$2"); do
    "$what" "$target" "${3:-}" || failed=1
done
exit $failed
