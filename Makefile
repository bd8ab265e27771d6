# The two commands of the README, and the gate.

CARGO ?= cargo
KILLS ?= 20
SEED ?= 1

# RocksDB's C++ takes minutes to compile: with CI set it is kept outside the clone.
ifdef CI
export CARGO_TARGET_DIR ?= $(HOME)/.cache/stead/target
endif

.PHONY: setup binary build serve cluster test check features bench sabotage permits nightly

setup:
	@bash examples/setup.sh

# The server alone: most of the first build, a quarter of an hour on two cores, is RocksDB.
binary: setup
	$(CARGO) build --release --locked -p stead --features server --bin stead

build: setup
	$(CARGO) build --release --locked --workspace --bins

serve: binary
	$${CARGO_TARGET_DIR:-target}/release/stead serve --data ./data --listen 127.0.0.1:8080

# Three nodes that share a private PostgreSQL, until they are stopped.
cluster: binary
	@bash tests/setup.sh
	@bash examples/cluster.sh $${CARGO_TARGET_DIR:-target}/release/stead

# PostgreSQL too, where it can be installed; the tests start private servers of their own.
test: build
	@bash tests/setup.sh
	@bash tests/durable/setup.sh
	$(CARGO) test --release --locked --workspace

check: setup features
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --release --locked -p stead --features sabotage -- -D warnings
	$(CARGO) clippy --release --locked -p stead-entities --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --no-deps -p stead-entities -p stead-macros -p stead --features stead/server,stead/testing
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny@0.20.2
	$(CARGO) deny --log-level error check licenses bans sources
	@if $(CARGO) deny --log-level off fetch db; then $(CARGO) deny --log-level error check advisories; \
	else echo "left out: advisories, because their database cannot be reached"; fi

# The stated rust-version, and each feature by itself.
RUST_VERSION := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
FEATURES := none client http postgres peers testing rocksdb
features: setup
	@set -e; for feature in $(FEATURES); do \
		echo "with feature: $$feature"; \
		$(CARGO) clippy --release --locked -p stead --no-default-features --features "$${feature#none}" -- -D warnings; \
	done
	@# The kit for tests of entities needs no RocksDB.
	$(CARGO) test --release --locked -p stead --no-default-features --features testing --doc testing
	@# Without RocksDB, whose C++ each toolchain would compile again.
	@if rustup toolchain install $(RUST_VERSION) --profile minimal >/dev/null 2>&1; then \
		$(CARGO) +$(RUST_VERSION) check --release --locked -p stead --no-default-features --features client,postgres,peers,testing; \
	else echo "left out: Rust $(RUST_VERSION), because it cannot be installed"; fi

# Each figure beside its ceiling, in one run; BENCH="--only hot" for some of them.
bench: build
	$${CARGO_TARGET_DIR:-target}/release/bench $(BENCH)

# Breaks one protection after the other; each must turn a test red.
sabotage: setup
	bash tests/sabotage.sh

permits: build
	$${CARGO_TARGET_DIR:-target}/release/permits drive --kills $(KILLS) --seed $(SEED)
	$${CARGO_TARGET_DIR:-target}/release/permits drive --kills $(KILLS) --seed $(SEED) --form workflows

# Seeds that the gate has no time for: programs of workflows, then, from SEED thousand on, clusters in one process and real
# nodes. What passed is listed in tests/seeds.md.
nightly: build
	@bash tests/setup.sh
	STEAD_SEEDS=200000 $(CARGO) test --release --locked -p stead-entities --test workflows random
	STEAD_SEEDS=$(SEED)000..$(SEED)400 $(CARGO) test --release --locked -p stead-tests --bins --test simulation
	STEAD_SEEDS=$(SEED)000..$(SEED)060 $(CARGO) test --release --locked -p stead-tests --bins --test cluster nothing_is_lost
	STEAD_SEEDS=$(SEED)000..$(SEED)020 $(CARGO) test --release --locked -p stead-tests --bins --test cluster workflows_come
