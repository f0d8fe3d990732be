#!/usr/bin/env bash
# The programs that some tests start for real: PostgreSQL, Chromium with its driver, curl; KServe's clients and two
# Ascend tools in interpreters of their own. Where they are missing and we may install them, this does; elsewhere those
# tests are skipped and say what they want. Quick when everything is there.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

# A CPython 3.7: mindspore-lite 2.0.0, the last converter with a wheel for x86, is built for nothing newer.
python37() {
  local candidate
  for candidate in "${ORCHESTRATE_PYTHON37:-}" python3.7 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.7*/bin/python; do
    [ -n "$candidate" ] || continue
    # a version manager's shim of this name may be there without the interpreter: ask it
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 7))' >/dev/null 2>&1; then
      echo "$candidate"
      return 0
    fi
  done
  return 1
}

# venv FOLDER PYTHON PACKAGE...: marked when whole, so that a broken install is never taken for one
venv() {
  local folder=$1 python=$2
  shift 2
  [ -e "$folder/installed" ] && [ "$(cat "$folder/installed")" = "$*" ] && "$folder/bin/python" -c '' 2>/dev/null && return 0
  echo "installing for the tests: $folder ($*)"
  rm -rf "$folder"
  if "$python" -m venv "$folder" && PIP_DISABLE_PIP_VERSION_CHECK=1 "$folder/bin/python" -m pip install -q "$@"; then
    echo "$*" >"$folder/installed"
  else
    echo "not installed, its tests are skipped: $*"
    rm -rf "$folder"
  fi
}

missing=()
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing+=(postgresql)
{ command -v chromium && command -v chromedriver; } >/dev/null 2>&1 || missing+=(chromium chromium-driver)
command -v curl >/dev/null 2>&1 || missing+=(curl)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing for the tests: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    echo "not installed, their tests are skipped: ${missing[*]}"
  fi
fi

# a client of ours, as its users install it; its own pins are not ours
venv .venv-kserve "$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)" kserve==0.21.0

if [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
  echo "no Linux on x86-64: the tests of mindspore-lite and onnxruntime-cann are skipped"
  exit 0
fi
if python=$(python37); then
  venv .venv-mindspore-lite "$python" mindspore-lite==2.0.0
elif [ ! -x .venv-mindspore-lite/bin/python ]; then
  echo "no CPython 3.7 (name one in ORCHESTRATE_PYTHON37): the tests of MindSpore Lite's converter are skipped"
fi
# numpy 2 breaks its import
venv .venv-onnxruntime-cann "$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)" onnxruntime-cann==1.24.4 'numpy<2'
exit 0
