# Two stages: the first builds the wheel and puts it into a virtual environment, the second runs it.
#   docker build -t blockd .
#   docker run -p 127.0.0.1:10809:10809 -p 127.0.0.1:3260:3260 -v blockd:/data blockd
FROM python:3.11-slim-bookworm AS build

RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        gcc libc6-dev libisal-dev liblz4-dev libzstd-dev libssl-dev cmake ninja-build \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY native native
COPY volume volume
COPY transport transport
COPY blockd blockd
RUN python -m venv /opt/blockd \
    && /opt/blockd/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /tmp/wheel . \
    && /opt/blockd/bin/pip install --no-cache-dir /tmp/wheel/*.whl

FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install -y --no-install-recommends libisal2 liblz4-1 libzstd1 libssl3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10809 --no-create-home --home-dir /data blockd \
    && install -d -o blockd -g blockd /data /run/blockd

COPY --from=build /opt/blockd /opt/blockd
ENV PATH=/opt/blockd/bin:$PATH PYTHONUNBUFFERED=1

USER blockd
VOLUME /data
EXPOSE 10809 3260
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["blockd", "status"]

# In plain text on the container's own network; who else reaches the ports is decided by -p.
# For clients on other machines give --tls require with keys and --tls-client-ca, and --iscsi-chap, instead of --insecure.
ENTRYPOINT ["blockd"]
CMD ["serve", "--data", "/data", "--control", "/run/blockd/control.sock", \
    "--nbd", "0.0.0.0:10809", "--iscsi", "0.0.0.0:3260", "--insecure"]
