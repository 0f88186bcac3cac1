#!/bin/sh
# Starts tritonserver as `cnclip-serve` does: complete configs, and the shared-memory, trace and logging APIs closed unless
# CNCLIP_ADMIN_KEY opens them. Arguments go to tritonserver. It answers nothing before its models are loaded, and is ready from
# then on: with strict readiness every server that polls would be taken out of service at once while it loads a version
# more, and for as long as one cannot be loaded, although the others are served.
# CNCLIP_GRPC_CONNECTION_SECONDS has gRPC's connections end after so long: clients look the server's name up again, and
# find those that were added. Requests under way come to their end first.
# CNCLIP_DECODES_ON_GPU, which card.Dockerfile sets, has images stay on the GPU that decodes them: room there, and no pinned
# memory, to which Triton would copy them wrongly where there is none.
set -eu
: "${CNCLIP_ADMIN_KEY:=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')}"
restricted="shared-memory,trace,logging:admin-key=$CNCLIP_ADMIN_KEY"
unset CNCLIP_ADMIN_KEY # the Python models need not know it
if [ -n "${CNCLIP_GRPC_CONNECTION_SECONDS:-}" ]; then
  set -- --grpc-max-connection-age="$((CNCLIP_GRPC_CONNECTION_SECONDS * 1000))" "$@"
fi
if [ -n "${CNCLIP_DECODES_ON_GPU:-}" ]; then
  for gpu in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
    set -- --cuda-memory-pool-byte-size="$gpu:268435456" "$@"
  done
  set -- --pinned-memory-pool-byte-size=0 "$@"
fi
# For probe.py, which may be told to end a server that is beyond help; exec keeps the number. What it remembers is of the
# server before.
rm -f "${TMPDIR:-/tmp}"/cnclip-probe-* || true
echo $$ >"${TMPDIR:-/tmp}/cnclip-tritonserver.pid" || true
exec tritonserver \
  --disable-auto-complete-config \
  --strict-readiness=false \
  --exit-timeout-secs="${CNCLIP_EXIT_TIMEOUT_SECS:-30}" \
  --allow-metrics=true \
  --grpc-restricted-protocol="$restricted" \
  --http-restricted-api="$restricted" \
  "$@"
