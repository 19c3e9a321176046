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

missing=
for package in $packages; do
	status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
	[ "$status" = installed ] || missing="$missing $package"
done

# Any compiler from the workspace's rust-version on will do; rustup's comes with everything.
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
has_rust() {
	version=$(cargo --version 2>/dev/null | sed -n 's/^cargo \([0-9.]*\).*/\1/p')
	[ -n "$version" ] && printf '%s\n%s\n' "$wanted" "$version" | sort -V -C
}
has_rust || missing="$missing rustc-web cargo-web rustfmt-web rust-web-clippy"

[ -z "$missing" ] && exit 0
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # the list is made of words
apt-get install -y -qq --no-install-recommends $missing
has_rust || {
	echo "no Rust compiler from $wanted on: install one by rustup" >&2
	exit 1
}
