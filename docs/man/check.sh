#!/bin/sh
# Checks the manual pages: no complaint of groff's, and a page for every function of the C headers.
#
#   docs/man/check.sh [_libxl_ext_types.h]
#
# libxl_ext.h is always compared. With the header that xl-idl generates, libxl_ext_types.3 is too.
# Needs groff (package groff-base); without it, it fails.
set -eu
LC_ALL=C
export LC_ALL

pages=$(dirname "$0")
header=$pages/../../libxl-ext/include/libxl_ext.h
failed=0

complain() {
	echo "docs/man: $*" >&2
	failed=1
}

if ! command -v groff >/dev/null; then
	complain "groff is missing (package groff-base): the manual pages were not checked"
	exit 1
fi

# The declarations of functions and tables of names in a header, one a line, without comments.
declarations() {
	grep -v '^#' "$1" | tr -s '[:space:]' ' ' |
		sed -e 's@/\*[^*]*\*\**\([^/*][^*]*\*\**\)*/@@g' -e 's/[;{}]/\
/g' |
		sed -n -e 's/^ *//' -e '/libxl_[a-z_]*(/p' -e '/libxl_[a-z_]*\[\]$/p'
}

# A page as text, on one line.
text() {
	groff -man -Tascii -P-cbou "$1" 2>/dev/null | tr -s '[:space:]' ' '
}

# Whether the text on one line contains a declaration as it stands.
says() {
	case $1 in
	*"$2"*) return 0 ;;
	*) return 1 ;;
	esac
}

# Lists are split at line ends only, and the stars in declarations are no patterns.
newline='
'
IFS=$newline

for page in "$pages"/*.[0-9]; do
	name=${page##*/}
	if target=$(sed -n 's/^\.so //p' "$page") && [ -n "$target" ]; then
		[ "${target%%/*}" = "man${name##*.}" ] || complain "$name links to '$target'"
		[ "$(wc -l <"$page")" -eq 1 ] || complain "$name has more than its link"
		[ -f "$pages/${target#*/}" ] || complain "$name links to '$target', which is missing"
		continue
	fi
	complaints=$(groff -man -ww -z "$page" 2>&1) || complaints="$complaints (groff failed)"
	[ -z "$complaints" ] || complain "$complaints"
	# A reference to a page of ours.
	# shellcheck disable=SC2013 # IFS splits into lines
	for other in $(sed -n 's/.*\.BR \(libxl_[a-z_]*\) (\([0-9]\)).*/\1.\2/p' "$page"); do
		[ -f "$pages/$other" ] || complain "$name refers to $other, which is missing"
	done
done

set -f
functions=$(declarations "$header")
[ -n "$functions" ] || complain "no functions found in $header"
for function in $functions; do
	name=$(echo "$function" | sed 's/(.*//; s/.*[ *]//')
	page=$pages/$name.3
	if [ ! -f "$page" ]; then
		complain "$name of libxl_ext.h has no page"
		continue
	fi
	target=$(sed -n 's/^\.so man3.//p' "$page")
	[ -z "$target" ] || page=$pages/$target
	says "$(text "$page")" "$function;" || complain "${page##*/} does not have '$function;'"
done

if [ $# -gt 0 ]; then
	declared=$(declarations "$1")
	[ -n "$declared" ] || complain "no functions found in $1"
	types=$(text "$pages/libxl_ext_types.3")
	for declaration in $declared; do
		says "$types" "$declaration;" || complain "libxl_ext_types.3 does not have '$declaration;'"
	done
	# shellcheck disable=SC2013 # IFS splits into lines
	for value in $(sed -n 's/^ *\(LIBXL_[A-Z_]*\) = \([0-9]*\),$/\1 = \2/p' "$1"); do
		says "$types" "$value" || complain "libxl_ext_types.3 does not have '$value'"
	done
fi

exit $failed
