# Keepstone: what to run. `make help` lists the targets.
#
# RocksDB is compiled once, as a static library under the cache directory (deploy/build-rocksdb), and every cargo call
# below links it. One cargo profile, --release, serves `up`, `test` and `lint`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
BIN := $(abspath $(TARGET_DIR))/release/keepstone
# Passed on by `make up ARGS=...`, `make bench ARGS=...`, `make acceptance ARGS=...`, `make attacks ARGS=...`.
ARGS ?=

export ROCKSDB_LIB_DIR := $(shell deploy/build-rocksdb --print)
export ROCKSDB_STATIC := 1

.PHONY: help
help: ## Lists the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: prepare
prepare: ## Checks the toolchain, installs what it may, builds RocksDB once
	@deploy/check-toolchain
	@deploy/build-rocksdb

.PHONY: build
build: prepare ## Builds the binary, target/release/keepstone
	cargo build --release --package keepstone

.PHONY: up
up: build ## Runs a whole cluster in the foreground (ARGS="--processes --data DIR ...")
	exec $(BIN) up $(ARGS)

.PHONY: test
test: build ## Runs every test; the cluster tests run the real binary as processes
	@deploy/check-toolchain --tests
	KEEPSTONE_BIN=$(BIN) cargo test --release --workspace --no-fail-fast

.PHONY: lint
lint: prepare ## Format, clippy, licences and sources of dependencies
	cargo fmt --all -- --check
	cargo clippy --release --workspace --all-targets --features keepstone-tests/attacks -- -D warnings
	deploy/deny

.PHONY: bench
bench: build ## Measures the whole stack beside the raw figures of the same minute
	cargo build --release --package keepstone-benches
	KEEPSTONE_BIN=$(BIN) $(abspath $(TARGET_DIR))/release/keepstone-bench $(ARGS)

.PHONY: bench-sync
bench-sync: build ## Measures synchronisation beside Syncthing, if it is installed (ARGS="--full")
	cargo build --release --package keepstone-benches
	KEEPSTONE_BIN=$(BIN) $(abspath $(TARGET_DIR))/release/keepstone-bench-sync $(ARGS)

.PHONY: acceptance
acceptance: build ## Runs the full-size promises one by one and prints a table (an hour or so; root for power cuts)
	@deploy/check-toolchain --tests
	KEEPSTONE_BIN=$(BIN) deploy/acceptance $(ARGS)

.PHONY: attacks
attacks: build ## Runs every attack at the size at which it once worked (ARGS=NAME for some; an hour or so)
	@deploy/check-toolchain --tests
	KEEPSTONE_BIN=$(BIN) KEEPSTONE_SIZE=full cargo test --release --package keepstone-tests --no-fail-fast \
		--features attacks --test attacks -- --nocapture $(ARGS)

.PHONY: soak
soak: build ## Runs the crash and power-cut tests for many more rounds
	@deploy/check-toolchain --tests
	KEEPSTONE_BIN=$(BIN) KEEPSTONE_SIZE=soak cargo test --release --package keepstone-tests --no-fail-fast \
		--test crash --test power_cut -- --nocapture

.PHONY: simulate-sync
simulate-sync: prepare ## Runs 1,000,000 simulations of synchronisation on all cores (ARGS="KEEPSTONE_SEED=... KEEPSTONE_RUNS=...")
	env KEEPSTONE_RUNS=1000000 $(ARGS) cargo test --release --package keepstone-client --lib \
		planner::simulation::devices_that_do_anything -- --nocapture

.PHONY: clean
clean: ## Removes what cargo built here (the cached RocksDB stays)
	cargo clean
