#!/bin/sh
# Have a Chromium for the browser tests: Debian's package, installed where that is possible. Prints its path.
# Exit status 1: there is none, and none can be installed here; standard error says why.
set -eu

find_it() {
  for name in "${CHROMIUM:-}" chromium chromium-browser google-chrome-stable google-chrome; do
    [ -n "$name" ] && command -v "$name" && exit 0
  done
  return 0
}

find_it
[ "$(id -u)" = 0 ] || { echo "no Chromium here, and only root can install one (apt install chromium)" >&2; exit 1; }
command -v apt-get >/dev/null || { echo "no Chromium here, and no apt-get to install one with" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
# Workers of one test run ask at the same time: the first installs, the others wait for it.
exec 9>/tmp/paddock-chromium.lock
flock 9
find_it
log=$(mktemp)
{ apt-get -qq update && apt-get -qq -y --no-install-recommends install chromium; } >"$log" 2>&1 || {
  echo "apt-get could not install chromium: $(tail -n 1 "$log")" >&2
  exit 1
}
find_it
echo "chromium was installed and cannot be found" >&2
exit 1
