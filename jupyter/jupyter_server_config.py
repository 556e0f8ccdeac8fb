"""JupyterLab for the workshop, in the container and with `make lab`: one link, a token, nothing from the network."""

import os
import re
import secrets
import sys
from pathlib import Path

from tornado.ioloop import IOLoop

here = Path(__file__).resolve().parent
port = os.environ.get("JUPYTER_PORT", "").strip() or "8888"
if not re.fullmatch("[1-9][0-9]{0,4}", port) or int(port) > 65535:
    sys.exit(f"JUPYTER_PORT is {port!r}, which is no port: take a number from 1 to 65535, or leave it empty for 8888")
token = os.environ.get("JUPYTER_TOKEN", "").strip() or secrets.token_hex(24)
if not re.fullmatch("[A-Za-z0-9._~-]{16,}", token):  # who guesses it runs programs as you
    sys.exit(
        "JUPYTER_TOKEN is too easy to guess or does not fit into a link: leave it empty and every start makes a new "
        "one, or take 16 characters or more of A-Z a-z 0-9 . _ ~ -"
    )
first_page = "/lab/tree/notebooks/workshop.ipynb"

c = get_config()  # noqa: F821
c.ServerApp.root_dir = str(here.parent)
c.LabApp.default_url = first_page
c.ServerApp.ip = os.environ.get("JUPYTER_IP") or "127.0.0.1"  # the container says 0.0.0.0, and compose who reaches it
c.ServerApp.allow_remote_access = False  # other sites' names for this computer get a 403, also in the container
c.ServerApp.local_hostnames = ["localhost"]  # beside 127.0.0.1 and [::1]
c.ServerApp.port = int(port)
c.ServerApp.port_retries = 0
c.ServerApp.open_browser = False
c.ServerApp.allow_root = True  # the starter chooses: with rootless Docker the container's root is the student
c.ServerApp.answer_yes = True  # Ctrl-C stops without a question
# an upload widget sends all its photographs in one message; beyond tornado's 10 MB the kernel is lost, without a word
c.ServerApp.tornado_settings = {"websocket_max_message_size": 2**31}
c.IdentityProvider.token = token
c.LabApp.app_settings_dir = str(here)  # overrides.json: no news, whole names, closed notebooks end, widgets saved
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
c.LabApp.extension_manager = "readonly"  # no catalogue from the network
c.KernelManager.transport_encryption = "auto"  # or every kernel warns, below the link, that it has none
c.Application.log_level = "ERROR"

# said once, by a server that answers
link = f"http://127.0.0.1:{port}{first_page}?token={token}"
IOLoop.current().add_callback(print, f"\nThe workshop is open; Ctrl-C ends it:\n\n    {link}\n", flush=True)
