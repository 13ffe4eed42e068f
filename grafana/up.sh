#!/usr/bin/env bash
# Watches a Souk on this machine: Prometheus, and Grafana where it is installed, on loopback, with
# their data in a folder that is removed at the end. Stop it with Ctrl-C.
#
#   bash grafana/up.sh
#
# SOUK              where the service is     http://127.0.0.1:8080
# SOUK_CA_FILE      who vouches for it, where it speaks TLS with a certificate that this machine
#                   does not trust
# PROMETHEUS_ADDR   where to serve           127.0.0.1:9090
# GRAFANA_ADDR                               127.0.0.1:3000
# GRAFANA_HOME      its own files            /usr/share/grafana
# SCRAPE_INTERVAL   how often to look        5s
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
souk=${SOUK:-http://127.0.0.1:8080}
prometheus=${PROMETHEUS_ADDR:-127.0.0.1:9090}
grafana=${GRAFANA_ADDR:-127.0.0.1:3000}
interval=${SCRAPE_INTERVAL:-5s}

command -v prometheus >/dev/null || {
    echo "up: Prometheus is not installed: apt-get install --no-install-recommends prometheus" >&2
    exit 1
}

folder=$(mktemp -d)
children=()
finish() {
    trap - EXIT
    for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
    wait || true
    rm -rf "$folder"
}
trap finish EXIT
trap 'exit 0' INT TERM

# The same configuration, for this address and interval.
target=${souk#*://}
scheme=http
[[ $souk == https://* ]] && scheme=https
scrape="    scheme: $scheme"
[ -n "${SOUK_CA_FILE:-}" ] && scrape+="\\n    tls_config: { ca_file: \"$(realpath "$SOUK_CA_FILE")\" }"
sed -e "s|^    scheme: http\$|$scrape|" \
    -e "s|127\.0\.0\.1:8080|${target%%/*}|" \
    -e "s|_interval: .*|_interval: $interval|" \
    -e "s|alerts/|$here/alerts/|" "$here/prometheus.yml" >"$folder/prometheus.yml"
prometheus --config.file="$folder/prometheus.yml" --storage.tsdb.path="$folder/data" \
    --web.listen-address="$prometheus" --log.level=warn &
children+=($!)
echo "Prometheus: http://$prometheus (alerts: http://$prometheus/alerts), scrapes $souk"

# Debian's and Grafana's own packages call it by different names.
server=$(command -v grafana-server || command -v grafana || true)
if [ -n "$server" ]; then
    home=${GRAFANA_HOME:-/usr/share/grafana}
    export SOUK_PROMETHEUS_URL="http://$prometheus" SOUK_DASHBOARDS="$here/dashboards"
    export GF_PATHS_DATA="$folder/grafana" GF_PATHS_LOGS="$folder/grafana/log" \
        GF_PATHS_PROVISIONING="$here/provisioning" \
        GF_SERVER_HTTP_ADDR="${grafana%:*}" GF_SERVER_HTTP_PORT="${grafana##*:}" \
        GF_AUTH_ANONYMOUS_ENABLED=true GF_AUTH_ANONYMOUS_ORG_ROLE=Viewer \
        GF_ANALYTICS_REPORTING_ENABLED=false GF_ANALYTICS_CHECK_FOR_UPDATES=false
    words=("$server" --homepath "$home")
    [ "$(basename "$server")" = grafana ] && words=("$server" server --homepath "$home")
    "${words[@]}" >"$folder/grafana.log" 2>&1 &
    children+=($!)
    grafana_process=$!
    echo "Grafana: http://$grafana/d/souk-market"
else
    echo "Grafana is not installed: https://grafana.com/grafana/download. Elsewhere, import grafana/dashboards/*.json."
fi

# One that ends takes the others along. Prometheus says here why it does; Grafana's words are in a file
# that goes with the folder.
wait -n || true
if [ -n "${grafana_process:-}" ] && ! kill -0 "$grafana_process" 2>/dev/null; then
    echo "up: Grafana ended (its files are looked for in GRAFANA_HOME, $home). It said at last:" >&2
    tail -n 20 "$folder/grafana.log" | sed 's/^/    /' >&2
    exit 1
fi
echo "up: Prometheus ended; $folder is removed" >&2
exit 1
