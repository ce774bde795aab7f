# syntax=docker/dockerfile:1
# The worker's image. Targets: `cpu` (default in docker-compose.yml), `imaging` (for pictures, with DICOM) and
# `gpu`, on NVIDIA's TensorRT image.
#
#   docker build --target cpu -t riskstream:0.1.0-cpu .
#   docker build --target imaging -t riskstream:0.1.0-imaging .
#   docker build --target gpu -t riskstream:0.1.0-gpu .

# The wheel, without the tools that made it.
FROM python:3.12.11-slim-bookworm@sha256:519591d6871b7bc437060736b9f7456b8731f1499a57e22e6c285135ae657bf7 AS wheel
WORKDIR /source
RUN pip install --no-cache-dir build==1.3.0
COPY pyproject.toml README.md ./
COPY schemas schemas
COPY engines engines
COPY worker worker
RUN python -m build --wheel --outdir /wheel

FROM python:3.12.11-slim-bookworm@sha256:519591d6871b7bc437060736b9f7456b8731f1499a57e22e6c285135ae657bf7 AS cpu-venv
RUN python -m venv /opt/riskstream
COPY --from=wheel /wheel /wheel
RUN /opt/riskstream/bin/pip install --no-cache-dir /wheel/*.whl

FROM python:3.12.11-slim-bookworm@sha256:519591d6871b7bc437060736b9f7456b8731f1499a57e22e6c285135ae657bf7 AS cpu
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin riskstream
COPY --from=cpu-venv /opt/riskstream /opt/riskstream
ENV PATH=/opt/riskstream/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RISKSTREAM_HTTP_HOST=0.0.0.0 \
    RISKSTREAM_HTTP_PORT=8080
USER 10001
EXPOSE 8080
# Its checks run side by side, each for at most 10 s.
HEALTHCHECK --interval=30s --timeout=40s --start-period=90s --retries=3 CMD ["riskstream", "check", "--timeout", "10"]
ENTRYPOINT ["riskstream"]
CMD ["run"]

# The imaging role's, with the decoders of DICOM; one of them is under the GPL 3.
FROM cpu-venv AS imaging-venv
RUN wheel=$(echo /wheel/*.whl) \
    && /opt/riskstream/bin/pip install --no-cache-dir "riskstream[dicom] @ file://$wheel"

FROM python:3.12.11-slim-bookworm@sha256:519591d6871b7bc437060736b9f7456b8731f1499a57e22e6c285135ae657bf7 AS imaging
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin riskstream
COPY --from=imaging-venv /opt/riskstream /opt/riskstream
ENV PATH=/opt/riskstream/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RISKSTREAM_HTTP_HOST=0.0.0.0 \
    RISKSTREAM_HTTP_PORT=8080
USER 10001
EXPOSE 8080
# Its checks run side by side, each for at most 10 s.
HEALTHCHECK --interval=30s --timeout=40s --start-period=90s --retries=3 CMD ["riskstream", "check", "--role", "imaging", "--timeout", "10"]
ENTRYPOINT ["riskstream"]
CMD ["run", "--role", "imaging"]

# TensorRT and its Python bindings come with the image; PyCUDA is compiled against the image's CUDA toolkit.
FROM nvcr.io/nvidia/tensorrt:25.08-py3 AS gpu-venv
# The image's own Python, without a version: a security update of Ubuntu must not break the build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv --system-site-packages /opt/riskstream
COPY --from=wheel /wheel /wheel
RUN wheel=$(echo /wheel/*.whl) \
    && /opt/riskstream/bin/pip install --no-cache-dir "riskstream[tensorrt] @ file://$wheel" \
    && /opt/riskstream/bin/python -c "import tensorrt, importlib.metadata; importlib.metadata.version('pycuda')"

FROM nvcr.io/nvidia/tensorrt:25.08-py3 AS gpu
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin riskstream
COPY --from=gpu-venv /opt/riskstream /opt/riskstream
ENV PATH=/opt/riskstream/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RISKSTREAM_HTTP_HOST=0.0.0.0 \
    RISKSTREAM_HTTP_PORT=8080
USER 10001
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=40s --start-period=120s --retries=3 CMD ["riskstream", "check", "--timeout", "10"]
ENTRYPOINT ["riskstream"]
CMD ["run"]
