# thinmap: everything a newcomer needs is `make demo` and `make test`.
SHELL := /bin/bash
CARGO ?= cargo

.PHONY: all build demo demo-docker test check soak fuzz deny bench clean deps-demo deps-clients deps-test deps-bench

all: build

build:
	$(CARGO) build --release --locked

# The article's session on sparse files, explained step by step. Cleans up after itself.
demo: deps-demo build
	@scripts/demo.sh

# Debian's dockerd with its devicemapper driver, then containerd, on thinmap. As root; leaves nothing behind.
demo-docker: deps-clients build
	@scripts/demo-docker.sh

# Everything: style, units, models, crashes, faults, exports, and the same checks against a real kernel.
test: deps-test build
	@scripts/test.sh

# What needs no packages and no root: for the inner loop.
check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

# Long runs; SEEDS=N for more.
soak: deps-test build
	@scripts/soak.sh $(SEEDS)

# Every fuzz target for a while: TARGET=name, SECONDS=n of each (300). Nightly Rust and cargo-fuzz; see docs/internals/fuzzing.md.
fuzz:
	@scripts/fuzz.sh $(or $(TARGET),all) $(or $(SECONDS),300)

# Licences, sources, doubles and known holes of what is built upon. Needs cargo-deny and, for the holes, the network.
deny:
	cargo deny --locked check

# thinmap beside its peers: table, data and pictures in target/bench. ROW=part-of-a-name or pattern, QUICK=1, REPEATS=n, BACKING=/dir, OUT=/dir;
# see docs/performance.md. As root. Debian's Python: it has matplotlib and libnbd.
bench: deps-bench build
	@/usr/bin/python3 benches/bench.py $(if $(ROW),--row '$(ROW)') $(if $(QUICK),--quick) $(if $(REPEATS),--repeats $(REPEATS)) \
	    $(if $(BACKING),--backing '$(BACKING)') $(if $(OUT),--out '$(OUT)')

deps-demo:
	@scripts/install-packages.sh demo

deps-clients:
	@scripts/install-packages.sh clients

deps-test:
	@scripts/install-packages.sh test

deps-bench:
	@scripts/install-packages.sh bench

clean:
	$(CARGO) clean
