#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test: unit, integration and doc tests of both
# crates, what rests on the store once more on PostgreSQL, the README's walk-through, and the OpenAPI
# document against the service. Ends with how many passed and failed; the exit code is 0 only if
# nothing failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "run: please install what is missing: ${missing[*]}" >&2
        exit 1
    fi
}

# A package for each command that is not there.
missing=()
command -v curl >/dev/null || missing+=(curl)
command -v cc >/dev/null || missing+=(gcc libc6-dev)
# The tests start servers of their own; Debian keeps these programs out of the path.
command -v initdb >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
command -v python3 >/dev/null || missing+=(python3)
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
command -v prlimit >/dev/null || missing+=(util-linux)
command -v mount >/dev/null || missing+=(mount)
# Durability is read from the servers' system calls, and disks fail by them.
command -v strace >/dev/null || missing+=(strace)
# Dashboards and alerts are tried on a Prometheus of the tests' own.
{ command -v prometheus && command -v promtool; } >/dev/null || missing+=(prometheus)
command -v amtool >/dev/null || missing+=(prometheus-alertmanager)
if [ ${#missing[@]} -gt 0 ]; then
    if ! command -v apt-get >/dev/null; then
        echo "run: please install what is missing: ${missing[*]}" >&2
        exit 1
    fi
    as_root apt-get update
    if [[ " ${missing[*]} " == *" postgresql "* ]] && [ ! -e /etc/postgresql-common ]; then
        # Told before the server comes, so that no server for all is set up and started.
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql-common
        echo 'create_main_cluster = false' | as_root tee -a /etc/postgresql-common/createcluster.conf >/dev/null
    fi
    # The packages' own services are not started: the tests start what they need.
    policy=
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        policy=/usr/sbin/policy-rc.d
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    installed=1
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" || installed=0
    [ -z "$policy" ] || as_root rm -f "$policy"
    [ "$installed" = 1 ]
fi
if ! command -v cargo >/dev/null; then
    [ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
    command -v cargo >/dev/null || { echo "run: a Rust toolchain is needed: https://rustup.rs" >&2; exit 1; }
fi

# A disk that runs full fails tests in ways that do not say so.
NEEDED_GB=15
free_gb() { df -P -k "$1" | awk 'NR == 2 { print int($4 / 1048576) }'; }
for place in . "${TMPDIR:-/tmp}"; do
    if [ "$(free_gb "$place")" -lt "$NEEDED_GB" ]; then
        echo "run: only $(free_gb "$place") GB are free in $place; build and tests take about $NEEDED_GB GB" >&2
    fi
done

# With how many seconds have passed.
step() { printf '\n== %s == (%d s)\n' "$1" "$SECONDS"; }

# Tests wait for their servers and for disks a third of the time: half as many again as processors.
processors=$(getconf _NPROCESSORS_ONLN)
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$(((processors * 3 + 1) / 2))}

output=$(mktemp)
trap 'rm -f "$output"' EXIT
failed=0

# All features: the test kits of the runtime are behind one, and have tests of their own.
step "tests of both crates"
cargo test --workspace --all-features --no-fail-fast 2>&1 | tee "$output" || failed=1

# What rests on the store, once more on the other one. The tests of module `database` are about
# PostgreSQL whatever this says, those of `crash` choose for themselves, those of `durability`,
# `disk` and `corruption` look into SQLite's files, and the rest of what is left out is about
# limits of connections, buckets and providers, whatever the journal is kept in.
step "the same on PostgreSQL"
export SOUK_TEST_STORE=postgres
on_postgres() {
    cargo test --workspace --all-features --no-fail-fast "$@" 2>&1 | tee -a "$output" || failed=1
}
on_postgres --lib projections
on_postgres --test api -- --skip database:: --skip crash:: \
    --skip durability:: --skip disk:: --skip corruption:: \
    --skip limits:: --skip tls:: --skip images:: --skip sms:: \
    --skip mail_providers:: --skip monitoring::alerts
unset SOUK_TEST_STORE

step "the README's walk-through"
walked=1
bash tests/readme.sh || { walked=0; failed=1; }

step "the OpenAPI document against the service"
agreed=1
bash tests/schemathesis.sh || { agreed=0; failed=1; }

# What failed, once more, where it is not far from the end: why, and where.
awk '
    /^---- .* stdout ----$/ { name = $2; left = 0; next }
    name != "" && /panicked at/ { print "\n" name; left = 40 }
    left > 0 { print "    " substr($0, 1, 400); left-- }
    /^failures:$|^test result: / { name = ""; left = 0 }
' "$output"

awk -v others="$((walked + agreed))" '
    /^test result: / {
        for (i = 1; i < NF; i++) {
            if ($(i + 1) == "passed;") passed += $i
            if ($(i + 1) == "failed;") failed += $i
        }
    }
    END { printf "%d passed, %d failed\n", passed + others, failed + (2 - others) }
' "$output"
exit "$failed"
