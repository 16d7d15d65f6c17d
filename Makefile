# Granary's make targets; `make` alone lists them.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
TAGS    := grpcnotrace
LDFLAGS := -s -w -X main.version=$(VERSION)
GOFILES := $(shell find . -name '*.go' -not -path './.git/*' 2>/dev/null)

# The race detector needs cgo and a C compiler; `make setup` installs one.
# TEST_RACE= runs without it.
TEST_RACE ?= -race
# Narrow a test run: make test-unit PKG=./pkg/dedup/... RUN=Seal
PKG ?= ./cmd/... ./pkg/... ./test/rig/... ./test/sabotage/... ./test/style/...
RUN ?= .

##@ The two commands

.PHONY: demo
demo: setup build ## run the main job on real data over the CSI socket and check it (under two minutes)
	$(GO) build -tags $(TAGS) -trimpath -buildvcs=false -o bin/granary-demo ./test/demo
	bin/granary-demo -granary bin/granary

.PHONY: test
test: setup test-unit sim exhaustive test-device sanity test-deploy ## run all tests: unit, simulation, real devices, CSI and manifests

##@ Parts of them

.PHONY: test-unit
test-unit: ## unit and model tests alone (needs no root)
	CGO_ENABLED=$(if $(TEST_RACE),1,0) $(GO) test $(TEST_RACE) -tags $(TAGS) -timeout 20m -run '$(RUN)' $(PKG)

# Seeds of the simulation; `make test` runs the first thousand. SIMFLAGS: -sim.trace
# prints a seed's every operation, -sim.twice 1 runs every seed twice and compares digests.
SEEDS      ?= 1000
FIRST_SEED ?= 1
SIMFLAGS   ?=

.PHONY: sim
sim: ## simulate SEEDS seeds from FIRST_SEED on: the engine on a disk that crashes, against a model
	@mkdir -p bin
	@CGO_ENABLED=0 $(GO) test -tags $(TAGS) -c -o bin/sim.test ./pkg/blockstore
	@cd bin && ./sim.test -test.timeout 0 -test.run '^TestSimulation$$' -sim.seeds $(SEEDS) -sim.first $(FIRST_SEED) $(SIMFLAGS) | grep -vx 'PASS\|FAIL'

.PHONY: rot
rot: ## flip every byte, cut to every length and zero every sector of a small store (an hour or more)
	CGO_ENABLED=0 $(GO) test -tags $(TAGS) -count=1 -v -timeout 0 -run '^TestRot$$' ./pkg/blockstore -rot.all

.PHONY: exhaustive
exhaustive: ## crash at and fail every file operation, of recoveries and of a repair too; interleave; rot; count costs (STATES of the disk)
	CGO_ENABLED=0 $(GO) test -tags $(TAGS) -count=1 -v -timeout 0 -run '^Test(Every(Crash|Fault|Recovery|Site|Interleaving)|RepairEveryCrash|RepairEveryFault|RepairChunkFiles|SectorMasks|CheckFindsEveryByte|Rot|CostsDoNotGrow)$$' ./pkg/blockstore \
		$(if $(STATES),-every.ops 150 -every.states $(STATES) -every.recovery 20 -every.eintr -interleave.runs 7000) $(if $(EVERY_SEED),-every.seed $(EVERY_SEED)) | grep -v '^=== '

.PHONY: sim-csi
sim-csi: ## simulate CSI calls for SEEDS seeds: the driver on that engine, dying in the middle of calls
	@mkdir -p bin
	@CGO_ENABLED=0 $(GO) test -tags $(TAGS) -c -o bin/sim.test ./pkg/blockstore
	@cd bin && ./sim.test -test.timeout 0 -test.run '^TestSimulationCSI$$' -simcsi.seeds $(SEEDS) -simcsi.first $(FIRST_SEED) $(SIMFLAGS) | grep -vx 'PASS\|FAIL'

.PHONY: test-device
test-device: ## tests on real block devices and file systems alone (root, /dev/fuse)
	GRANARY_DEVICE_TESTS=require GRANARY_DEVICE_RACE=$(if $(TEST_RACE),1,0) \
		$(GO) test -tags $(TAGS) -count=1 -timeout 25m -run '$(RUN)' ./test/device

