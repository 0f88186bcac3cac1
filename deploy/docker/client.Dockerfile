# What asks the server: `cnclip` and its jobs, and `cnclip-gateway` (--entrypoint cnclip-gateway). No torch and no Triton.
#
#   make wheel
#   docker build --tag cnclip-client --file deploy/docker/client.Dockerfile .
#   docker run --rm --network host --user "$(id -u):$(id -g)" --volume "$PWD:/work" cnclip-client \
#     extract images photos/ --output photos.parquet --url localhost:8001
#
# EXTRAS chooses what is installed beside the client itself: with `--build-arg EXTRAS=parquet,ray` it is an image for the
# nodes of a Ray cluster.
FROM python:3.12-slim-bookworm
ARG EXTRAS=parquet,search,report,remote,prepare,gateway

COPY constraints.txt deploy/docker/wheels/*.whl /opt/cnclip/
RUN python3 -m pip install --no-cache-dir --constraint /opt/cnclip/constraints.txt \
        "cn-clip-triton[${EXTRAS}] @ file://$(ls /opt/cnclip/*.whl)" \
    && cnclip --version

# Paths and texts are Chinese as often as not. Whoever runs it with another user has a home that can be written to.
ENV PYTHONUTF8=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
WORKDIR /work
USER 1000:1000
# A job that is stopped goes on when it is started again.
STOPSIGNAL SIGINT
ENTRYPOINT ["cnclip"]
CMD ["--help"]
