# The Dreamgrid image. A Prefect worker (Docker, Kubernetes, ECS) starts it with a command of its own, for example
# `prefect flow-run execute`. The entry point of the deployments is flows/form.py:dream_from_form, in /app.
# The CUDA libraries come with PyTorch's wheels and the driver comes from the host, so the base is a plain Python image.
#
# The root file system may be read-only. Only the home folder must be writable. For example, to run a job:
#   docker run --gpus all --read-only --tmpfs /home/dreamgrid:exec,uid=10001 --env-file aws.env dreamgrid \
#       dreamgrid run --source s3://photos/ --destination s3://dreams/nightly/
#
# A tag can move. To pin the base image, look up its digest and build with it:
#   docker buildx imagetools inspect python:3.11-slim-bookworm
#   docker build --build-arg BASE=python:3.11-slim-bookworm@sha256:... -t dreamgrid .
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# Index of another PyTorch build, for example for an older driver; pytorch.org's install page shows its address.
ARG TORCH_INDEX=
# Extras of the package, such as `ray`, `video` or `heic,jxl`.
ARG EXTRAS=
WORKDIR /app
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY pyproject.toml constraints.txt LICENSE ./
# Install the dependencies before the sources are copied, so that this layer of several GB changes only with
# pyproject.toml and constraints.txt. The installed `dreamgrid` points at /app, where the next stage copies the sources.
# DL3013: constraints.txt pins every version, except those of a PyTorch build selected with TORCH_INDEX.
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip \
    mkdir dreamcore flows && touch README.md dreamcore/__init__.py flows/__init__.py \
    && if [ -n "$TORCH_INDEX" ]; then \
        pip install torch torchvision --index-url "$TORCH_INDEX" \
        && sed -i -E '/^(torch|torchvision|triton|cuda-[a-z-]+|nvidia-[a-z0-9-]+)==/d' constraints.txt \
        && pip list --format=freeze > installed.txt \
        && grep -E '^(torch|torchvision)==' installed.txt >> constraints.txt; \
    fi \
    && pip install -c constraints.txt -e ".${EXTRAS:+[$EXTRAS]}" \
    && pip check

FROM ${BASE}
# FriBidi lets Pillow join the letters of Arabic and Indic names on contact sheets.
# DL3008: any version of the base image's distribution will do.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libfribidi0 && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --user-group --create-home dreamgrid
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY dreamcore/ dreamcore/
COPY flows/ flows/
# Caches, Prefect's files and temporary files are all below HOME. The bundled network's weights are a package in /opt/venv.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/home/dreamgrid \
    USER=dreamgrid \
    TMPDIR=/home/dreamgrid \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
CMD ["dreamgrid", "--help"]
