# syntax=docker/dockerfile:1
#
# docker build -t inferwire .
# docker run --rm -p 50051:50051 --read-only --cap-drop ALL inferwire
#
# It serves without encryption and without keys on all addresses of the container: publish the port to those you trust,
# or mount an inferwire.toml of your own into /etc/inferwire. It writes nothing, so the root may be read-only without
# any tmpfs. docs/kubernetes.md has the arguments. What the steps do lies in deploy/container, and `make check-image`
# builds and tries all of it without Docker.
#
# A package index of your own is handed in with --secret id=pip,src=pip.conf; where it has an authority of its own, too,
# with --secret id=ca,src=ca.pem and `cert = /run/ca.pem` in pip.conf.

ARG BASE=debian:trixie-slim
ARG BUILD_BASE=${BASE}

FROM ${BASE} AS runtime
RUN --mount=type=bind,source=deploy/container/runtime.sh,target=/tmp/runtime.sh sh /tmp/runtime.sh

FROM ${BUILD_BASE} AS build
WORKDIR /src
ENV PIP_CACHE_DIR=/var/cache/pip
COPY deploy/container/build-tools.sh deploy/container/
RUN deploy/container/build-tools.sh
# Minutes of compiling: before the sources, so that a change of ours does not repeat it.
COPY requirements requirements
COPY deploy/container/install-packages.sh deploy/container/
# Replaces the flags for any processor, such as -DGGML_CUDA=ON.
ARG CMAKE_ARGS=
RUN --mount=type=cache,target=/var/cache/pip \
    --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca,target=/run/ca.pem \
    deploy/container/install-packages.sh requirements
COPY LICENSE README.md pyproject.toml ./
COPY service service
COPY clients/python clients/python
COPY deploy/container deploy/container
RUN deploy/container/install-inferwire.sh . && deploy/container/prune.sh requirements
# The list of what the image holds is made from what lies in it.
COPY --from=runtime /etc/os-release /runtime/etc/os-release
COPY --from=runtime /var/lib/dpkg /runtime/var/lib/dpkg
RUN --mount=type=cache,target=/var/cache/pip \
    --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca,target=/run/ca.pem \
    deploy/container/list-contents.sh requirements /runtime /opt/inferwire/sbom.cdx.json

FROM runtime
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="inferwire" \
      org.opencontainers.image.description="A gRPC service for LLM inference: local GGUF models and remote providers behind one contract." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY deploy/container/inferwire.toml /etc/inferwire/inferwire.toml
COPY --from=build /opt/inferwire /opt/inferwire
# The probe's own port is in the clear and on this address only, whatever the settings say of TLS and keys.
ENV PATH=/opt/inferwire/bin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    INFERWIRE_PROBE_ADDRESS=127.0.0.1:50052
USER 10001:10001
WORKDIR /etc/inferwire
EXPOSE 50051
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["inferwire", "health", "--address", "127.0.0.1:50052", "--plaintext", "--service", "readiness"]
ENTRYPOINT ["inferwire"]
CMD ["serve"]
