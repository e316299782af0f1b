# `make demo` shows it, `make test` proves it; both install what is missing first.

# Outside the clone, so that a fresh clone reuses what was built: RocksDB's C++ takes many minutes.
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/smalti/target
# RocksDB is built once by itself and linked from there: see tests/scripts/rocksdb.
export ROCKSDB_LIB_DIR := $(shell tests/scripts/rocksdb --where)
export ROCKSDB_STATIC := 1
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

# For `make up`.
DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/smalti/up
NODES ?= 3
SIZE ?= 2G
# For `make mutants`: `--only NAME`, `--seeds MAX`, `--list`.
MUTANTS ?=
# For `make test`, `make bench`, `make failover`: names of black-box tests, words in names of jobs and cases.
ONLY ?=
# For `make heal`: how often each node is killed and frozen.
HEAL_KILLS ?= 6
# For `make sim`; SIM: `--beyond`, `--keep-going`.
SEEDS ?= 2000
FROM ?= 1
SIM ?=
# For `make powercut`.
CUTS ?= 1000

smalti := $(CARGO_TARGET_DIR)/release/smalti
# Encrypts nothing: what sealing is measured against.
copying := $(CARGO_TARGET_DIR)/copying

.DEFAULT_GOAL := help
.PHONY: help deps rocksdb build demo test model mutants powercut sim verify lint up down bench sealing heal healing failover chaos fmt fix

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile | expand -t 16

deps: ## install the Debian packages that are missing; say so if Rust is
	@tests/scripts/deps

rocksdb: deps ## compile the C++ of RocksDB, once
	@tests/scripts/rocksdb

build: rocksdb ## build the programs
	cargo build --release --locked --workspace --bins

demo: build ## three nodes, a disk image, a node killed, everything back identical
	@tests/scripts/demo

test: rocksdb ## run every test; ends with `N passed, N failed, N skipped`
	@tests/scripts/run-tests $(ONLY)

mutants: deps ## switch off one rule of the protocol after the other; the simulator must notice
	cargo run --release --locked -p smalti-jepsen --features mutants --bin mutants -- $(MUTANTS)

model: deps ## visit every state of very small worlds, running the code that serves volumes
	cargo run --release --locked -p smalti-jepsen --bin model

powercut: rocksdb ## CUTS images of power cuts of each kind; every call to the disk failed
	SMALTI_CUTS=$(CUTS) SMALTI_FAULTS_ALL=1 cargo test --release --locked -p smalti-powercut \
		-p smalti-rocks -p smalti-raft --lib --tests -- --test-threads=1 --nocapture fault_tests::

lint: rocksdb ## formatting, clippy, documentation, dependencies, spelling
	@tests/scripts/lint

verify: deps ## all that has to hold before a change lands; changes nothing
	@.ci/run

up: build ## a local cluster in the foreground: DIR, NODES, SIZE
	@mkdir -p "$(DIR)"
	$(smalti) up --nodes $(NODES) --dir "$(DIR)" --volume v --size $(SIZE)

down: ## stop the cluster of `make up`, if it was left behind
	$(smalti) down --dir "$(DIR)"

bench: build ## figures of a local 2+1 cluster, and of healing: SECS, RUNS, SIZE, ONLY
	@$(CARGO_TARGET_DIR)/release/smalti-bench $(ONLY)
	@if [ -z "$(ONLY)" ]; then $(CARGO_TARGET_DIR)/release/smalti-healing; fi

sealing: build ## what sealing costs: the jobs of bench against a program that copies instead, in turn: SECS, RUNS, SIZE, ONLY
	RUSTFLAGS='--cfg smalti_bench_copy' CARGO_TARGET_DIR=$(copying) cargo build --release --locked -p smalti-node
	@SMALTI_BENCH_COPY=1 $(CARGO_TARGET_DIR)/release/smalti-bench --against $(copying)/release/smalti $(ONLY)

chaos: build ## faults and changes at random under a verified load: ROUNDS, NODES, SIZE, SMALTI_SEED
	@$(CARGO_TARGET_DIR)/release/smalti-chaos

healing: build ## rebuild and resync: how fast, and what clients notice: SECS, SIZE, ONLY
	@$(CARGO_TARGET_DIR)/release/smalti-healing

heal: build ## what is held against figures: clients' waits when nodes die, while all heals, what a join moves; a rotation of 1 GiB; then chaos
	STRICT=1 KILLS=$(HEAL_KILLS) $(CARGO_TARGET_DIR)/release/smalti-failover
	STRICT=1 $(CARGO_TARGET_DIR)/release/smalti-healing
	IMAGE_MIB=1024 cargo test --release --locked -q -p smalti-tests --test rotation -- \
	    --test-threads=1 --nocapture keys_are_rotated_under_load
	ROUNDS=6 $(CARGO_TARGET_DIR)/release/smalti-chaos

failover: build ## how long clients wait when nodes die or freeze: KILLS, ONLY
	@$(CARGO_TARGET_DIR)/release/smalti-failover $(ONLY)

sim: deps ## simulated clusters under faults: SEEDS, FROM, SIM=--beyond for more than they can bear
	cargo build --release --locked -p smalti-jepsen --bin sim
	@$(CARGO_TARGET_DIR)/release/sim --seeds $(SEEDS) --from $(FROM) $(SIM)

fmt: ## format all code
	cargo fmt --all

fix: fmt ## format and apply what clippy can repair by itself
	cargo clippy --release --workspace --all-targets --fix --allow-dirty --allow-staged
