# Two images: `train` contains training only, without an orchestrator; `flows` is the Prefect worker with everything.
# Triton needs no image of ours: production runs NVIDIA's unmodified one on the workspace's repository/ (compose.yaml).
#
#   docker build --target flows -t cleanshelf-flows .

FROM python:3.11-slim AS base
WORKDIR /app
# Dependencies first: no package is there yet, so a changed source line does not install torch again.
COPY pyproject.toml constraints.txt ./
RUN touch README.md && useradd --uid 1000 shelf
# HOME and LOGNAME: compose.yaml runs as the workspace's owner, whose uid may have neither a home nor a name in the image.
# No library reports the use that is made of it, and nothing is imported from a mounted folder that happens to be the current one.
ENV PYTHONPATH=/app PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 HOME=/tmp LOGNAME=shelf \
    DO_NOT_TRACK=1 DVC_NO_ANALYTICS=1 HF_HUB_DISABLE_TELEMETRY=1 ORT_DISABLE_TELEMETRY=1 PIP_DISABLE_PIP_VERSION_CHECK=1

FROM base AS train
RUN pip install --no-cache-dir -c constraints.txt ".[train]"
COPY contract contract
COPY durable durable
COPY pixels pixels
COPY models models
USER shelf
ENTRYPOINT ["python", "-m"]
CMD ["models.training.train", "--help"]

FROM base AS flows
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir -c constraints.txt ".[flows]"
COPY contract contract
COPY durable durable
COPY pixels pixels
COPY serving serving
RUN python -c "from pathlib import Path; from serving.server.environment import ensure_environment as e; e(Path('/opt/triton'))"
COPY models models
COPY flows flows
COPY prefect.yaml ./
ENV CLEANSHELF_WORKSPACE=/workspace CLEANSHELF_TRITON_ENV=/opt/triton \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY=false \
    PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS=false \
    PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT=false
USER shelf
CMD ["prefect", "worker", "start", "--pool", "retrain", "--type", "process"]
