# `make demo` and `make test` do everything on a fresh Debian machine, as root; README.md says what.
# The other targets are their parts.

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
# Where the compiled things go; named, so that the rules below find them.
export CARGO_TARGET_DIR ?= $(CURDIR)/target
# Whose outputs are installed; the fast tier takes those of cargo's debug profile, the others release.
PROFILE ?= release
BUILT = $(CARGO_TARGET_DIR)/$(PROFILE)
OUT = $(if $(filter release,$(PROFILE)),$(CARGO_TARGET_DIR),$(BUILT))
STAGE = $(OUT)/stage
LAB = $(CARGO_TARGET_DIR)/release/lab
NAME ?= main

.PHONY: demo test check lab-test table prerequisites build stage install uninstall clean
.PHONY: fmt clippy unit fuzz fuzz-short abi pages capi consumers faults no-faults powercut test-replication bench
.PHONY: lab-build lab-boot lab-run lab-shell lab-install lab-logs lab-poweroff lab-power-cut lab-destroy

## What README promises

demo: prerequisites consumers $(LAB)
	$(LAB) demo --stage $(STAGE)

test: prerequisites check fuzz-short lab-test

check: fmt clippy unit abi pages

## The fast tier

fmt:
	$(CARGO) fmt --all --check
	$(FUZZ) fmt

