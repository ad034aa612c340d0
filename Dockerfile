# One image for the Prefect server, its services and the workers. PyTorch from the index carries its own CUDA, so the
# same image runs on a CPU and, with NVIDIA's container toolkit on the host, on a GPU.
FROM python:3.11.13-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE NOTICE ./
COPY flows flows
COPY captioning captioning
COPY reid reid
COPY data data
# EXTRAS=server,ray for the pods of a Ray cluster (deploy/kuberay).
ARG EXTRAS=server
RUN /opt/venv/bin/pip install --constraint requirements.lock ".[$EXTRAS]"

FROM python:3.11.13-slim-bookworm
# OpenMP for torch; nothing else is missing from the slim image.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 clip \
    && useradd --uid 10001 --gid clip --create-home --shell /usr/sbin/nologin clip \
    && install --directory --owner clip --group clip /artifacts /data
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DO_NOT_TRACK=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    CLIP_SCGI_HOME=/artifacts
USER clip
WORKDIR /home/clip
VOLUME /artifacts
CMD ["clip-scgi", "--help"]