.PHONY: sanity
sanity: setup ## csi-sanity and what it does not look at, the content, against the real driver (root, /dev/fuse)
	cd test/sanity && GRANARY_DEVICE_TESTS=require GRANARY_DEVICE_RACE=$(if $(TEST_RACE),1,0) \
		$(GO) test -v -tags $(TAGS) -count=1 -timeout 25m -run '$(RUN)' . | grep -v '^=== '

.PHONY: test-deploy
test-deploy: ## check the manifests against Kubernetes' schemas and the driver (needs no root)
	cd test/deploy && $(GO) test -count=1 -run '$(RUN)' .

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (1m), one after the other; FUZZ=name for some
	@GO='$(GO)' TAGS='$(TAGS)' FUZZTIME='$(FUZZTIME)' FUZZ='$(FUZZ)' hack/fuzz.sh

# What keeps data; the simulated file system in pkg/vfs is a tool of tests.
DURABLE := pkg/wal pkg/blob pkg/vfs pkg/catalog pkg/dedup pkg/blockstore pkg/blockstore/journal pkg/blockstore/blockmap
comma   := ,
empty   :=

.PHONY: cover
cover: ## lines of the durable packages that unit tests run, and error returns that none does (four minutes)
	mkdir -p bin
	CGO_ENABLED=0 $(GO) test -tags $(TAGS) -timeout 20m -coverprofile=bin/cover.out \
		-coverpkg=$(subst $(empty) $(empty),$(comma),$(addprefix ./,$(DURABLE))) $(addprefix ./,$(DURABLE))
	$(GO) run ./test/cover -profile bin/cover.out -skip pkg/vfs/mem$(comma)pkg/vfs/faulty $(DURABLE)

.PHONY: setup
setup: ## install the Debian packages that are missing; say what else is
	@hack/setup.sh

.PHONY: sabotage
sabotage: ## take each safeguard away in a copy of the tree; tests must notice every one
	$(GO) run -tags $(TAGS) ./test/sabotage

.PHONY: torture
torture: setup build ## kill -9 the daemon under verified load on raw, ext4 and xfs (ROUNDS=200 SEED=n)
	CGO_ENABLED=0 $(GO) build -tags $(TAGS) -trimpath -buildvcs=false -o bin/granary-torture ./test/torture
	bin/granary-torture -granary bin/granary -rounds $(or $(ROUNDS),200) $(if $(SEED),-seed $(SEED))

.PHONY: powercut
powercut: setup ## cut the power below ext4 and xfs at every flush and between (POINTS=1000 SEED=n)
	CGO_ENABLED=0 $(GO) build -tags $(TAGS) -trimpath -buildvcs=false -o bin/granary-powercut ./test/powercut
	bin/granary-powercut -points $(or $(POINTS),1000) $(if $(SEED),-seed $(SEED))

##@ Building

.PHONY: build
build: ## build the static binary bin/granary
	CGO_ENABLED=0 $(GO) build -tags $(TAGS) -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/granary ./cmd/granary

.PHONY: fmt
fmt: ## format the Go files
	gofmt -w $(GOFILES)

.PHONY: lint
lint: ## check formatting, go vet, package docs and import layers
	@out=$$(gofmt -l $(GOFILES)); if [ -n "$$out" ]; then echo "not formatted (make fmt):"; echo "$$out"; exit 1; fi
	for module in . test/sanity test/deploy; do (cd $$module && $(GO) vet -tags $(TAGS) ./...); done
	$(GO) test -count=1 ./test/style

.PHONY: clean
clean: ## remove what was built
	rm -rf bin

##@ Measuring

.PHONY: bench
bench: setup build ## compare the attached device with a plain loop device, by fio (under five minutes)
	$(GO) build -tags $(TAGS) -trimpath -buildvcs=false -o bin/granary-bench ./test/bench
	bin/granary-bench -granary bin/granary -out bin/bench.json

.PHONY: scale
scale: ## measure 10,000 volumes, 100,000 snapshots, marking, small folds, replay; fail over the limits
	CGO_ENABLED=0 $(GO) build -tags $(TAGS) -trimpath -buildvcs=false -o bin/granary-scale ./test/scale
	bin/granary-scale

##@ Help

.PHONY: help
help: ## print this list
	@awk 'BEGIN {FS = ":.*## "} \
		/^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