# Another compiler than the pinned one has other lints: there they are shown and do not fail.
PINNED = $(shell sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
DENY = $(if $(findstring $(PINNED),$(shell $(CARGO) --version)),-D warnings)

clippy:
	$(CARGO) clippy --workspace --all-targets --locked -- $(DENY)
	$(CARGO) clippy --package xl-cmd --package libxl-ext --features xl-cmd/fault-points --locked -- $(DENY)

unit:
	$(CARGO) test --workspace --locked --quiet

# Hostile input, looked for by libFuzzer: make fuzz SECONDS=600, for each target. The short run begins with
# the committed inputs alone, so that it costs the same every time.
FUZZ = $(MAKE) --no-print-directory -C tests/fuzz
SECONDS ?= 60
fuzz:
	$(FUZZ) run SECONDS=$(SECONDS)

fuzz-short:
	rm -rf $(CARGO_TARGET_DIR)/fuzz/short
	$(FUZZ) run SECONDS=5 FOUND=$(CARGO_TARGET_DIR)/fuzz/short

# The C library as others see it, without Xen: its symbols, its headers in C++, its types from C.
ABI = $(MAKE) --no-print-directory -C tests/abi
abi:
	$(MAKE) --no-print-directory PROFILE=debug stage no-faults
	$(ABI) -f consumers.mk STAGE=$(CARGO_TARGET_DIR)/debug/stage OUT=$(CARGO_TARGET_DIR)/debug/consumers
	$(ABI) gentest XL_IDL=$(CARGO_TARGET_DIR)/debug/xl-idl LIBDIR=$(CARGO_TARGET_DIR)/debug/stage/usr/local/lib \
		OUT=$(CARGO_TARGET_DIR)/debug/gentest

pages: abi
	docs/man/check.sh $(CARGO_TARGET_DIR)/debug/capi/_libxl_ext_types.h

## The lab tier

# The daemon that the steps run in dom0.
consumers: stage
	$(ABI) -f consumers.mk STAGE=$(STAGE) OUT=$(OUT)/consumers daemon

# What docs/features.md claims, this run has to show, as far as it comes: emulated CPUs differ by a factor of three, and
# no step is begun after so many minutes. Those that are left out are named. LAB_MINUTES= has no limit.
LAB_MINUTES ?= 30
LOGS = $(CARGO_TARGET_DIR)/lab-logs
lab-test: consumers faults no-faults $(LAB)
	$(LAB) test --stage $(STAGE) --logs $(LOGS) $(addprefix --minutes ,$(LAB_MINUTES))
	$(LAB) table --results $(LOGS)/results.json --out $(CARGO_TARGET_DIR)/features.md --check docs/features.md

# From the results of the last make lab-test, or of several runs: make table RESULTS='A/results.json B/results.json'.
RESULTS ?= $(LOGS)/results.json
table: $(LAB)
	$(LAB) table --results $(RESULTS)

# Power cuts at random moments: make powercut N=50 [SEED=...]
N ?= 50
powercut: stage $(LAB)
	$(LAB) power-cuts --stage $(STAGE) --cuts $(N) $(addprefix --seed ,$(SEED)) --logs $(LOGS)

# Replication between two hosts, with power cuts of the primary at random moments: make test-replication [CUTS=20] [SEED=...]
CUTS ?= 20
test-replication: prerequisites stage $(LAB)
	$(LAB) test-replication --stage $(STAGE) --rounds $(CUTS) $(addprefix --seed ,$(SEED)) --logs $(LOGS)

# Stock xl and ours side by side, and a pull beside one by hand: make bench [ROUNDS=5] [WHAT=all|saves|pulls]
ROUNDS ?= 5
WHAT ?= all
bench: stage $(LAB)
	$(LAB) bench --stage $(STAGE) --rounds $(ROUNDS) --what $(WHAT)

# The program as it is with the points at which the steps kill it. Where cargo puts it is where the one without
# them belongs, which is put back.
FAULTS = $(OUT)/consumers/xl-ext-faults
faults: stage
	$(CARGO) build --profile $(PROFILE:debug=dev) --locked --package xl-cmd --features fault-points
	install -D -m 0755 $(BUILT)/xl-ext $(FAULTS)
	$(CARGO) build --profile $(PROFILE:debug=dev) --locked --package xl-cmd
	grep -q XL_EXT_FAULT $(FAULTS)

# What is installed has none of them.
no-faults: stage
	! grep -rlF XL_EXT_FAULT $(STAGE)

## Build and install

prerequisites:
	./tests/prerequisites.sh

build:
	$(CARGO) build --profile $(PROFILE:debug=dev) --locked --package xl-cmd --package libxl-ext --package libxl-idl \
		$(if $(filter release,$(PROFILE)),--package lab)

$(LAB): build

## The C library, made of the static library that cargo builds: cargo's own shared one would have no
## version script, and its static one lets out the names of the Rust library.

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SONAME = libxlext.so.0
MAP = libxl-ext/libxlext.map
CAPI = $(BUILT)/capi
RUST_PART = $(BUILT)/liblibxl_ext.a
XL_IDL = $(BUILT)/xl-idl
XEN_LIBS = $(shell pkg-config --libs xenlight) -lxenctrl -lxentoollog
# Where a library that was linked statically looks for the agent; the shared one looks beside itself.
ifneq ($(PREFIX),/usr/local)
export LIBXL_EXT_PRIVATE_DIR := $(PREFIX)/lib/libxl-ext
endif
SYSTEM_LIBS = -lgcc_s -lpthread -lm -ldl -lc
CC ?= cc

capi: $(CAPI)/libxlext.so $(CAPI)/libxlext.a $(CAPI)/_libxl_ext_types.h

$(RUST_PART) $(XL_IDL): build ;

$(CAPI)/_libxl_ext_types.h: idl/libxl_ext_types.idl $(XL_IDL)
	mkdir -p $(CAPI)
	$(XL_IDL) c-header --include libxl.h $< -o $@

# One object in which only the API is global.
$(CAPI)/libxlext.o: $(RUST_PART) $(MAP)
	mkdir -p $(CAPI)
	nm --defined-only --extern-only --format=posix $(RUST_PART) 2>/dev/null \
		| sed -n 's/^\(libxl_\(domain_snapshot\|domain_managed\|domain_has_managed\|domain_block\|domain_get_block\|disk_snapshot\|block\|replication\|snapshot\|ext\)_[a-z0-9_]*\) .*/\1/p' | sort -u >$(CAPI)/symbols
	ld -r --gc-sections $$(sed 's/^/--undefined=/' $(CAPI)/symbols) -o $@.all $(RUST_PART)
	objcopy --keep-global-symbols=$(CAPI)/symbols --strip-debug \
		--remove-section=.llvmbc --remove-section=.llvmcmd $@.all $@
	rm $@.all

$(CAPI)/libxlext.a: $(CAPI)/libxlext.o
	rm -f $@
	ar rcs $@ $<

$(CAPI)/libxlext.so: $(CAPI)/libxlext.o $(MAP)
	$(CC) -shared -o $(CAPI)/libxlext.so.$(VERSION) $< -Wl,-soname,$(SONAME) -Wl,--version-script=$(MAP) \
		-Wl,--gc-sections -Wl,--as-needed -Wl,-z,defs -Wl,-z,now $(LDFLAGS) -Wl,-rpath,'$$ORIGIN/libxl-ext' \
		$(XEN_LIBS) $(SYSTEM_LIBS)
	ln -sf libxlext.so.$(VERSION) $(CAPI)/$(SONAME)
	ln -sf $(SONAME) $@

HERE = $(DESTDIR)$(PREFIX)
PRIVATE = $(HERE)/lib/libxl-ext
PAGES = $(wildcard docs/man/*.3)
UNITS = $(HERE)/lib/systemd/system

# The programs open libxenctrl.so by that name, which only development packages have: the link in the
# private directory gives them the library that the build was made against.
install: build capi
	install -D -m 0755 $(BUILT)/xl-ext $(HERE)/sbin/xl-ext
	install -D -m 0755 $(BUILT)/libxl-ext-agent $(PRIVATE)/libxl-ext-agent
	ln -sfn "$$(readlink -f "$$(pkg-config --variable=libdir xenlight)/libxenctrl.so" | sed 's/\(\.so\.[0-9]*\.[0-9]*\).*/\1/')" \
		$(PRIVATE)/libxenctrl.so
	install -m 0755 $(CAPI)/libxlext.so.$(VERSION) $(HERE)/lib/
	ln -sf libxlext.so.$(VERSION) $(HERE)/lib/$(SONAME)
	ln -sf $(SONAME) $(HERE)/lib/libxlext.so
	install -m 0644 $(CAPI)/libxlext.a $(HERE)/lib/
	install -d -m 0755 $(HERE)/include $(HERE)/lib/pkgconfig $(HERE)/share/man/man3
	install -m 0644 libxl-ext/include/libxl_ext.h $(CAPI)/_libxl_ext_types.h $(HERE)/include/
	sed -e 's|@PREFIX@|$(PREFIX)|; s|@VERSION@|$(VERSION)|' libxl-ext/xenlight-ext.pc.in \
		>$(HERE)/lib/pkgconfig/xenlight-ext.pc
	install -m 0644 $(PAGES) $(HERE)/share/man/man3/
	install -D -m 0644 docs/man/xl-ext.8 $(HERE)/share/man/man8/xl-ext.8
	install -d -m 0755 $(UNITS)/xendomains.service.d $(UNITS)/session-.scope.d $(HERE)/share/libxl-ext
	for unit in replication restore save; do \
		sed 's|@PREFIX@|$(PREFIX)|' xl-cmd/host/xl-ext-$$unit.service.in >$(UNITS)/xl-ext-$$unit.service || exit 1; \
	done
	install -m 0644 xl-cmd/host/xendomains.conf $(UNITS)/xendomains.service.d/xl-ext.conf
	install -m 0644 xl-cmd/host/session.conf $(UNITS)/session-.scope.d/xl-ext.conf
	sed 's|@PREFIX@|$(PREFIX)|' xl-cmd/host/xl-ext-domains.init.in >$(HERE)/share/libxl-ext/xl-ext-domains.init
	install -m 0644 xl-cmd/host/xl-ext.default $(HERE)/share/libxl-ext/xl-ext.default
	[ -e $(DESTDIR)/etc/default/xl-ext ] || install -D -m 0644 xl-cmd/host/xl-ext.default $(DESTDIR)/etc/default/xl-ext

# /etc/default/xl-ext stays, if anything in it was changed.
uninstall:
	if cmp -s $(HERE)/share/libxl-ext/xl-ext.default $(DESTDIR)/etc/default/xl-ext; then rm $(DESTDIR)/etc/default/xl-ext; fi
	rm -f $(UNITS)/xl-ext-replication.service $(UNITS)/xl-ext-restore.service $(UNITS)/xl-ext-save.service $(UNITS)/xendomains.service.d/xl-ext.conf \
		$(UNITS)/session-.scope.d/xl-ext.conf $(HERE)/share/libxl-ext/xl-ext-domains.init \
		$(HERE)/share/libxl-ext/xl-ext.default
	rm -f $(HERE)/sbin/xl-ext $(HERE)/share/man/man8/xl-ext.8 $(PRIVATE)/libxl-ext-agent $(PRIVATE)/libxenctrl.so \
		$(HERE)/lib/libxlext.so $(HERE)/lib/$(SONAME) $(HERE)/lib/libxlext.so.$(VERSION) $(HERE)/lib/libxlext.a \
		$(HERE)/include/libxl_ext.h $(HERE)/include/_libxl_ext_types.h $(HERE)/lib/pkgconfig/xenlight-ext.pc \
		$(PAGES:docs/man/%=$(HERE)/share/man/man3/%)
	rmdir $(PRIVATE)

stage: build
	rm -rf $(STAGE)
	$(MAKE) --no-print-directory install DESTDIR=$(STAGE) PREFIX=/usr/local

clean:
	$(CARGO) clean

## A lab by hand: make lab-boot, then make lab-run CMD='xl list', ... NAME= names another one

lab-build: $(LAB)
	$(LAB) build

lab-boot: $(LAB)
	$(LAB) boot --name $(NAME)

lab-run: $(LAB)
	$(LAB) run --name $(NAME) -- "$(CMD)"

lab-shell: $(LAB)
	$(LAB) shell --name $(NAME)

lab-install: stage $(LAB)
	$(LAB) install --name $(NAME) $(STAGE)

lab-logs: $(LAB)
	$(LAB) logs --name $(NAME) --out $(CARGO_TARGET_DIR)/lab-logs/by-hand

lab-poweroff: $(LAB)
	$(LAB) poweroff --name $(NAME)

lab-power-cut: $(LAB)
	$(LAB) power-cut --name $(NAME)

lab-destroy: $(LAB)
	$(LAB) destroy --name $(NAME)
