# Sourced by the commands of this folder: makes .venv with kizu installed in place, quickly where it is there already.
# PYTHON names the interpreter to start from (python3); KIZU_WERROR=ON turns compiler warnings into errors; KIZU_CUDA is
# cmake/cuda.cmake's; by default OFF where there is no CUDA driver, since compiling for seven architectures takes minutes.
set -euo pipefail
called_from=$PWD
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
venv="$root/.venv"
bin="$venv/bin"

kizu_setup() {
  local cuda=OFF
  if PATH="$PATH:/sbin" ldconfig -p 2> /dev/null | grep -q libcuda.so.1; then cuda=AUTO; fi
  cuda=${KIZU_CUDA:-$cuda}
  local python=${PYTHON:-python3} wanted done_file="$venv/.kizu-installed"
  "$python" - <<'PY' || { echo "kizu needs Python 3.10 or newer; name one with PYTHON=..." >&2; exit 1; }
import sys
sys.exit(sys.version_info < (3, 10))
PY
  # What is compiled or decides what is installed; Python sources are used in place, under the names known then.
  wanted=$({ "$python" -V; echo "${KIZU_WERROR:-OFF} $cuda"; cat pyproject.toml CMakeLists.txt cmake/* tools/constraints.txt tools/setup.sh; find csrc -type f | LC_ALL=C sort | xargs cat; find python -name '*.py' | LC_ALL=C sort; } | sha256sum)
  if [ -f "$done_file" ] && [ "$(cat "$done_file")" = "$wanted" ]; then return; fi
  echo "setting up $venv (minutes the first time)" >&2
  # An environment of another Python would be used in its place.
  if [ -x "$bin/python" ] && [ "$("$bin/python" -V)" = "$("$python" -V)" ]; then :; else "$python" -m venv --clear "$venv"; fi
  "$bin/python" -m pip install --quiet --disable-pip-version-check "scikit-build-core>=0.10" "pybind11>=2.13" cmake ninja -c tools/constraints.txt
  PATH="$bin:$PATH" "$bin/python" -m pip install --quiet --disable-pip-version-check --no-build-isolation \
    "--config-settings=cmake.define.KIZU_WERROR=${KIZU_WERROR:-OFF}" \
    "--config-settings=cmake.define.KIZU_CUDA=$cuda" \
    -c tools/constraints.txt --editable ".[train,cpu,onnxruntime,report,dev]"
  # It compiles without a GPU; 230 MB, for x86-64 alone. Apart, since its package is built with tools of its own.
  if [ "$(uname -sm)" = "Linux x86_64" ]; then
    "$bin/python" -m pip install --quiet --disable-pip-version-check -c tools/constraints.txt tensorrt-rtx
  fi
  echo "$wanted" > "$done_file"
}
kizu_setup
