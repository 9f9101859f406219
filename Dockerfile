# Two small images out of one file: `docker build --target policy .` and `--target processor .`
# Both hold Python, the packages of requirements/service.lock and this project; no compiler, no root, no writable file.

ARG PYTHON=3.13-slim-bookworm

# What runs is built here and copied: pip and its caches stay behind.
FROM python:${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv --without-pip /opt/paddock
COPY requirements/service.lock requirements/service.lock
# Every package by its hash, from wheels alone: nothing is compiled, nothing runs while it is installed.
RUN python -m pip --python /opt/paddock/bin/python install --require-hashes --only-binary :all: -r requirements/service.lock
COPY pyproject.toml README.md LICENSE ./
COPY envoy envoy
COPY policy policy
COPY processor processor
COPY gateway gateway
RUN python -m pip wheel --no-deps --wheel-dir /wheels . \
 && python -m pip --python /opt/paddock/bin/python install --no-deps --no-index /wheels/*.whl \
 && /opt/paddock/bin/python -m compileall -q /opt/paddock/lib

FROM python:${PYTHON} AS service
RUN groupadd --gid 10001 paddock \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin paddock
COPY --from=build /opt/paddock /opt/paddock
# A new volume mounted there belongs to the user, as this does.
RUN install --directory --mode 700 --owner 10001 --group 10001 /var/lib/paddock /var/lib/paddock/server-keys
ENV PATH=/opt/paddock/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1
USER 10001:10001
WORKDIR /
STOPSIGNAL SIGTERM

FROM service AS policy
ENV PADDOCK_POLICY_LISTEN=0.0.0.0:9001 PADDOCK_POLICY_HTTP_LISTEN=0.0.0.0:9002 \
  PADDOCK_POLICY_EDGE_LISTEN=0.0.0.0:9004
EXPOSE 9001 9002 9004
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9002/healthz', timeout=2)"]
CMD ["python", "-m", "policy"]

FROM service AS processor
ENV PADDOCK_PROCESSOR_LISTEN=0.0.0.0:9003 PADDOCK_PROCESSOR_METRICS_LISTEN=0.0.0.0:9004 PADDOCK_PROCESSOR_EDGE_LISTEN=0.0.0.0:9005
EXPOSE 9003 9004 9005
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import socket; socket.create_connection(('127.0.0.1', 9003), 2)"]
CMD ["python", "-m", "processor"]
