# Two stages: the first builds wheels, the second holds only what runs, as a user without rights.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE CHANGELOG.md ./
COPY batch ./batch
COPY workers ./workers
COPY migrations ./migrations
RUN python -m pip install --no-cache-dir --prefix=/install -c constraints.txt '.[flower]'

FROM python:3.12-slim
LABEL org.opencontainers.image.title="Batchmill" org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/batchmill batchmill \
 && install -d -o batchmill -g batchmill /var/lib/batchmill/files
COPY --from=build /install /usr/local
USER batchmill
WORKDIR /var/lib/batchmill
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 BATCHMILL_DATA_DIR=/var/lib/batchmill BATCHMILL_LOG_FORMAT=json
EXPOSE 8484
STOPSIGNAL SIGTERM
ENTRYPOINT ["batchmill"]
CMD ["up", "--only", "api"]
