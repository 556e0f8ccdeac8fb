"""What the jobs of test_executors.py do: a module that other processes find by name, and that is loaded soon."""

import logging
import os
import signal
import time

import faiss
import torch
from threadpoolctl import threadpool_info

from patchcore_kit.errors import DataError
from patchcore_kit.executors import Place

LOGGER = logging.getLogger("patchcore_kit.test")


def work(job: tuple, place: Place):
    """A job is what to do, and with what."""
    what, value = job
    if what == "die" or (what == "die once" and not value.exists()):
        if what == "die once":
            value.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "refuse":
        raise DataError(f"no {value}: give another")
    if what == "break":
        return [][value]
    if what == "threads":
        libraries = {library["num_threads"] for library in threadpool_info()}
        return place.threads, torch.get_num_threads(), faiss.omp_get_max_threads(), libraries
    if what == "wait":
        (value / "begun").touch()
        while place.wanted():
            time.sleep(0.05)
        (value / "given up").touch()
    LOGGER.info("doing %s", value)
    return os.getpid()
