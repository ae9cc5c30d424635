# docker build -t avssl .                                    for CPUs
# docker build -t avssl:cuda --build-arg TORCH_BACKEND=cu130 .   for NVIDIA GPUs: the wheels bring CUDA, the host its driver
# docs/containers.md says how to run it.
ARG PYTHON=python:3.13-slim

FROM ${PYTHON} AS build
# What uv calls the builds of PyTorch: cpu, cu130, auto, ... Empty: the build that the package index has.
ARG TORCH_BACKEND=cpu
ARG EXTRAS=eval,hub,lance,s3,scenes,tensorboard,timm,transformers
COPY . /src
RUN python3 -m venv /opt/avssl \
 && /opt/avssl/bin/python -m pip install --no-cache-dir uv==0.* \
 && UV_NO_CACHE=1 /opt/avssl/bin/uv pip install --python /opt/avssl/bin/python --compile-bytecode \
      ${TORCH_BACKEND:+--torch-backend="${TORCH_BACKEND}"} "/src[${EXTRAS}]"

FROM ${PYTHON}
COPY --from=build /opt/avssl /opt/avssl
ENV PATH=/opt/avssl/bin:$PATH \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Media of strangers are decoded here: not as root.
RUN useradd --create-home --uid 1000 avssl
USER 1000
WORKDIR /work
ENTRYPOINT ["avssl"]
CMD ["--help"]
