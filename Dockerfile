# Two stages: the first builds a virtual environment from the lock file, the second carries it and nothing that built it.
#   docker build -t agentflow .
#   docker run --rm -v "$PWD:/job" agentflow run configs/quickstart.yaml

FROM python:3.12-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/agentflow
WORKDIR /src
COPY requirements-runtime.lock ./
RUN /opt/agentflow/bin/pip install --require-hashes -r requirements-runtime.lock
COPY pyproject.toml README.md LICENSE ./
COPY agentflow ./agentflow
RUN /opt/agentflow/bin/pip install --no-deps . \
    && /opt/agentflow/bin/pip uninstall --yes pip

FROM python:3.12-slim
# The job directory is mounted at /job: job file, agent modules, input, output and state.
RUN useradd --create-home --uid 10001 agentflow && mkdir /job && chown agentflow /job
COPY --from=build /opt/agentflow /opt/agentflow
ENV PATH=/opt/agentflow/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER agentflow
WORKDIR /job
# SIGTERM drains the job and takes a last checkpoint; give it the time: docker stop --time 60.
STOPSIGNAL SIGTERM
ENTRYPOINT ["agentflow"]
CMD ["--help"]
