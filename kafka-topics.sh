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
# DRY_RUN          set: print the commands, run none
set -euo pipefail

BOOTSTRAP=${BOOTSTRAP:-localhost:9092}
BROKERS=${BROKERS:-1}
KAFKA_BIN=${KAFKA_BIN:-/opt/kafka/bin}

case $BROKERS in
'' | *[!0-9]* | 0) echo "kafka-topics.sh: BROKERS must be a whole number from 1 on, not '$BROKERS'" >&2; exit 2 ;;
esac

COPIES=$((BROKERS < 3 ? BROKERS : 3))
HOUR=3600000
DAY=$((24 * HOUR))
TICKS='segment.ms=300000 segment.bytes=67108864 retention.bytes=536870912'

min_isr() { # wanted on three brokers -> possible on this cluster
    local possible=$((BROKERS - 1))
    [ "$possible" -lt 1 ] && possible=1
    echo $(($1 < possible ? $1 : possible))
}

create() { # name, partitions, retention in ms, min.insync.replicas on three brokers, further settings
    local name=$1 partitions=$2 retention=$3 isr
    isr=$(min_isr "$4")
    shift 4
    local command=("$KAFKA_BIN/kafka-topics.sh" --bootstrap-server "$BOOTSTRAP")
    [ -n "${COMMAND_CONFIG:-}" ] && command+=(--command-config "$COMMAND_CONFIG")
    command+=(--create --if-not-exists --topic "$name" --partitions "$partitions" --replication-factor "$COPIES")
    local setting
    for setting in cleanup.policy=delete "retention.ms=$retention" "min.insync.replicas=$isr" "$@"; do
        command+=(--config "$setting")
    done
    if [ -n "${DRY_RUN:-}" ]; then
        echo "${command[*]}"
    else
        "${command[@]}"
    fi
}

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
