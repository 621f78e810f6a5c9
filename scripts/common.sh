# Shared by the scripts in this folder; sourced, never run.
set -euo pipefail
MARLIN_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
MARLIN_VENV="$MARLIN_ROOT/.deps/venv"
say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# ccache may only reuse objects that were built with a precompiled header if it is told so.
export CCACHE_SLOPPINESS="${CCACHE_SLOPPINESS:-pch_defines,time_macros,include_file_mtime,include_file_ctime}"
export CCACHE_BASEDIR="${CCACHE_BASEDIR:-$MARLIN_ROOT}"
