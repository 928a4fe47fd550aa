#!/usr/bin/env bash
# Everything that is measured on a GPU, in one call: bash benchmarks/gpu.sh [options of benchmarks/gpu.py]
#
# It needs this repository and an environment with torch and torchvision. Packages that dilo needs besides and that are
# missing are installed; without a network, from wheels in the folder WHEELS: WHEELS=wheels bash benchmarks/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
missing=$("$PYTHON" - <<'PY'
import importlib.util

needed = dict(numpy="numpy", PIL="pillow", pydantic="pydantic", filelock="filelock", safetensors="safetensors",
    skimage="scikit-image", scipy="scipy", joblib="joblib", pandas="pandas", tqdm="tqdm", numba="numba",
    accelerate="accelerate", psutil="psutil")
needed["ruamel.yaml"] = "ruamel.yaml"


def there(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that should hold it
        return False


print(*(name for module, name in needed.items() if not there(module)))
PY
)
if [ -n "$missing" ]; then
    echo "installing: $missing"
    # shellcheck disable=SC2086  # a list of names
    "$PYTHON" -m pip install --quiet ${WHEELS:+--no-index --find-links "$WHEELS"} $missing
fi
exec env PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" benchmarks/gpu.py "$@"
