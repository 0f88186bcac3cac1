#!/bin/sh
# Starts tritonserver as `cnclip-serve` does: complete configs, a server that is ready when all its models are, and the
# shared-memory, trace and logging APIs closed unless CNCLIP_ADMIN_KEY opens them. Arguments go to tritonserver.
set -eu
: "${CNCLIP_ADMIN_KEY:=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')}"
restricted="shared-memory,trace,logging:admin-key=$CNCLIP_ADMIN_KEY"
unset CNCLIP_ADMIN_KEY # the Python models need not know it
exec tritonserver \
  --disable-auto-complete-config \
  --strict-readiness=true \
  --exit-timeout-secs="${CNCLIP_EXIT_TIMEOUT_SECS:-30}" \
  --allow-metrics=true \
  --grpc-restricted-protocol="$restricted" \
  --http-restricted-api="$restricted" \
  "$@"
