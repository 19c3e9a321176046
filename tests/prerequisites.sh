#!/bin/sh
# Installs what building and testing need on Debian, as root. Does nothing where all of it is there.
set -eu

packages='
gcc g++ libc6-dev make pkg-config valgrind
libxen-dev libclang-dev
qemu-utils
dpkg-dev python3
groff-base
mmdebstrap qemu-system-x86 e2fsprogs cpio xz-utils openssh-client
'

missing() {
	for package in $packages; do
		status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
		[ "$status" = installed ] || printf ' %s' "$package"
	done
	has_rust || printf ' %s' rustc-web cargo-web rustfmt-web rust-web-clippy
}

# Any compiler from the workspace's rust-version on will do; rustup's comes with everything.
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
has_rust() {
	version=$(cargo --version 2>/dev/null | sed -n 's/^cargo \([0-9.]*\).*/\1/p')
	[ -n "$version" ] && printf '%s\n%s\n' "$wanted" "$version" | sort -V -C
}

export DEBIAN_FRONTEND=noninteractive
# apt removes a package of another release, such as backports' qemu-utils, that stands in the way of one that
# is asked for; the second round brings back this release's.
for round in first second; do
	absent=$(missing)
	[ -z "$absent" ] && exit 0
	echo "installing ($round round):$absent"
	[ "$round" = second ] || apt-get update -qq
	# shellcheck disable=SC2086 # the list is made of words
	apt-get install -y -qq --no-install-recommends $absent
done
absent=$(missing)
[ -z "$absent" ] || {
	echo "still missing, although apt-get installed it:$absent" >&2
	exit 1
}
