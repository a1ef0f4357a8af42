#!/usr/bin/env bash
# Create Arbiter's topics with Kafka's own command, inside the image apache/kafka (docker-compose.yml runs it once
# before the services start). The table is that of shared/topics.py: tests/shared/test_topics.py holds the two equal.
#
#   BOOTSTRAP=kafka-1:19092 BROKERS=3 ./kafka-topics.sh
#
# BOOTSTRAP        where the cluster is                       (default localhost:9092)
# BROKERS          how many brokers it has                    (default 1): copies and min.insync.replicas follow it
# KAFKA_BIN        folder of Kafka's commands                 (default /opt/kafka/bin)
# COMMAND_CONFIG   file of client settings for SASL and TLS   (default none)
# WAIT_S           how long to try again while there are too few brokers (default 0)
# DRY_RUN          set: print the commands, run none
set -euo pipefail

BOOTSTRAP=${BOOTSTRAP:-localhost:9092}
BROKERS=${BROKERS:-1}
WAIT_S=${WAIT_S:-0}
KAFKA_BIN=${KAFKA_BIN:-/opt/kafka/bin}

case $BROKERS in
'' | *[!0-9]* | 0) echo "kafka-topics.sh: BROKERS must be a whole number from 1 on, not '$BROKERS'" >&2; exit 2 ;;
esac
case $WAIT_S in
'' | *[!0-9]*) echo "kafka-topics.sh: WAIT_S must be a whole number of seconds, not '$WAIT_S'" >&2; exit 2 ;;
esac

COPIES=$((BROKERS < 3 ? BROKERS : 3))
HOUR=3600000
DAY=$((24 * HOUR))
TICKS='segment.ms=300000 segment.bytes=67108864 retention.bytes=536870912'

KAFKA_TOPICS=("$KAFKA_BIN/kafka-topics.sh" --bootstrap-server "$BOOTSTRAP")
[ -n "${COMMAND_CONFIG:-}" ] && KAFKA_TOPICS+=(--command-config "$COMMAND_CONFIG")

patiently() { # Kafka's command, again until it works or WAIT_S is over; what it says is shown if it never does
    local said
    until said=$("${KAFKA_TOPICS[@]}" "$@" 2>&1); do
        if [ "$SECONDS" -ge "$WAIT_S" ]; then
            printf '%s\n' "$said" "kafka-topics.sh: gave up after $SECONDS s: are $BROKERS brokers up at $BOOTSTRAP?" >&2
            return 3
        fi
        sleep 1
    done
    printf '%s\n' "$said"
}

min_isr() { # wanted on three brokers -> possible on this cluster
    local possible=$((BROKERS - 1))
    [ "$possible" -lt 1 ] && possible=1
    echo $(($1 < possible ? $1 : possible))
}

create() { # name, partitions, retention in ms, min.insync.replicas on three brokers, further settings
    local name=$1 partitions=$2 retention=$3 isr
    isr=$(min_isr "$4")
    shift 4
    local command=(--create --if-not-exists --topic "$name" --partitions "$partitions" --replication-factor "$COPIES")
    local setting
    for setting in cleanup.policy=delete "retention.ms=$retention" "min.insync.replicas=$isr" "$@"; do
        command+=(--config "$setting")
    done
    if [ -n "${DRY_RUN:-}" ]; then
        echo "${KAFKA_TOPICS[*]} ${command[*]}"
    elif grep -qxF "$name" <<<"$EXISTING"; then
        echo "$name is there"
    else # needs as many brokers as copies: the first one to be created waits for them
        patiently "${command[@]}" >/dev/null
        echo "$name created"
    fi
}

EXISTING=
[ -n "${DRY_RUN:-}" ] || EXISTING=$(patiently --list) # each command is a Java machine of its own: one instead of many

for exchange in binance coinbase kraken bybit okx; do
    # shellcheck disable=SC2086  # several settings in one variable, on purpose
    create "tick-data-$exchange" 16 "$HOUR" 1 $TICKS
done
# shellcheck disable=SC2086
create fx-rates 1 "$HOUR" 1 $TICKS
create arbitrage-opportunities 8 $((7 * DAY)) 2
create arbitrage-rejections 8 "$DAY" 1
create ai-trading-decisions 8 $((30 * DAY)) 2
create opportunity-outcomes 8 $((30 * DAY)) 2
create decision-audit 8 $((7 * DAY)) 1
create tick-data.dlq 1 $((30 * DAY)) 2
create fx-rates.dlq 1 $((30 * DAY)) 2
create arbitrage-opportunities.dlq 8 $((30 * DAY)) 2
