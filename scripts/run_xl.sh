#!/bin/sh
# The paper's run for GPT-2 XL and its control: scripts/run_preset.sh says what is made and what can be set.
exec "$(dirname "$0")/run_preset.sh" xl "$@"
