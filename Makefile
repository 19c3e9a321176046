# `make demo` and `make test` do everything on a fresh Debian machine, as root; README.md says what.
# The other targets are their parts.

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
# Where the compiled things go; named, so that the rules below find them.
export CARGO_TARGET_DIR ?= $(CURDIR)/target
STAGE = $(CARGO_TARGET_DIR)/stage
RELEASE = $(CARGO_TARGET_DIR)/release
LAB = $(RELEASE)/lab
NAME ?= main

.PHONY: demo test check lab-test prerequisites build stage install uninstall clean
.PHONY: fmt clippy unit
.PHONY: lab-build lab-boot lab-run lab-shell lab-install lab-logs lab-poweroff lab-power-cut lab-destroy

## What README promises

demo: prerequisites stage $(LAB)
	$(LAB) demo --stage $(STAGE)

test: prerequisites check lab-test

check: fmt clippy unit

## The fast tier

fmt:
	$(CARGO) fmt --all --check

# Another compiler than the pinned one has other lints: there they are shown and do not fail.
PINNED = $(shell sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
DENY = $(if $(findstring $(PINNED),$(shell $(CARGO) --version)),-D warnings)

clippy:
	$(CARGO) clippy --workspace --all-targets --locked -- $(DENY)

unit:
	$(CARGO) test --workspace --locked --quiet

## The lab tier

lab-test: stage $(LAB)
	$(LAB) test --stage $(STAGE) --logs $(CARGO_TARGET_DIR)/lab-logs

## Build and install

prerequisites:
	./tests/prerequisites.sh

build:
	$(CARGO) build --release --locked --package xl-cmd --package lab

$(LAB): build

# The program opens libxenctrl.so by that name, which only development packages have: the link in the
# private directory gives it the library that the build was made against.
install: build
	install -D -m 0755 $(RELEASE)/xl-ext $(DESTDIR)$(PREFIX)/sbin/xl-ext
	install -d -m 0755 $(DESTDIR)$(PREFIX)/lib/libxl-ext
	ln -sfn "$$(readlink -f "$$(pkg-config --variable=libdir xenlight)/libxenctrl.so" | sed 's/\(\.so\.[0-9]*\.[0-9]*\).*/\1/')" \
		$(DESTDIR)$(PREFIX)/lib/libxl-ext/libxenctrl.so
	install -D -m 0644 docs/man/xl-ext.8 $(DESTDIR)$(PREFIX)/share/man/man8/xl-ext.8

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/sbin/xl-ext $(DESTDIR)$(PREFIX)/lib/libxl-ext/libxenctrl.so \
		$(DESTDIR)$(PREFIX)/share/man/man8/xl-ext.8
	rmdir $(DESTDIR)$(PREFIX)/lib/libxl-ext

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
