# The image: docker build --tag genlab . && docker run genlab model=vae model.kl_weight=4
#
#   BASE_IMAGE   any with Python >= 3.11 and apt; for GPUs the slim one does too, since torch brings
#                its own CUDA libraries
#   TORCH_INDEX  where torch comes from; empty for PyPI, which has it for CUDA alone
#   UID, GID     of the user in the image, who owns /app/runs
#   EXTRAS       of pyproject.toml: all but ray are in requirements.lock
ARG BASE_IMAGE=python:3.12-slim@sha256:78387bc3881b8273120a12ebe6c1ab22b018ccc2c9adf565ae1ac9b536e184ea

FROM ${BASE_IMAGE} AS packages
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS="video search"
ENV PATH=/opt/genlab/bin:$PATH
RUN python3 -m venv /opt/genlab
WORKDIR /build
COPY locked.py pyproject.toml requirements.lock requirements-torch.lock ./
# By hash all but torch, and only what genlab needs with EXTRAS. setuptools comes first: it builds
# antlr4-python3-runtime, which has no wheel. The secret is optional: a pip.conf for those who reach
# the index through a proxy.
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pipconf,target=/etc/pip.conf \
    python locked.py setuptools > setuptools.lock \
    && python locked.py "genlab[${EXTRAS}]" > image.lock \
    && pip install --require-hashes --no-deps --requirement setuptools.lock \
    && pip install --require-hashes --no-deps --no-build-isolation --requirement image.lock \
    && pip install --requirement requirements-torch.lock \
       ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} \
    && pip check

FROM packages AS project
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pipconf,target=/etc/pip.conf \
    python locked.py hatchling > hatchling.lock \
    && pip install --require-hashes --no-deps --requirement hatchling.lock \
    && pip install --no-deps --no-build-isolation --prefix /project .

FROM ${BASE_IMAGE}
ARG UID=10001
ARG GID=10001
ARG REVISION=unknown
LABEL org.opencontainers.image.title="genlab" \
      org.opencontainers.image.description="Generative image models whose knobs can be compared" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
# tini is process 1: it hands signals on, and a training that is told to stop writes a checkpoint.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid "${GID}" genlab \
    && useradd --uid "${UID}" --gid "${GID}" --create-home genlab \
    && install --directory --owner="${UID}" --group="${GID}" /app /app/runs /app/data
# Two layers, so that a change of the code does not send the packages again.
COPY --from=packages /opt/genlab /opt/genlab
COPY --from=project /project /opt/genlab
WORKDIR /app
COPY train.py sweep.py ./
# Everything that is written outside of runs/ goes to /tmp, so that the rest can be read-only.
ENV PATH=/opt/genlab/bin:$PATH \
    GENLAB_REVISION="${REVISION}" \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor
USER ${UID}:${GID}
VOLUME ["/app/runs", "/app/data"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "python", "train.py"]
# With no network: the comparison of three KL weights on the images inside the package.
CMD ["-m", "experiment=vae/kl_weight", "model.kl_weight=0,1,30", "launcher=process", "logger=none"]
