#!/bin/sh
# Makes a base image for a machine that cannot load the official one: Debian bookworm with Debian's own Python 3.11.
#   base.sh NAME
# It proves the Dockerfile and the product in it, not the official base: that one has Python 3.12.
set -eu

name=$1
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=python3.11,python3.11-venv,python3-distutils,ca-certificates bookworm "$root" >/dev/null
# The official base holds no lists, archives, manuals or translations either.
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/man/* "$root"/usr/share/info/* \
    "$root"/usr/share/locale/* "$root"/usr/share/i18n/* "$root"/var/log/*
find "$root/usr/share/doc" -mindepth 2 ! -name copyright ! -type d -delete
container=$(buildah from scratch)
buildah add --quiet "$container" "$root" / >/dev/null
buildah config --env LANG=C.UTF-8 --cmd python3 "$container"
buildah commit --quiet --rm "$container" "$name" >/dev/null
