#!/usr/bin/env bash
# All tests of everloop. On Linux without a Vulkan driver it installs Mesa's software one first, and says so.
# EVERLOOP_REQUIRE_GPU=1: fail, instead of saying "skipped", where no adapter is found.
set -euo pipefail
cd "$(dirname "$0")/.."

# no pipes: under pipefail a reader that stops early makes the writer's end a failure
vulkan_driver() {
  [ -n "${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-}" ] ||
    [ -n "$(find /usr/share/vulkan/icd.d /etc/vulkan/icd.d /usr/local/share/vulkan/icd.d -name '*.json' 2>/dev/null)" ]
}
vulkan_loader() {
  case "$(ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null)" in *libvulkan.so.1*) true ;; *) false ;; esac
}

if [ "$(uname -s)" = Linux ] && ! { vulkan_driver && vulkan_loader; }; then
  sudo=""
  [ "$(id -u)" = 0 ] || sudo=sudo
  if command -v apt-get >/dev/null; then
    echo "No Vulkan driver here: installing Mesa's software driver (mesa-vulkan-drivers, libvulkan1)."
    $sudo apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq mesa-vulkan-drivers libvulkan1 >/dev/null
  elif command -v dnf >/dev/null; then
    echo "No Vulkan driver here: installing Mesa's software driver (mesa-vulkan-drivers, vulkan-loader)."
    $sudo dnf install -y -q mesa-vulkan-drivers vulkan-loader
  elif command -v pacman >/dev/null; then
    echo "No Vulkan driver here: installing Mesa's software driver (vulkan-swrast, vulkan-icd-loader)."
    $sudo pacman -S --noconfirm --needed vulkan-swrast vulkan-icd-loader
  else
    echo "No Vulkan driver here, and no package manager known to this script: the GPU tests will say that they are skipped."
  fi
fi

# Mesa complains on stderr without it
export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}"
cargo test --release "$@"
