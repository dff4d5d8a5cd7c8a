# An image that serves a trained run: docs/guides/serve.md says how to build and start it.
#
#   docker build --tag candid .
#   docker run --publish 8000:8000 --read-only --tmpfs /tmp --stop-timeout 20 \
#     --volume /srv/candid:/srv/candid:ro --env CANDID_API_KEY candid \
#     /srv/candid/run --data /srv/candid/data
#
FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
# Extra flags for pip, such as an index with the CPU build of torch, a tenth of the size.
ARG PIP_FLAGS=
COPY requirements requirements
RUN pip install --no-cache-dir --require-hashes --no-deps --requirement requirements/serve.lock \
    && pip install --no-cache-dir $PIP_FLAGS --requirement requirements/torch.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir --no-deps .

FROM python:3.11-slim
# The folder is for --item-updates; a volume mounted there gets the owner of the folder.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin candid \
    && install --directory --owner=10001 /var/lib/candid
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1
USER 10001
# Port 8001 answers probes from a process of their own, which no load delays; it needs no key, so do
# not publish it.
EXPOSE 8000
# SIGTERM finishes open requests and stops, SIGHUP reloads the models.
STOPSIGNAL SIGTERM
# http.client, because urllib would use a proxy from the environment.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["python", "-c", \
    "import http.client as h, sys; c = h.HTTPConnection('127.0.0.1', 8001, timeout=2); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["candid", "serve", "--host", "0.0.0.0", "--port", "8000", "--probe-port", "8001"]
