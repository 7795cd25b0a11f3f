#!/bin/bash
# Builds Mesa's compiler for Apple's GPUs from Debian's source package, and `agx` on top of it, which tells what a kernel becomes.
#
#     tools/metal/build_agx.sh FOLDER
#
# Needs Debian or Ubuntu, some 1.5 GB in FOLDER and ten minutes of a processor core; neither a Mac nor a GPU. What is missing is named at the start.
# It is not part of CI: docs/metal-instructions.md holds what it found.
set -euo pipefail
folder=$(mkdir -p "${1:?usage: build_agx.sh FOLDER}" && cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
packages=(llvm-15-dev libclang-15-dev libclc-15-dev libllvmspirvlib-15-dev llvm-spirv-15 spirv-tools spirv-headers bison flex ninja-build libdrm-dev libelf-dev zlib1g-dev libzstd-dev python3-venv dpkg-dev)
version=25.0.7-2+deb13u1
release=trixie

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if (( ${#missing[@]} )); then
    echo "build_agx.sh: first install what is missing: apt-get install ${missing[*]}" >&2
    exit 1
fi

cd "$folder"
if [[ ! -d mesa ]]; then
    # Lists of its own, so that the machine's package sources stay as they are.
    mkdir -p apt/lists/partial apt/cache/archives/partial apt/parts
    echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $release main" > apt/sources.list
    options=(-o "Dir::Etc::SourceList=$folder/apt/sources.list" -o "Dir::Etc::SourceParts=$folder/apt/parts" -o "Dir::State::Lists=$folder/apt/lists"
        -o "Dir::Cache=$folder/apt/cache")
    apt-get "${options[@]}" update
    apt-get "${options[@]}" source --download-only "mesa=$version"
    dpkg-source --extract mesa_*.dsc mesa
fi
[[ -d venv ]] || { python3 -m venv venv && venv/bin/pip install --quiet meson mako pyyaml packaging; }
export PATH="$folder/venv/bin:$PATH"

cd mesa
if [[ ! -f build/build.ninja ]]; then
    printf "[binaries]\nllvm-config = '/usr/bin/llvm-config-15'\n" > native.ini
    # Without `asahi` among the tools Mesa skips the compiler on any machine that is not an arm64 one.
    meson setup build --native-file native.ini -Dbuildtype=release -Dvulkan-drivers=asahi -Dgallium-drivers= -Dplatforms= -Dglx=disabled -Degl=disabled \
        -Dgbm=disabled -Dopengl=false -Dgles1=disabled -Dgles2=disabled -Dllvm=enabled -Dtools=drm-shim,asahi -Dvideo-codecs= -Dvulkan-layers=
fi
# Mesa's own OpenCL compiler looks for clang's headers beside itself.
headers=(/usr/lib/llvm-15/lib/clang/15.*)
for lib in lib lib64; do
    mkdir -p "build/src/compiler/$lib/clang"
    for number in 15 15.0.6 15.0.7; do ln -sfn "${headers[0]}" "build/src/compiler/$lib/clang/$number"; done
done
libraries=(src/asahi/lib/libasahi_lib.a src/asahi/compiler/libasahi_compiler.a src/compiler/spirv/libvtn.a src/compiler/nir/libnir.a src/compiler/libcompiler.a
    src/util/libmesa_util.a src/util/libmesa_util_sse41.a src/c11/impl/libmesa_util_c11.a src/util/blake3/libblake3.a)
ninja -C build -j "${JOBS:-1}" "${libraries[@]}" src/asahi/lib/libagx_shaders.h

cd build
flags=$(python3 - <<'PY'
import json, shlex
for entry in json.load(open("compile_commands.json")):
    if entry["file"].endswith("vulkan/hk_shader.c"):
        print(" ".join(shlex.quote(word) for word in shlex.split(entry["command"]) if word.startswith(("-D", "-I", "-std", "-m"))))
PY
)
eval "cc -O1 -w $flags -c '$here/agx.c' -o '$folder/agx.o'"
# The reader of SPIR-V can print a module through SPIRV-Tools; nothing here asks it to.
cat > "$folder/spirv_tools.c" <<'C'
void *spvContextCreate(int environment) { return 0; }
int spvBinaryToText() { return -1; }
void spvTextDestroy() {}
int spvDiagnosticPrint() { return 0; }
void spvDiagnosticDestroy() {}
void spvContextDestroy() {}
C
cc -w -c "$folder/spirv_tools.c" -o "$folder/spirv_tools.o"
c++ -o "$folder/agx" "$folder/agx.o" "$folder/spirv_tools.o" -Wl,--start-group "${libraries[@]}" -Wl,--end-group -lz -lzstd -lm -lpthread -ldl -ldrm
echo "$folder/agx"
