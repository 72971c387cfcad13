#!/usr/bin/env bash
# Installs what `make demo`, `make test` and `make train` need into a virtual environment.
#
#   scripts/install.sh VENV PYTHON
#
# The environment sees the packages of PYTHON, so that an installed torch or ComfyUI is used as it is; only what is
# missing is installed. Where ComfyUI is found and lacks some of its own requirements, those are installed too, but
# for torchaudio, which only its audio nodes need and which must match torch to the build. Done once: what was
# installed is remembered in VENV until the requirements or ComfyUI's place change.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 python=$2

[ -x "$venv/bin/python" ] || "$python" -m venv --system-site-packages "$venv"
py=$venv/bin/python
comfyui=$("$py" scripts/find_comfyui.py 2>/dev/null) || comfyui=
files=(requirements.txt requirements-dev.txt)
[ -z "$comfyui" ] || files+=("$comfyui/requirements.txt")
wanted=$(cat "${files[@]}" | cksum)
if [ "$wanted $comfyui" = "$(cat "$venv/installed" 2>/dev/null)" ]; then
    exit 0
fi

pip() { "$py" -m pip install --quiet --disable-pip-version-check "$@"; }

echo "Installing into $venv (what is already there for $python is used) …"
pip -r requirements-dev.txt

if [ -n "$comfyui" ]; then
    "$py" scripts/missing_requirements.py "$comfyui/requirements.txt" --except torchaudio > "$venv/comfyui.txt"
    if [ -s "$venv/comfyui.txt" ]; then
        echo "Installing what ComfyUI in $comfyui lacks: $(paste -sd ' ' "$venv/comfyui.txt")"
        # As its package is called on the index: torch.__version__ may say more, such as +cu130.
        "$py" -c 'from importlib.metadata import version; print("torch==" + version("torch"))' \
            > "$venv/constraints.txt"
        pip -r "$venv/comfyui.txt" -c "$venv/constraints.txt"
    fi
fi
echo "$wanted $comfyui" > "$venv/installed"
