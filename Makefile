# Quorate. `make demo` and `make test` do all of their own set-up and say what they do.

CARGO ?= cargo
RELEASE := $(or $(CARGO_TARGET_DIR),target)/release

.PHONY: build demo campaign campaign-full test check bench kills faults long-replay images svm test-svm fuzz clean setup

build: setup
	$(CARGO) build --release --locked --workspace
	campaigns/compute/build

setup:
	@scripts/setup

images: build
	for file in images/appliances/*.toml; do $(RELEASE)/quorate build "$$file" || exit 1; done

demo: build
	scripts/demo

# A look at a campaign: 200 faults in Redis, each alone and with three replicas; the report is target/campaign-redis/report.html.
campaign: build
	scripts/setup clients
	$(RELEASE)/clients
	$(RELEASE)/quorate campaign campaigns/redis.toml --trials 200 --resume --out target/campaign-redis

# 10,000 faults in Redis, each alone and with three replicas: see docs/numbers.md.
campaign-full: build
	scripts/setup clients
	QUORATE_TEST_DRAWS=10000 $(CARGO) test --release --locked -p quorate-tests --test campaign three_replicas -- --nocapture

check: setup
	scripts/check

test: build
	scripts/setup clients
	$(RELEASE)/clients
	LANE=$(LANE) scripts/test

bench: build
	$(RELEASE)/bench

# The executor killed 300 times with three replicas and 300 times with one: see docs/numbers.md.
kills: build
	QUORATE_TEST_KILLS=300 $(CARGO) test --release --locked -p quorate-tests --test disks_kill -- --test-threads=1 --nocapture

# Five million requests recorded, and replayed in two layouts: see docs/recording.md.
long-replay: build
	$(CARGO) test --release --locked -p quorate-tests --test recording -- --ignored --nocapture five_million

# 100 faults one after another in Redis under checked load, and 100 with an append-only file: see docs/numbers.md.
faults: build
	QUORATE_TEST_FAULTS=100 $(CARGO) test --release --locked -p quorate-tests --test recovery -- --test-threads=1 --nocapture

fuzz: setup
	scripts/fuzz

# A command of this machine on a real kvm-amd in QEMU's emulator: make svm CMD="target/release/quorate doctor"; a shell without
# CMD. SVM_SECONDS, SVM_MEMORY, SVM_CPUS, OUT=DIR (what stays of its writes): see docs/lanes.md.
svm: export CMD := $(value CMD)
svm:
	@scripts/lane/start

# The lockstep suite of the embedded guest on a real kvm-amd in QEMU's emulator, the long ones shortened (scripts/lane/suites); QUICK=1
# is the short form, SUITES="faults gdb" are those.
test-svm: build
	scripts/setup clients
	scripts/lane/provide
	scripts/test-svm $(if $(SUITES),$(SUITES),$(if $(QUICK),quick,full))

clean:
	rm -rf target guest-kernel/target images/cache
