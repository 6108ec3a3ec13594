#!/usr/bin/env bash
# Builds the package with colcon as a robot's owner would, and starts every installed node once.
set -euo pipefail
cd "$(dirname "$0")/.."
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

echo "colcon build"
colcon --log-base "$place/log" build --base-paths . --packages-select dtp_ros \
  --build-base "$place/build" --install-base "$place/install" --event-handlers console_cohesion- >"$place/colcon.txt" 2>&1 ||
  { cat "$place/colcon.txt"; exit 1; }

# The installed tree must serve alone: nothing of the checkout on the path.
set +u
# shellcheck disable=SC1091
source "$place/install/setup.bash"
set -u
cd "$place"
python3 "$OLDPWD/tools/start_nodes.py" "$place/install/dtp_ros"
