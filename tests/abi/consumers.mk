# Programs that use libxl-ext as others will: through what `make install DESTDIR=$(STAGE)` has installed.
#
#   make -C tests/abi -f consumers.mk STAGE=/absolute/stage OUT=/absolute/out [target]
#
# symbols      the library has the symbols that the headers declare, in the right version, and no others
# include      a C++ program that includes the headers builds and runs, without Xen
# static       the same with the static library
# replication  operations of replication in C, and what each call answers, without Xen; also under valgrind
# daemon       builds the daemon that the lab runs in dom0

ifeq ($(and $(STAGE),$(OUT)),)
$(error say where things are: STAGE=, what was installed, and OUT=, where what is built here goes)
endif

PREFIX ?= /usr/local
CC ?= cc
CXX ?= c++
CFLAGS ?= -O2 -g
CXXFLAGS ?= -O2 -g
STRICT = -Wall -Wextra -Werror

lib = $(STAGE)$(PREFIX)/lib
library = $(lib)/libxlext.so.0
include = $(STAGE)$(PREFIX)/include
headers = $(include)/libxl_ext.h $(include)/_libxl_ext_types.h

# The prefix in the file is the one in the end; here the stage's stands for it.
pkg-config = PKG_CONFIG_PATH=$(lib)/pkgconfig pkg-config --define-prefix

.PHONY: all symbols include static replication daemon
all: symbols include static replication daemon

symbols: $(library) $(headers)
	./symbols check $(library) $(include)

include: $(OUT)/include
	LD_LIBRARY_PATH=$(lib) $<

static: $(OUT)/include-static
	$<

# What is still reachable at the end is that of the libraries themselves.
replication: $(OUT)/replication
	LD_LIBRARY_PATH=$(lib) $<
	LD_LIBRARY_PATH=$(lib) valgrind --quiet --error-exitcode=9 --leak-check=full \
		--errors-for-leak-kinds=definite,possible $<

daemon: $(OUT)/daemon

$(OUT):
	mkdir -p $@

$(OUT)/include: include.cc $(headers) $(library) | $(OUT)
	$(CXX) -std=c++11 -pedantic $(CXXFLAGS) $(STRICT) -o $@ $< \
		$$($(pkg-config) --cflags --libs xenlight-ext xenlight)

$(OUT)/include-static: include.cc $(headers) $(lib)/libxlext.a | $(OUT)
	$(CXX) -std=c++11 -pedantic $(CXXFLAGS) $(STRICT) -o $@ $< \
		$$($(pkg-config) --static --cflags --libs xenlight-ext | sed 's/-lxlext/-l:libxlext.a/')

# GNU's C, since xenctrl.h takes no other.
$(OUT)/replication: replication.c ctx.c $(headers) $(library) | $(OUT)
	$(CC) -std=gnu11 -pthread $(CFLAGS) $(STRICT) -o $@ replication.c ctx.c \
		$$($(pkg-config) --cflags --libs xenlight-ext xenlight xentoollog)

# The library is found where it will be installed, by the dynamic linker's own means.
daemon_parts = daemon.c logger.c main.c managed.c processes.c pull.c scenarios.c
$(OUT)/daemon: $(daemon_parts) daemon.h $(headers) $(library) | $(OUT)
	$(CC) -std=c11 -D_GNU_SOURCE -pthread $(CFLAGS) $(STRICT) -o $@ $(daemon_parts) \
		$$($(pkg-config) --cflags --libs xenlight-ext xenlight xentoollog)
