#!/bin/bash
# Makes a Debian or Ubuntu machine ready for `make demo`, `make test` and `make bench`:
# checks what cannot be installed, then installs the packages that are missing.
# Says nothing when there is nothing to do.
set -eu
export PATH="$PATH:/usr/sbin:/sbin"

missing() {
	echo "granary: $*" >&2
	exit 1
}

# What no package can give.
[ "$(uname -s)" = Linux ] || missing "this needs Linux: it mounts file systems on block devices of its own"
[ "$(id -u)" = 0 ] || missing "this needs root: it makes loop devices and mounts file systems on them (try: sudo make ${MAKECMDGOALS:-demo})"
command -v "${GO:-go}" >/dev/null || missing "Go is not installed or not in PATH (https://go.dev/dl/)"

# A command, and the Debian package that has it.
packages=()
need() {
	command -v "$1" >/dev/null || packages+=("$2")
}
need fio fio
need mkfs.ext4 e2fsprogs
need mkfs.xfs xfsprogs
need mkfs.btrfs btrfs-progs
need fstrim util-linux
need losetup mount
need modprobe kmod
need gcc gcc
need qemu-storage-daemon qemu-system-common
# The race detector links against the C library's start files.
[ -e /usr/include/stdlib.h ] || packages+=(libc6-dev)

if [ ${#packages[@]} -gt 0 ]; then
	command -v apt-get >/dev/null || missing "please install: ${packages[*]} (no apt-get here to do it)"
	echo "granary: installing ${packages[*]}"
	log=$(mktemp)
	trap 'rm -f "$log"' EXIT
	export DEBIAN_FRONTEND=noninteractive
	install() {
		apt-get install -y --no-install-recommends "${packages[@]}" >"$log" 2>&1
	}
	# Package lists may be absent or old: read them anew only when the first try fails.
	if ! install && ! { apt-get update >"$log" 2>&1 && install; }; then
		tail -n 20 "$log" >&2
		missing "could not install: ${packages[*]}"
	fi
fi

# Devices come last: the modules behind them may need kmod.
[ -c /dev/fuse ] || modprobe -q fuse 2>/dev/null || true
[ -c /dev/fuse ] || missing "/dev/fuse is missing: load the module (modprobe fuse), or start the container with --device /dev/fuse"
[ -c /dev/loop-control ] || modprobe -q loop 2>/dev/null || true
[ -c /dev/loop-control ] || missing "/dev/loop-control is missing: load the module (modprobe loop), or start the container with --privileged"
