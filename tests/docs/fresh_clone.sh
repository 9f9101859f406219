#!/usr/bin/env bash
# What a newcomer meets, from an empty directory: clone, `make demo`, the printed lines, Ctrl-C, a second start.
#
#   tests/docs/fresh_clone.sh [REPOSITORY]     the committed state of REPOSITORY (default: the one this file is in)
#
# The environment is empty but for PATH, a HOME that is empty too, and what pip needs to reach its index from here
# (PIP_*, SSL_*, *_proxy). Needs git, make, curl and Python 3.11 with venv, as the README says. For release checks: it
# installs everything anew, which takes a minute or two. Exit status 0: everything went as the README promises.
set -euo pipefail
set -m # each job in a process group of its own, with Ctrl-C at work as in a terminal

source=${1:-$(cd "$(dirname "$0")/../.." && pwd)}
work=$(mktemp -d "${TMPDIR:-/tmp}/paddock-fresh.XXXXXX")
mkdir "$work/home"
port=${PORT:-$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
job=

clean() {
  [ -z "$job" ] || kill -KILL -- "-$job" 2>/dev/null || true
  left | xargs -r kill -KILL 2>/dev/null || true
  rm -rf "$work"
}
trap clean EXIT

say() { printf '%s\n' "$*"; }
fail() {
  say "FAILED: $*"
  for log in "$work"/*.out "$work"/*.err; do
    [ ! -s "$log" ] || { say "--- ${log##*/}"; tail -n 20 "$log"; }
  done
  exit 1
}

# Processes that have anything to do with the clone, by their command line or their directory.
left() {
  local pid
  for pid in /proc/[0-9]*; do
    pid=${pid#/proc/}
    [ "$pid" != $$ ] && [ "$pid" != "$BASHPID" ] || continue
    if { tr '\0' ' ' <"/proc/$pid/cmdline" && readlink "/proc/$pid/cwd"; } 2>/dev/null | grep -qF "$work/paddock"; then
      echo "$pid"
    fi
  done
}

# Runs a command as the newcomer: in the clone, with nothing of this environment.
newcomer() {
  local -a kept=(PATH=/usr/local/bin:/usr/bin:/bin "HOME=$work/home" LANG=C.UTF-8)
  local name
  for name in $(compgen -e | grep -E '^(PIP_|SSL_|(https?|no|all)_proxy$|(HTTPS?|NO|ALL)_PROXY$)' || true); do
    kept+=("$name=${!name}")
  done
  cd "$work/paddock" && exec env -i "${kept[@]}" "$@"
}

start() { # NAME SECONDS: `make demo` until the key is printed
  local began=$SECONDS
  (newcomer make demo "PORT=$port" >"$work/$1.out" 2>"$work/$1.err") &
  job=$!
  disown "$job" # its end is looked for, and no word of the shell's about it is wanted
  until grep -q '^export PADDOCK_KEY=nz_' "$work/$1.out"; do
    kill -0 "$job" 2>/dev/null || fail "make demo ended before it printed a key"
    [ $((SECONDS - began)) -lt "$2" ] || fail "make demo printed no key within $2 s"
    sleep 0.2
  done
  say "  key printed after $((SECONDS - began)) s; $(grep -m1 '^ready in' "$work/$1.out")"
}

try_printed_lines() { # NAME: the lines that were printed, as they stand
  grep -E '^(export|curl) ' "$work/$1.out" >"$work/lines.sh"
  (newcomer bash -e "$work/lines.sh") >"$work/answer" 2>/dev/null || fail "the printed curl line failed"
  tail -n 1 "$work/answer" | grep -q '"done":true' || fail "the printed curl line gave no whole answer: $(cat "$work/answer")"
  say "  the printed curl line streamed $(wc -l <"$work/answer") lines"
  (newcomer curl -fsS "http://127.0.0.1:$port/readyz") >/dev/null || fail "/readyz is not ready"
  (newcomer .venv/bin/paddock list-keys --json) | grep -q '"state": "active"' || fail "list-keys shows no active key"
}

interrupt() { # as Ctrl-C in a terminal does: the whole foreground group hears of it
  local began=$SECONDS pids
  kill -INT -- "-$job"
  while kill -0 "$job" 2>/dev/null; do
    [ $((SECONDS - began)) -lt 30 ] || fail "make demo still runs 30 s after Ctrl-C"
    sleep 0.2
  done
  job=
  pids=$(left)
  # shellcheck disable=SC2086 # one word a process
  [ -z "$pids" ] || fail "still running after Ctrl-C: $(ps -o pid=,args= -p ${pids//$'\n'/,})"
  ! (newcomer curl -s -m 2 "http://127.0.0.1:$port/healthz") >/dev/null || fail "port $port still answers"
  say "  Ctrl-C: everything stopped within $((SECONDS - began)) s"
}

say "clone"
git clone --quiet "$source" "$work/paddock"
say "  $(git -C "$work/paddock" log -1 --format='%h %s')"
say "first make demo (installs everything)"
start first 600
try_printed_lines first
interrupt
say "second make demo (same data, nothing to install)"
start second 60
try_printed_lines second
interrupt
[ -z "$(git -C "$work/paddock" status --porcelain)" ] || fail "the work tree is not clean: $(git -C "$work/paddock" status --short)"
say "passed"
