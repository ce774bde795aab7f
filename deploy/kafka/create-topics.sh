#!/bin/bash
# Creates the worker's topics where they are missing, on the broker at BOOTSTRAP.
set -euo pipefail

days() { echo $(($1 * 24 * 3600 * 1000)); }

create() {
  local topic=$1 partitions=$2 retention=$3
  /opt/kafka/bin/kafka-topics.sh --bootstrap-server "$BOOTSTRAP" --create --if-not-exists \
    --topic "$topic" --partitions "$partitions" --replication-factor 1 --config "retention.ms=$retention" "${@:4}"
}

# State is rebuilt from the last 5 days of vitals (rebuild_horizon_h) and from the alerts beside them, which
# have the same key and so need the same number of partitions.
create vitals 8 "$(days 10)"
create risk-alerts 8 "$(days 90)"
create risk-scores 8 "$(days 10)"
create dead-letters 1 "$(days 30)"
create alert-feedback 8 "$(days 90)"
# A record may hold a picture: up to imaging_max_record_bytes.
create imaging 8 "$(days 10)" --config max.message.bytes=12582912
create findings 8 "$(days 90)"
# Every version of a policy has a key of its own, so compaction keeps them all.
create policies 1 -1 --config cleanup.policy=compact
# What a shadow says, for nobody to act on; its alerts are read back like the served ones.
create shadow-alerts 8 "$(days 90)"
create shadow-scores 8 "$(days 10)"
create shadow-dead-letters 1 "$(days 30)"
