#!/usr/bin/env bash
# Runs the walk-through of README.md, exactly as it is written there, and compares what it prints
# with what the README says it prints.
#
# Between the two "walk-through" comments, every block fenced as `bash` is run, all in one shell;
# a block fenced as `text` behind it is its expected output, in which `…` stands for anything
# and a line of `…` for any lines or none.
#
# With SOUK set (http://127.0.0.1:8080) it asks that server, whose administrator's token is in
# ${DATA_DIR:-data}. Without, it starts one: the program in SOUK_BIN, on a free port, with a folder
# that is deleted afterwards.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
server=

finish() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap finish EXIT

start_server() {
    local program=${SOUK_BIN:-${CARGO_TARGET_DIR:-$repository/target}/debug/souk}
    [ -x "$program" ] || { echo "readme: $program is missing; build it or set SOUK_BIN" >&2; exit 1; }
    program=$(realpath "$program")
    : >"$work/server"
    env -u APP_ENV -u DATABASE_URL DATA_DIR="$work/data" HTTP_ADDR=127.0.0.1:0 LOG_LEVEL=warn \
        "$program" serve >"$work/server" 2>"$work/log" &
    server=$!
    for _ in $(seq 300); do
        SOUK=$(sed -n 's/^souk is listening on \([^ ]*\).*/\1/p' "$work/server")
        [ -n "$SOUK" ] && curl -fsS -o /dev/null "$SOUK/readyz" 2>/dev/null && break
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    if ! curl -fsS -o /dev/null "${SOUK:-http://nowhere.invalid}/readyz"; then
        echo "readme: the server did not start" >&2
        cat "$work/server" "$work/log" >&2
        exit 1
    fi
    export SOUK DATA_DIR="$work/data"
}

# Cuts the walk-through into $work/<n>.bash and $work/<n>.text.
cut_blocks() {
    awk -v folder="$work" '
        /^<!-- walk-through: begin -->$/ { inside = 1; next }
        /^<!-- walk-through: end -->$/ { inside = 0; next }
        !inside { next }
        /^```bash$/ { block += 1; file = folder "/" block ".bash"; next }
        /^```text$/ { file = folder "/" block ".text"; next }
        /^```$/ { if (file) close(file); file = ""; next }
        file { print > file }
        END { print block + 0 > (folder "/count") }
    ' "$repository/README.md"
}

# One script of all blocks, each with its output in a file of its own.
join_blocks() {
    echo 'set -eu'
    for number in $(seq "$(cat "$work/count")"); do
        printf 'exec >%q 2>&1\n' "$work/$number.out"
        cat "$work/$number.bash"
    done
}

# Whether a text is what a README text says, where … is anything, and a line of … any lines or none.
fits() {
    local actual=$1 expected=${2//$'\n…\n'/$'\n…'} pattern= part
    while [[ $expected == *…* ]]; do
        part=${expected%%…*}
        pattern+=$(printf '%q' "$part")'*'
        expected=${expected#*…}
    done
    pattern+=$(printf '%q' "$expected")
    eval "[[ \$actual == $pattern ]]"
}

[ -n "${SOUK:-}" ] || start_server
cut_blocks
if [ "$(cat "$work/count")" -lt 10 ]; then
    echo "readme: the walk-through was not found in README.md" >&2
    exit 1
fi
join_blocks >"$work/script"
status=0
bash "$work/script" || status=$?

failed=0
checked=0
for number in $(seq "$(cat "$work/count")"); do
    [ -f "$work/$number.out" ] || { echo "readme: block $number was not reached" >&2; failed=1; continue; }
    [ -f "$work/$number.text" ] || continue
    checked=$((checked + 1))
    actual=$(cat "$work/$number.out")
    expected=$(cat "$work/$number.text")
    if ! fits "$actual" "$expected"; then
        failed=1
        printf 'readme: block %s\n%s\n-- should print\n%s\n-- and printed\n%s\n\n' \
            "$number" "$(cat "$work/$number.bash")" "$expected" "$actual" >&2
    fi
done
if [ "$status" -ne 0 ] || [ "$failed" -ne 0 ]; then
    [ -f "$work/log" ] && tail -n 20 "$work/log" >&2
    echo "readme: the walk-through failed (shell status $status)" >&2
    exit 1
fi
echo "readme: $(cat "$work/count") blocks run, $checked outputs as written"
