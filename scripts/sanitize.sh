#!/usr/bin/env bash
# Builds the C++ kernels with the address and undefined behaviour sanitizers and runs them on random and edge inputs.
# Arguments are further flags, such as -march=x86-64-v3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${CXX:-g++}" -std=c++17 -O1 -g -march=native -ffp-contract=off -fno-math-errno -fsanitize=address,undefined \
  -fno-sanitize-recover=all -Wno-psabi "$@" "$(dirname "$0")"/../extensions/csrc/*.cpp -o "$folder/sanitize"
"$folder/sanitize"
