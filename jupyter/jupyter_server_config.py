"""JupyterLab for the workshop, in the container and with `make lab`: one link, a token, nothing from the network."""

import os
import secrets
from pathlib import Path
from urllib.parse import quote

from tornado.ioloop import IOLoop

here = Path(__file__).resolve().parent
port = int(os.environ.get("JUPYTER_PORT") or 8888)
token = os.environ.get("JUPYTER_TOKEN", "").strip() or secrets.token_hex(24)
first_page = "/lab/tree/notebooks/workshop.ipynb"

c = get_config()  # noqa: F821
c.ServerApp.root_dir = str(here.parent)
c.LabApp.default_url = first_page
c.ServerApp.ip = os.environ.get("JUPYTER_IP") or "127.0.0.1"  # the container says 0.0.0.0, and compose who reaches it
c.ServerApp.port = port
c.ServerApp.port_retries = 0
c.ServerApp.open_browser = False
c.ServerApp.allow_root = True  # the starter chooses: with rootless Docker the container's root is the student
c.ServerApp.answer_yes = True  # Ctrl-C stops without a question
# an upload widget sends all its photographs in one message; beyond tornado's 10 MB the kernel is lost, without a word
c.ServerApp.tornado_settings = {"websocket_max_message_size": 2**31}
c.IdentityProvider.token = token
c.LabApp.app_settings_dir = str(here)  # overrides.json: no news prompt, whole file names, closed notebooks end
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
c.LabApp.extension_manager = "readonly"  # no catalogue from the network
c.KernelManager.transport_encryption = "auto"  # or every kernel warns, below the link, that it has none
c.Application.log_level = "ERROR"

# said once, by a server that answers
link = f"http://127.0.0.1:{port}{first_page}?token={quote(token)}"
IOLoop.current().add_callback(print, f"\nThe workshop is open; Ctrl-C ends it:\n\n    {link}\n", flush=True)
