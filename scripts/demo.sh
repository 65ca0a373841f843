#!/usr/bin/env bash
# Builds what the demo runs, and runs it. DEMO_FOREVER=1 keeps it running for a look around.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --locked --quiet --workspace --all-features --bins
exec target/debug/demo
