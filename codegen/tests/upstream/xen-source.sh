#!/bin/sh
# Prints the directory of the source of Debian's xen package, which is downloaded once into the cache.
#
# The package sources come from the machine's own apt configuration: its Debian file, with source
# packages in place of binary ones.
set -eu

cache=${XDG_CACHE_HOME:-$HOME/.cache}/libxl-ext
for present in "$cache"/xen-source-*/complete; do
    if [ -e "$present" ]; then
        dirname "$present"
        exit 0
    fi
done

command -v dpkg-source >/dev/null || { echo "dpkg-source is not installed" >&2; exit 1; }
mkdir -p "$cache"
work=$(mktemp -d "$cache/download.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial"

if [ -e /etc/apt/sources.list.d/debian.sources ]; then
    list=$work/debian.sources
    sed 's/^Types: deb$/Types: deb-src/' /etc/apt/sources.list.d/debian.sources >"$list"
else
    list=$work/debian.list
    sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >"$list"
fi
options="-q -o Dir::Etc::sourcelist=$list -o Dir::Etc::sourceparts=- -o Dir::State::lists=$work/lists
    -o Dir::Cache=$work -o APT::Sandbox::User=root"
cd "$work"
# shellcheck disable=SC2086 # the options are several words
apt-get $options update >&2
# A mirror may list a version whose files it does not have, so the next older one is tried.
# shellcheck disable=SC2086
versions=$(apt-cache $options showsrc xen | sed -n 's/^Version: //p' | sort -Vru)
for version in $versions; do
    # shellcheck disable=SC2086
    if apt-get $options source --download-only "xen=$version" >&2; then
        break
    fi
done
dpkg-source --no-check -x ./*.dsc tree >&2
version=$(dpkg-parsechangelog -l tree/debian/changelog -S Version)
touch tree/complete
rm -rf "$cache/xen-source-$version"
mv tree "$cache/xen-source-$version"
echo "$cache/xen-source-$version"
