#!/usr/bin/env bash
# Links a local copy of the Wan2.1-T2V-14B model directory at source-data/ beside this script.
#
#   WAN21_T2V_14B_PATH=/path/to/Wan2.1-T2V-14B models/wan2.1-t2v-14b/bootstrap.sh
#   LLM_MODELS_ROOT=/path/with/models          models/wan2.1-t2v-14b/bootstrap.sh
#
# Only its config.json is ever read; weights are not needed.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source_path=${WAN21_T2V_14B_PATH:-${LLM_MODELS_ROOT:+$LLM_MODELS_ROOT/Wan2.1-T2V-14B}}

if [[ -z "$source_path" ]]; then
  echo "bootstrap.sh: set WAN21_T2V_14B_PATH to the model directory, or LLM_MODELS_ROOT to the directory that holds Wan2.1-T2V-14B" >&2
  exit 2
fi
if [[ ! -f "$source_path/config.json" ]]; then
  echo "bootstrap.sh: $source_path has no config.json" >&2
  exit 2
fi
if [[ -e "$here/source-data" && ! -L "$here/source-data" ]]; then
  echo "bootstrap.sh: $here/source-data is there and is no link; move it away first" >&2
  exit 2
fi

ln -sfn "$(cd "$source_path" && pwd)" "$here/source-data"
echo "$here/source-data -> $(readlink "$here/source-data")"
