# Weft. `make run` serves a volume, `make test` proves the tree. Everything else is for developers.

GO      ?= go
BIN     := weft
TOOLS   := -modfile=testing/tools/go.mod
PKGS    := ./...
TESTRUN := $(GO) run ./testing/testrun

.DEFAULT_GOAL := build
.PHONY: build run test check fmt lint wire api crash model fuzz bench bench-fill bench-recover bench-move bench-log iscsi-cu e2e guest clean

build: ## the binary
	CGO_ENABLED=0 $(GO) build -o $(BIN) ./cmd/weft

run: build ## serve a demonstration volume and say how to attach it
	@.ci/deps
	./$(BIN) demo

test: ## every test, with the race detector; then the crash enumeration in full, without
	@.ci/deps
	$(TESTRUN) -race -count=1 -p 3 -timeout 20m $(PKGS)
	$(TESTRUN) -count=1 -timeout 20m ./dataplane/...

check: ## what must be green before a commit
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet $(PKGS)
	$(GO) test -count=1 ./testing/archtest
	$(GO) tool $(TOOLS) wire diff ./cmd/weft
	CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/weft
	$(GO) test -short -timeout 10m $(PKGS)

fmt: ## the house's formatting
	$(GO) tool $(TOOLS) gofumpt -extra -w $$(git ls-files '*.go' | grep -v wire_gen)

lint: ## all linters; the first run builds them, for minutes
	$(GO) tool $(TOOLS) golangci-lint run $(PKGS)

wire: ## the wiring, after a provider changed
	$(GO) tool $(TOOLS) wire ./cmd/weft

# It runs rounds of the crash tests, each by seeds of its own, on all processors, and tells how far
# it is. A test that fails says which round; to run that one alone:
# make crash TESTS='^TestJournalCrash$$' ROUND=17
crash: ## a long crash enumeration, so many images over all tests: make crash IMAGES=1000000
	$(GO) -C dataplane/engine test -count=1 -timeout 0 -run '$(or $(TESTS),Crash)' \
		-args $(if $(ROUND),-crash.round $(ROUND),-crash.images $(or $(IMAGES),1000000))

# A seed that fails alone: -args -fleets 1 -fleet.first SEED, or -models 1 -model.first SEED.
model: ## long random runs, seed by seed: make model FLEETS=5000 MODELS=300
	$(GO) -C dataplane/engine test -count=1 -v -timeout 0 -run '^Test(C10Fleet|Model|JournalModel)$$' \
		-args -fleets $(or $(FLEETS),5000) -models $(or $(MODELS),300)

fuzz: ## every fuzz target for a while: make fuzz TIME=1m
	.ci/fuzz $(or $(TIME),30s)

iscsi-cu: ## libiscsi's suite against the target, test by test
	@.ci/deps
	$(GO) test -count=1 -v -timeout 30m ./testing/iscsicu

e2e: build ## real initiators, and SIGKILL under load: a node ten times, the leader of three twenty
	@.ci/deps
	$(GO) test -count=1 -v -timeout 60m ./testing/endtoend -args -full
	$(GO) test -count=1 -v -timeout 20m -run KillTheLeader ./eventstore/quorum -args -full
	$(GO) test -count=1 -v -timeout 20m -run KillTheLeader ./cmd/weft -args -full

guest: build ## the initiators of a Linux kernel in a VM, made of Debian packages the first time
	@.ci/deps guest
	$(GO) run ./testing/guest $(ARGS)

bench: build ## all tables, for an hour; with ARGS that against raw fio, qemu-nbd and tgt alone
	@.ci/deps bench
	$(GO) run ./testing/bench $(ARGS)
ifeq ($(ARGS),)
	$(MAKE) bench-fill bench-recover bench-move bench-log
endif

bench-fill: ## what cleaning costs: random writes on devices that are 20 to 95 % full
	$(GO) run ./testing/bench fill $(ARGS)

bench-recover: ## what a start behind a crash costs: 8 GiB of log that no checkpoint has taken up
	$(GO) run ./testing/bench recover $(ARGS)

bench-move: ## what it costs that a volume goes to another device: rate, and the longest write meanwhile
	$(GO) run ./testing/bench move $(ARGS)

bench-log: build ## the event log against raw write+fdatasync: appends, outages, growth, replay, memory, damage
	$(GO) run ./testing/bench log -weft ./$(BIN) $(ARGS)
	$(GO) test -run '^$$' -bench CorruptAlarm -benchtime 3x ./eventstore/quorum

clean:
	rm -rf $(BIN) .bin
