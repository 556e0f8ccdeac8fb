# The workshop's environment, without its code: the repository is mounted at /work when it runs (docker-compose.yaml).

FROM python:3.11-slim-bookworm AS requirements
# the Makefile's pipenv
RUN pip install --no-cache-dir --disable-pip-version-check pipenv==2026.10.3
WORKDIR /requirements
COPY Pipfile Pipfile.lock ./
# Pipfile.lock: its exact versions, checked by their hashes; an outdated lock stops the build.
# Pipfile: the newest versions it allows, for an index that no longer has what the lock names.
ARG INSTALL_FROM=Pipfile.lock
RUN case "$INSTALL_FROM" in \
      Pipfile.lock) pipenv verify >&2 && echo --require-hashes && pipenv requirements --hash ;; \
      Pipfile) python -c "import tomllib; p = tomllib.load(open('Pipfile', 'rb'))['packages']; \
        print(*(name + version.replace('*', '') for name, version in p.items()), sep='\n')" ;; \
      *) echo "INSTALL_FROM is '$INSTALL_FROM'; it can be Pipfile.lock or Pipfile" >&2; exit 1 ;; \
    esac > requirements.txt

FROM python:3.11-slim-bookworm
# Any uid may run it (HOST_UID): home is everybody's to write in, and USER names who is not in /etc/passwd.
RUN useradd --create-home --uid 1000 learner && chmod 1777 /home/learner
COPY --from=requirements /requirements/requirements.txt /tmp/
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore -r /tmp/requirements.txt
# Downloaded weights stay in the repository's folder; ports are opened by whoever publishes them, so listen to all.
ENV HOME=/home/learner USER=learner PYTHONPATH=/work \
    TORCH_HOME=/work/.cache/torch HF_HOME=/work/.cache/huggingface \
    JUPYTER_IP=0.0.0.0
WORKDIR /work
USER 1000:1000
CMD ["sh", "-c", "if [ -w /work ]; then exec jupyter lab --config=/work/jupyter/jupyter_server_config.py; fi; \
    stat -c 'no permission to write to /work, which belongs to uid %u: start with HOST_UID=%u HOST_GID=%g' /work; exit 1"]
