# Shared by the scripts in this folder; sourced, never run.
set -euo pipefail
MARLIN_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
MARLIN_VENV="$MARLIN_ROOT/.deps/venv"
MARLIN_PEERS="$MARLIN_ROOT/.deps/peers"  # Python libraries that libmarlin is compared with; apart, so that .deps/venv stays as torch's users have it
IGNITE_VERSION=0.5.5
say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# ccache may only reuse objects that were built with a precompiled header if it is told so.
export CCACHE_SLOPPINESS="${CCACHE_SLOPPINESS:-pch_defines,time_macros,include_file_mtime,include_file_ctime}"
export CCACHE_BASEDIR="${CCACHE_BASEDIR:-$MARLIN_ROOT}"

have_peer() { [ -d "$MARLIN_PEERS/$1-$2.dist-info" ]; }  # name as in the folder's, version
install_peers() { "$MARLIN_VENV/bin/pip" install -q --disable-pip-version-check --no-deps --target "$MARLIN_PEERS" "$@" >&2; }
