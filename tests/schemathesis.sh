#!/usr/bin/env bash
# Runs schemathesis, every check on, against the served OpenAPI document, as a buyer, a seller and an
# administrator: the document must say the truth, and the service must keep to it. Needs a built
# program and python3 with venv; the pinned version of schemathesis goes into a temporary folder.
#
#   SOUK_SCHEMATHESIS_EXAMPLES   generated requests per operation, role and phase [3]
#   SOUK_SCHEMATHESIS_SEED       repeats a run [1]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=4.32.5
examples=${SOUK_SCHEMATHESIS_EXAMPLES:-3}
seed=${SOUK_SCHEMATHESIS_SEED:-1}
program=${SOUK_PROGRAM:-${CARGO_TARGET_DIR:-target}/debug/souk}

folder=$(mktemp -d)
server=
cleanup() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    [ -z "$server" ] || wait "$server" 2>/dev/null || true
    rm -rf "$folder"
}
trap cleanup EXIT

if [ -z "${SCHEMATHESIS:-}" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "schemathesis==$version"
    SCHEMATHESIS=$folder/venv/bin/schemathesis
fi

DATA_DIR=$folder/data HTTP_ADDR=127.0.0.1:0 LOG_LEVEL=warn REVEAL_VERIFICATION_TOKEN=true \
    "$program" serve >"$folder/said" 2>"$folder/log" &
server=$!
for _ in $(seq 300); do
    url=$(grep -o 'http://[0-9.:]*' "$folder/said" || true)
    [ -n "$url" ] && curl -sf "$url/readyz" >/dev/null && break
    sleep 0.1
done
[ -n "$url" ] || { echo "schemathesis: the server does not start" >&2; cat "$folder/log" >&2; exit 1; }
admin=$(cat "$folder/data/admin-token")

post() { # path, body, token
    curl -sSf -X POST -H 'content-type: application/json' ${3:+-H "authorization: Bearer $3"} \
        -d "$2" "$url/api/v1$1"
}
member() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

# Registers somebody, proves the address and logs in: says the user's id and the token.
join() {
    local who="{\"email\":\"$1@example.com\",\"password\":\"a long password\""
    local made
    made=$(post /users/register "$who,\"first_name\":\"$1\",\"last_name\":\"Lee\"}")
    post /users/verify-email "{\"token\":\"$(member verification_token <<<"$made")\"}" >/dev/null
    echo "$(member user_id <<<"$made") $(post /auth/login "$who}" | member access_token)"
}
read -r _ buyer < <(join bea)
read -r seller_id seller < <(join sam)
post /users/upgrade-to-seller \
    '{"business_name":"Looms","business_address":"7 Weavers Lane","business_phone":"+84 24 3926 0000"}' \
    "$seller" >/dev/null
post "/admin/sellers/$seller_id/verify" '{}' "$admin" >/dev/null

# No check is excluded. What differs from their defaults, and why:
cat >"$folder/schemathesis.toml" <<'END'
# What a request says can fit the schema and still be refused: for the state of things (409, 410, 412,
# 428), after too many wrong passwords (429), or by a rule that no schema says, such as a price that has changed or a key that was used for
# another request (422). A request that fits must not be malformed (400) or fail (5xx).
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "304", "401", "403", "404", "409", "410", "412", "422", "428", "429"]

# The version a change rests on, and whether somebody may make it, are looked at before its body.
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "409", "412", "413", "414", "415", "422", "428", "5xx"]

# What only the service gives out cannot be made up: any other text is rightly refused. The mutated
# requests of the black-box suite try those.
[parameters]
"query.cursor" = ""
"query.min_position" = "0:0"
"query.after" = "0:0"

# At least one of three parameters is needed, which OpenAPI cannot say.
[[operations]]
include-path = "/api/v1/events/await"
parameters = { "query.correlationId" = "schemathesis", "query.timeout" = 0, "query.after" = "" }

# A version here, where others are behind a position.
[[operations]]
include-path = "/api/v1/admin/aggregates/{aggregate_type}/{id}/history"
parameters = { "query.after" = 0 }

# Their answers have no end. The black-box tests know them well.
[[operations]]
include-path-regex = "^/api/v1/(events|admin/sagas)/stream$"
enabled = false

# They do what they are asked: the token that asks would be over, or that of another run.
[[operations]]
include-path-regex = "^/api/v1/(auth/logout|users/me/sessions/|admin/users/.*/suspend)"
enabled = false
[[operations]]
include-name = "DELETE /api/v1/users/{id}"
enabled = false

# They do what they are asked: move the clock until every token is over, and break the service.
[[operations]]
include-path-regex = "^/api/v1/dev/(clock|faults)"
enabled = false
END

run() { # role, token
    cd "$folder" && "$SCHEMATHESIS" --config-file "$folder/schemathesis.toml" run \
        "$url/openapi.json" --checks all --phases examples,coverage,fuzzing,stateful \
        --max-examples "$examples" --seed "$seed" --continue-on-failure \
        --suppress-health-check all --no-color --warnings off --generation-database none \
        -H "Authorization: Bearer $2" >"$folder/as-$1" 2>&1
}
# At once: each keeps one core busy at most, and whoever else is there must not matter.
run buyer "$buyer" & buyers=$!
run seller "$seller" & sellers=$!
run admin "$admin" & admins=$!

failed=0
ended() { # role, process
    local status=0
    wait "$2" || status=$?
    if [ "$status" -eq 0 ]; then
        echo "as $1: $(grep -A1 '^Test cases:' "$folder/as-$1" | tail -n 1 | xargs)"
    else
        failed=1
        echo "-- as $1 --"
        cat "$folder/as-$1"
    fi
}
ended buyer "$buyers"
ended seller "$sellers"
ended admin "$admins"

kill -0 "$server" || { echo "schemathesis: the server has ended" >&2; failed=1; }
if grep -i panicked "$folder/log"; then failed=1; fi
exit "$failed"
