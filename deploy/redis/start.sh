#!/bin/sh
# Starts redis-server with one user, "riskstream", who may touch the worker's keys and nothing else.
# REDIS_PASSWORD is that user's password. Only its digest is written down, to RUN_DIRECTORY, which is a tmpfs
# in docker-compose.yml. Arguments go to redis-server.
set -eu
umask 077

: "${REDIS_PASSWORD:?set it to the password of the riskstream user}"
acl="${RUN_DIRECTORY:-/run/redis}/users.acl"
digest=$(printf '%s' "$REDIS_PASSWORD" | sha256sum | cut -d ' ' -f 1)
unset REDIS_PASSWORD

cat >"$acl" <<ACL
user default off
user riskstream on #$digest resetkeys ~riskstream:* resetchannels -@all +@connection +@read +@write +@scripting -@dangerous +info
ACL

# A cache that evicted a patient would make the worker read the log again without need: refuse writes instead.
exec redis-server --aclfile "$acl" --appendonly yes --maxmemory-policy noeviction "$@"
