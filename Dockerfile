# syntax=docker/dockerfile:1
#
# docker build -t inferwire .
# docker run --rm -p 50051:50051 inferwire
#
# It serves without encryption and without keys on all addresses of the container: publish the port to those you trust.

ARG BASE=python:3.13-slim-bookworm

FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/inferwire
ENV PATH=/opt/inferwire/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1

# The compiler must not tune for the machine that builds: the image would die of an illegal instruction on an older one.
# For arm64, build with --build-arg CMAKE_ARGS=-DGGML_NATIVE=OFF.
ARG CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON"
ENV CMAKE_ARGS=${CMAKE_ARGS}

# Minutes of compiling: before the sources, so that a change of ours does not repeat it.
WORKDIR /src
COPY requirements requirements
RUN pip install --require-hashes --no-deps -r requirements/build.txt
RUN CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) \
    pip install --require-hashes --no-deps --no-build-isolation -r requirements/run.txt

COPY LICENSE README.md pyproject.toml ./
COPY service service
COPY clients/python clients/python
# llama-cpp-python installs its libraries twice; llama_cpp/lib is where it loads them from.
RUN pip install --no-deps --no-build-isolation ./clients/python . \
    && pip uninstall --yes cmake editables hatchling ninja scikit-build-core \
    && cd /opt/inferwire/lib/python3.*/site-packages \
    && rm -rf lib include bin

FROM ${BASE}
# What the engine was compiled against: OpenMP, and the C++ library.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 libstdc++6 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home inferwire
COPY --from=build /opt/inferwire /opt/inferwire
ENV PATH=/opt/inferwire/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
WORKDIR /home/inferwire
EXPOSE 50051
STOPSIGNAL SIGTERM
ENTRYPOINT ["inferwire", "serve", "--address", "0.0.0.0:50051", "--insecure"]
