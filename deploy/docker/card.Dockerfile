# The image of Dockerfile, and what decodes JPEGs on its GPU: for repositories that were built with PREPROCESS=gpu. It needs
# this project's wheel, which `make wheel` lays there for the first of the two.
#
#   make wheel
#   docker build --tag cnclip-triton deploy/docker
#   docker build --tag cnclip-triton-card --file deploy/docker/card.Dockerfile deploy/docker
ARG IMAGE=cnclip-triton
FROM ${IMAGE}

USER root
COPY card-requirements.txt /opt/cnclip/
RUN python3 -m pip install --no-cache-dir --no-deps --break-system-packages \
        --requirement /opt/cnclip/card-requirements.txt \
    # NVRTC compiles without a GPU: what is missing is found here, and not when a server starts.
    && python3 -c 'from cnclip_card._cuda import compile_kernels; compile_kernels("90"); from nvidia import nvimgcodec'
# For serve.sh.
ENV CNCLIP_DECODES_ON_GPU=1
USER 1000:1000
