#!/bin/sh
# Live or simulated feeds? Whoever comes first says so for as long as the cluster's data lives, so that the two never
# mix; docker-compose.yml calls this. FEEDS is in ARB_CONFIG of all services, so that none starts before it is there.
#
#   feeds.sh simulated COMMAND...    says "simulated", then runs the simulator, which writes FEEDS
#   feeds.sh                         says "live" if nothing was said, and writes FEEDS. Was "simulated" said, the simulator
#                                    must run: ends 1 if it does not
#
# FEEDS       the settings file; what was said stands beside it
# SIMULATOR   where the simulator says how it is
set -eu

said=$(dirname "$FEEDS")/said
anew='begin anew, without that data: docker compose --profile "*" down -v'

say() { # only if nothing was said
    (set -C && echo "$1" >"$said") 2>/dev/null || [ -s "$said" ] || { echo "feeds: cannot write $said" >&2 && exit 2; }
}

if [ "${1:-}" = simulated ]; then
    shift
    say simulated
    if [ "$(cat "$said")" != simulated ]; then
        echo "feeds: this cluster's data is live and stays so. For simulated feeds $anew" >&2
        exit 2
    fi
    exec "$@"
fi

say live
if [ "$(cat "$said")" = live ]; then
    echo "# Live public feeds: see deploy/feeds.sh." >"$FEEDS"
elif [ ! -s "$FEEDS" ] || ! python -m services.cli.health --url "$SIMULATOR" >/dev/null; then
    echo "feeds: this cluster's data is simulated, and its simulator does not run. Go on with it:" \
        "docker compose --profile sim up -d. For live feeds $anew" >&2
    exit 1
fi
echo "feeds: $(cat "$said")"
