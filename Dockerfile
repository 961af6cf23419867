# lm_eval_aft with transformers on a CPU, and with servers (engine=api). Not built yet: hadolint passes on this file.
#   docker build --build-arg VERSION=0.1.0 --tag lm_eval_aft .
#   docker run --rm --volume "$PWD/out:/work/out" lm_eval_aft lm_eval --model aft ...
FROM python:3.12-slim

# The tag is not in the image. Without VERSION the version is fallback-version of pyproject.toml.
ARG VERSION
ENV SETUPTOOLS_SCM_PRETEND_VERSION=${VERSION} \
    PIP_NO_CACHE_DIR=1 \
    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

WORKDIR /source
COPY . .
RUN pip install --constraint constraints.txt '.[alpaca,ifeval,report]'

RUN useradd --create-home --uid 10001 aft && mkdir /work && chown aft /work
USER 10001
WORKDIR /work
CMD ["aft", "--help"]
