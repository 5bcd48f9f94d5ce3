#!/bin/sh
# Build stage: /opt/inferwire with every locked package, llama.cpp compiled for any processor of the architecture.
# It sees requirements/ only, so that a change of our own code repeats nothing of this.
set -eu
requirements=$1

# GGML_NATIVE would tune for the machine that builds, and the image would die of an illegal instruction elsewhere.
# x86-64: what processors have had since 2013 (x86-64-v3). arm64: since Neoverse N1 (Graviton 2, Ampere Altra).
case $(uname -m) in
    x86_64) portable="-DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON" ;;
    aarch64) portable="-DGGML_CPU_ARM_ARCH=armv8.2-a+dotprod+fp16" ;;
    *) portable="" ;;
esac
CMAKE_ARGS=${CMAKE_ARGS:-"-DGGML_NATIVE=OFF $portable"}
CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
export CMAKE_ARGS CMAKE_BUILD_PARALLEL_LEVEL
echo "CMAKE_ARGS=$CMAKE_ARGS"

python3 -m venv /opt/inferwire
PATH=/opt/inferwire/bin:$PATH
work=$(mktemp -d)
pip="python -m pip --disable-pip-version-check --no-input"
hashed="--require-hashes --no-deps"
llama='/^llama-cpp-python==/,/^[^ ]/{/^llama-cpp-python==/p;/^ /p}'
sed -n "$llama" "$requirements/run.txt" >"$work/llama.txt"
grep -vxFf "$work/llama.txt" "$requirements/run.txt" >"$work/wheels.txt"

# shellcheck disable=SC2086 # lists of words
{
    $pip install $hashed -r "$requirements/build.txt"
    $pip install $hashed --no-compile -r "$work/wheels.txt"
    $pip download $hashed --no-build-isolation --no-binary :all: --dest "$work" -r "$work/llama.txt"
    # pip's cache would give back what was compiled with other flags. Verbose: the log says which these were.
    $pip install $hashed --verbose --no-compile --no-build-isolation --no-cache-dir --no-index --find-links "$work" \
        -r "$work/llama.txt"
}

# The source package carries llama.cpp without its history; its list of changes names the commit.
version=$(python -c 'import importlib.metadata as m; print(m.version("llama-cpp-python"))')
tar -xzOf "$work"/llama_cpp_python-*.tar.gz --wildcards '*/CHANGELOG.md' \
    | sed -n "/^## \[$version\]/,\$ s|.*update llama.cpp to ggml-org/llama.cpp@\([0-9a-f]*\).*|\1|p" | head -n 1 \
    >/opt/inferwire/llama.cpp-commit
rm -rf "$work"
test -s /opt/inferwire/llama.cpp-commit
