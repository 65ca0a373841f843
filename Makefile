# Table of contents. Everything installs what it needs: `make setup` says what.

.PHONY: help setup build demo test lint unit bench fuzz fuzz-corpus deny clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24

setup: ## install what is missing: Debian packages and a Python venv
	@scripts/setup.sh

build: setup ## build everything for users, into target/release
	cargo build --locked --release --bins

demo: setup ## the main job on this machine, in under two minutes; DEMO_FOREVER=1 keeps it running
	@scripts/demo.sh

test: setup lint unit ## everything that can be tested

lint: setup ## format, clippy, documentation, and that the house stands as drawn
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items --quiet
	cargo xtask

unit: setup ## every test, against swtpm, pymodbus, D-Bus and our own processes
	cargo build --locked --workspace --all-features --bins
	cargo test --locked --workspace --all-features --no-run
	timeout --foreground 20m cargo test --locked --workspace --all-features # a test that hangs fails

bench: setup ## what security costs, as ratios: TPM, records, handshakes, a stream through a relay, idle sessions, the seal
	nice cargo bench --locked --package channel --bench records --bench handshakes --bench seal
	nice cargo bench --locked --package cloud --bench stream --bench relay
	nice cargo bench --locked --package hsm --features swtpm --bench tpm

fuzz: setup ## search for bytes that do harm: TARGET=service (default: all) SECONDS=60
	scripts/fuzz.sh run $(or $(TARGET),all) $(or $(SECONDS),60)

fuzz-corpus: setup ## take what `make fuzz` found into fuzz/corpus, as few files as do; `make test` plays them again
	scripts/fuzz.sh corpus $(or $(TARGET),all)

deny: setup ## licences, banned crates and sources of everything linked (installs cargo-deny)
	command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny --all-features check bans licenses sources

clean: ## remove what was built
	cargo clean
	rm -rf .venv demo/run
