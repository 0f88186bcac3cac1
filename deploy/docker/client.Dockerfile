# The client alone, for jobs beside a server: no Triton, no torch.
#
#   make wheel
#   docker build --tag cnclip-client:0.1.0 --file deploy/docker/client.Dockerfile deploy/docker
FROM python:3.12-slim

COPY wheels /opt/cnclip/wheels
RUN python -m pip install --no-cache-dir "$(ls /opt/cnclip/wheels/*.whl)[parquet,remote]" && cnclip --version

ENV PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
CMD ["cnclip", "--help"]
