#!/bin/sh
# Install the workshop from this folder, without a network, into FOLDER or else patchcore-kit: sh install.sh [FOLDER]
# Needs Python 3.11 with venv (PYTHON names another than python3.11) and 8 GB. Say it again if it was stopped: it goes on.
set -eu
say() { echo "$1" >&2; exit 1; }
[ $# -le 1 ] || say "one folder to install to, not $#: sh install.sh [FOLDER]"
python=${PYTHON:-python3.11}
to=${1:-patchcore-kit}
bundle=$(cd "$(dirname "$0")" && pwd)

"$python" -c "import ensurepip, sys; sys.exit(sys.version_info[:2] != (3, 11))" 2> /dev/null ||
  say "needs Python 3.11 with venv: install python3.11 and python3.11-venv, or set PYTHON"
grep -qsx "# complete" "$bundle/SHA256SUMS" ||
  say "$bundle is not complete, by its SHA256SUMS: make it, or copy it, to the end"
echo "checking $bundle"
(cd "$bundle" && sha256sum --check --quiet --strict SHA256SUMS) ||
  say "what is named above is not as it was made: copy it again"

if [ ! -e "$to" ]; then
  rm -rf "$to.part"
  mkdir -p "$to.part"
  tar -x -f "$bundle/kit.tar" -C "$to.part"
  for folder in weights data; do
    if [ -d "$bundle/$folder" ]; then cp -R "$bundle/$folder" "$to.part"; fi
  done
  mv "$to.part" "$to"
fi
[ -f "$to/tools/environment.py" ] || say "$to is there and holds no workshop: name another folder"
"$python" "$to/tools/environment.py" --wheels "$bundle/wheels"
echo "installed: cd $to && make lab"
