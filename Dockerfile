# Two images from one file:
#   docker build --target service -t stepwedge:0.1.0 .     DICOM node, worker, inference server
#   docker build --target monitor -t stepwatch:0.1.0 .     the monitor with its pages
# `make image` builds both, measures them and writes their bills of materials. OPERATIONS.md says how to run them.

# Pin a digest with --build-arg PYTHON_IMAGE=python:3.12-slim-bookworm@sha256:…
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

# ---- What both images run on: a user, a data folder, nothing that installs or gains rights.
FROM ${PYTHON_IMAGE} AS runtime
RUN groupadd --gid 10001 stepwedge \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /data --shell /usr/sbin/nologin stepwedge \
    && install -d -o 10001 -g 10001 -m 0700 /data \
    && install -d /etc/stepwedge \
    # The base's pip serves nobody here, and is what scanners of vulnerabilities stumble over.
    && lib="$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
    && rm -rf "$lib"/site-packages/pip* "$lib"/site-packages/setuptools* "$lib"/site-packages/wheel* "$lib"/ensurepip \
        /usr/local/bin/pip* /usr/local/bin/wheel /usr/share/python-wheels \
    # Nothing may become root.
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
ENV PATH=/opt/stepwedge/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    # The root file system may be read-only, and the user may be any: what libraries keep goes with the container.
    HOME=/tmp

# ---- What installs. None of it is in the images. Every package is a wheel: no compiler is needed.
FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python3 -m venv /build/tools && python3 -m venv --without-pip /opt/stepwedge
COPY service/image/install.sh /build/install.sh

# ---- Third-party packages of each image: rebuilt only when its lock file changes.
FROM build AS service-packages
ARG CUDA=0
COPY requirements-image-service.txt requirements-image-cuda.txt /build/
# An index of your own and its certificate come as secrets, which no layer keeps:
#   --secret id=pip,src=/etc/pip.conf --secret id=ca,src=/etc/ssl/certs/ca-certificates.crt
RUN --mount=type=secret,id=pip,target=/run/secrets/pip --mount=type=secret,id=ca,target=/run/secrets/ca \
    case "$CUDA" in 0) lock=service ;; 1) lock=cuda ;; *) echo "CUDA is 0 or 1, not $CUDA" >&2; exit 1 ;; esac \
    && sh /build/install.sh "/build/requirements-image-$lock.txt"

FROM build AS monitor-packages
COPY requirements-image-monitor.txt /build/
RUN --mount=type=secret,id=pip,target=/run/secrets/pip --mount=type=secret,id=ca,target=/run/secrets/ca \
    sh /build/install.sh /build/requirements-image-monitor.txt

# ---- Our own code, as a wheel: the only large step that a change of the source repeats.
FROM build AS own
COPY requirements-build.txt /build/
RUN --mount=type=secret,id=pip,target=/run/secrets/pip --mount=type=secret,id=ca,target=/run/secrets/ca \
    sh /build/install.sh /build/requirements-build.txt /build/tools
COPY pyproject.toml README.md LICENSE /build/source/
COPY service/stepwedge /build/source/service/stepwedge
COPY monitoring/stepwatch /build/source/monitoring/stepwatch
RUN /build/tools/bin/pip wheel --quiet --no-index --no-deps --no-build-isolation --wheel-dir /build/dist /build/source \
    && /build/tools/bin/pip --python /opt/stepwedge/bin/python install --quiet --no-index --no-deps --no-compile \
        --root /build/own /build/dist/*.whl \
    && python3 -m compileall -q --invalidation-mode unchecked-hash -s /build/own /build/own

# ---- The monitor.
FROM runtime AS monitor
COPY --from=monitor-packages /opt/stepwedge /opt/stepwedge
COPY --from=own /build/own/opt/stepwedge /opt/stepwedge
COPY service/image/stepwatch.yaml /etc/stepwedge/stepwatch.yaml
COPY service/image/health.py /usr/lib/stepwedge/health.py
ARG VERSION=dev
ARG REVISION=unknown
ARG PYTHON_IMAGE
# Fails on a licence that may not be in the image.
RUN --mount=type=bind,source=service/image/inventory.py,target=/run/inventory.py \
    rm /opt/stepwedge/bin/stepwedge \
    && /opt/stepwedge/bin/python -I -B /run/inventory.py stepwatch "$VERSION" /usr/share/doc/stepwedge
LABEL org.opencontainers.image.title="Stepwatch" \
      org.opencontainers.image.description="Monitors the models that Stepwedge runs: drift, labels, pages." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="$PYTHON_IMAGE"
ENV STEPWATCH_CONFIG=/etc/stepwedge/stepwatch.yaml
USER 10001:10001
WORKDIR /data
VOLUME ["/data"]
EXPOSE 9108
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["/opt/stepwedge/bin/python", "-I", "/usr/lib/stepwedge/health.py", "stepwatch"]
ENTRYPOINT ["stepwatch"]
CMD ["serve"]

# ---- The service; last, so that it is what `docker build .` builds.
FROM runtime AS service
COPY --from=service-packages /opt/stepwedge /opt/stepwedge
COPY --from=own /build/own/opt/stepwedge /opt/stepwedge
COPY service/image/stepwedge.yaml /etc/stepwedge/stepwedge.yaml
COPY service/image/health.py /usr/lib/stepwedge/health.py
ARG VERSION=dev
ARG REVISION=unknown
ARG PYTHON_IMAGE
# Fails on a licence that may not be in the image.
RUN --mount=type=bind,source=service/image/inventory.py,target=/run/inventory.py \
    rm /opt/stepwedge/bin/stepwatch \
    && /opt/stepwedge/bin/python -I -B /run/inventory.py stepwedge "$VERSION" /usr/share/doc/stepwedge
LABEL org.opencontainers.image.title="Stepwedge" \
      org.opencontainers.image.description="Production inference for radiology: DICOM in, report back into the study." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="$PYTHON_IMAGE"
ENV STEPWEDGE_CONFIG=/etc/stepwedge/stepwedge.yaml
USER 10001:10001
WORKDIR /data
VOLUME ["/data"]
EXPOSE 11112 8080 3000
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["/opt/stepwedge/bin/python", "-I", "/usr/lib/stepwedge/health.py", "stepwedge"]
ENTRYPOINT ["stepwedge"]
CMD ["serve"]
