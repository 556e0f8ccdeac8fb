# The workshop's environment, without its code: the repository is mounted at /work when it runs (docker-compose.yaml).

# The same build next month: an exact version, and so is all that is installed. A digest or a mirror will do as well.
ARG PYTHON_IMAGE=python:3.11.15-slim-bookworm

FROM ${PYTHON_IMAGE} AS requirements
# the Makefile's pipenv, and all that it needs
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore --no-deps \
      pipenv==2026.10.3 certifi==2026.10.18 distlib==0.4.4 filelock==4.2.12 packaging==26.3 platformdirs==4.14.7 \
      python-discovery==1.9.6 setuptools==84.2.1 virtualenv==21.15.11 && \
    pip check
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

FROM ${PYTHON_IMAGE}
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
# No trash: it would have to be on the file system of what is deleted, and each mounted folder is one. So JupyterLab asks
# before it deletes a file for good, and deletes no folder that holds something.
CMD ["jupyter", "lab", "--config=/work/jupyter/jupyter_server_config.py", \
     "--FileContentsManager.delete_to_trash=False", "--FileContentsManager.always_delete_dir=False"]
