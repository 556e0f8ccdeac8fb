"""Where independent jobs are done: in this process, in processes of this computer, or by the workers of a Dask cluster.

    Here()                        one after the other, in this process
    Processes(4)                  four at a time, each in a process of its own
    Cluster("tcp://host:8786")    as many at a time as the scheduler has workers

All have `run(task, jobs)`, which gives what becomes of each job as soon as it is known. Threads are divided, not
multiplied: each of n processes takes an n-th of the cores, a job on a cluster the threads of its worker, unless
`threads` says how many. A process or worker that dies takes one job with it, which is tried again.
"""

import ctypes
import hashlib
import importlib.metadata
import logging
import multiprocessing
import os
import pickle
import platform
import signal
import sys
import threading
import time
import traceback
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from tqdm import tqdm

from patchcore_kit.errors import JobsError, KitError, SettingsError, short, whole_number

LOGGER = logging.getLogger(__name__)

TRIES = 3  # of a job whose worker dies
SOON = 5  # seconds that a scheduler has to answer
REFRESHED = 1  # seconds after which it is asked anew which workers there are
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
VALUES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
)  # packages that make them, and faiss

_ONE_JOB = threading.Lock()  # at a time in a process, whoever sends them: threads and peak memory are the process's


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job is done: with how many threads (None: as they are), and whether it is still waited for."""

    threads: int | None = None
    wanted: Callable[[], bool] = lambda: True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job: its value or its error, and what it has logged elsewhere: (logger, level, message).

    begun: else it is the worker that cannot do any: it has other versions, or lacks the network's weights.
    """

    value: Any = None
    error: Exception | None = None
    told: tuple[tuple[str, int, str], ...] = ()
    begun: bool = True


Task = Callable[[Any, Place], Any]


class Executor(Protocol):
    """What `Here`, `Processes` and `Cluster` have in common."""

    def run(self, task: Task, jobs: Iterable) -> Iterator[tuple[int, Outcome]]:
        """`task(job, place)` for every job: (its number, from 0, what became of it), as they finish.

        Tasks and jobs that are done elsewhere are pickled. Raises JobsError, or why no worker can do them, if there is
        no place to do them.
        """


def reason(error: Exception) -> str:
    """An error in one sentence, also where it is not the kit's own."""
    if isinstance(error, KitError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:  # a file that the system refuses, wherever it is
        return f"cannot use {error.filename} ({error.strerror}): check that it is there and that you may use it"
    return f"{type(error).__name__}: {short(error, 300)}"


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """Within the block torch, FAISS and the libraries behind NumPy take so many threads; None: as they are."""
    if threads is None:
        yield
        return
    import faiss
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    with threadpool_limits(threads):
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            faiss.omp_set_num_threads(before[1])


class Here:
    """One job after the other, in this process. threads: of each, as they are if None."""

    def __init__(self, threads: int | None = None):
        self.threads = None if threads is None else whole_number("threads", threads, 1)

    def run(self, task: Task, jobs: Iterable) -> Iterator[tuple[int, Outcome]]:
        """See `Executor`."""
        for number, job in enumerate(jobs):
            with limited(self.threads):
                try:
                    outcome = Outcome(task(job, Place(self.threads)))
                except Exception as error:
                    LOGGER.debug("%s", traceback.format_exc())
                    traceback.clear_frames(error.__traceback__)  # or it would keep all that the job had in memory
                    outcome = Outcome(error=error)
            yield number, outcome


class Processes:
    """`count` jobs at a time, each in a process. threads: of each; None: so many that together they take the cores."""

    def __init__(self, count: int, threads: int | None = None):
        self.count = whole_number("jobs", count, 1)
        self.threads = max(1, cores() // count) if threads is None else whole_number("threads", threads, 1)

    def run(self, task: Task, jobs: Iterable) -> Iterator[tuple[int, Outcome]]:
        """See `Executor`. A caller that stops ends the processes, with what they are doing."""
        with closing(_Children(self.count, self.threads)) as crew:
            yield from _handed_out(crew, task, jobs)


class Cluster:
    """A job at a time for each worker of a Dask scheduler. threads: of each; None: those of its worker."""

    def __init__(self, address: str, threads: int | None = None):
        self.address = address
        self.threads = None if threads is None else whole_number("threads", threads, 1)

    def run(self, task: Task, jobs: Iterable) -> Iterator[tuple[int, Outcome]]:
        """See `Executor`. Workers may come and go. What a caller that stops has begun is not written any more."""
        distributed = _distributed()
        with _silent("distributed.client"), closing(_DaskWorkers(distributed, self.address, self.threads)) as crew:
            yield from _handed_out(crew, task, jobs)


# what happens here


@dataclass(frozen=True, slots=True)
class _Died:
    """A worker that is gone, with its job."""

    how: str


class _Crew(Protocol):
    """Workers that may come and go, each with one job at a time."""

    def idle(self) -> tuple[Any, int] | None:
        """A worker without a job and its threads, or None."""

    def give(self, worker: Any, call: bytes) -> None:
        """Let it do a job."""

    def answers(self) -> list[tuple[Any, bytes | _Died | Exception]]:
        """What workers with a job have become, after a while if nothing has happened."""

    def dismiss(self, worker: Any, error: Exception) -> None:
        """Give no more jobs to a worker that cannot do any. Raises the error if there is no other."""


def _handed_out(crew: _Crew, task: Task, jobs: Iterable) -> Iterator[tuple[int, Outcome]]:
    numbered, waiting, at_work, found = enumerate(jobs), deque(), {}, deque()
    level, versions = logging.getLogger("patchcore_kit").getEffectiveLevel(), _versions()
    while True:
        if not waiting:
            waiting.extend((number, _packed(task, job), 1) for number, job in islice(numbered, 1))
        if waiting and (free := crew.idle()):
            worker, threads = free
            at_work[worker] = waiting.popleft()
            crew.give(worker, zlib.compress(pickle.dumps((versions, level, threads, at_work[worker][1])), 1))
        elif found:  # only now, for the caller may take its time
            yield found.popleft()
        elif at_work or waiting:
            for worker, answer in crew.answers():
                number, call, tries = at_work.pop(worker)
                if isinstance(answer, _Died) and tries < TRIES:
                    LOGGER.warning("a worker %s: its job is tried again", answer.how)
                    waiting.append((number, call, tries + 1))
                    continue
                outcome = pickle.loads(answer) if isinstance(answer, bytes) else _without(answer)
                if outcome.begun:
                    found.append((number, outcome))
                else:  # or it would be done soonest with each, and get them all
                    waiting.append((number, call, tries))
                    crew.dismiss(worker, outcome.error)
        else:
            return


def _without(answer: _Died | Exception) -> Outcome:
    """Of a job whose worker has died once too often, or could not even read it."""
    if isinstance(answer, Exception):
        return Outcome(error=JobsError(reason(answer)), begun=False)
    why = "it may take more memory than there is"
    if "exit code" in answer.how:  # each process begins with the script that has started it
        why = "see what it has printed; a script must do its work below if __name__ == '__main__'"
    return Outcome(error=JobsError(f"its worker {answer.how}, as did {TRIES - 1} before it: {why}"))


def _packed(task: Task, job: object) -> bytes:
    try:
        return pickle.dumps((task, job))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise SettingsError(
            f"a job cannot be sent to another process ({short(error)}): give functions that a module has by name"
        ) from error


class _Children:
    """Processes of this computer, started as they are needed."""

    def __init__(self, count: int, threads: int):
        self._count, self._threads = count, threads
        self._free: list[_Child] = []
        self._busy: list[_Child] = []

    def idle(self) -> "tuple[_Child, int] | None":
        while self._free and not self._free[-1].process.is_alive():
            self._free.pop().end()
        if not self._free and len(self._busy) < self._count:
            self._free.append(_Child())
        return (self._free[-1], self._threads) if self._free else None

    def give(self, worker: "_Child", call: bytes) -> None:
        self._free.remove(worker)
        self._busy.append(worker)
        with suppress(OSError):  # it has just died, which its answer will say
            worker.pipe.send_bytes(call)

    def answers(self) -> "list[tuple[_Child, bytes | _Died]]":
        ready = wait([child.pipe for child in self._busy])
        return [(child, self._answer(child)) for child in [*self._busy] if child.pipe in ready]

    def _answer(self, child: "_Child") -> bytes | _Died:
        self._busy.remove(child)
        try:
            answer = child.pipe.recv_bytes()
        except (EOFError, OSError):
            return _Died(child.end())
        self._free.append(child)
        return answer

    def dismiss(self, worker: "_Child", error: Exception) -> None:
        raise error  # they are all alike

    def close(self) -> None:
        for child in (*self._free, *self._busy):
            child.process.terminate()
        for child in (*self._free, *self._busy):
            child.end()


class _Child:
    """A process that does what comes through its pipe, until that is closed."""

    def __init__(self) -> None:
        spawned = multiprocessing.get_context("spawn")  # a fork would have torch's locks, but not their threads
        self.pipe, other = spawned.Pipe()
        self.process = spawned.Process(target=_serve, args=(other,), daemon=True)
        # it inherits what is blocked: a Ctrl-C is its parent's, who ends it
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            other.close()

    def end(self) -> str:
        """Wait for its end: how that was."""
        self.pipe.close()
        self.process.join()
        code = self.process.exitcode
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"has ended with exit code {code}"


def _distributed() -> ModuleType:
    try:
        import distributed
    except ModuleNotFoundError:
        raise SettingsError(
            "a scheduler needs the package distributed, which is not there: pip install distributed"
        ) from None
    return distributed


@contextmanager
def _silent(logger: str) -> Iterator[None]:
    """Without the tracebacks that it logs of what is told here in a sentence."""
    before = logging.getLogger(logger).level
    logging.getLogger(logger).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logging.getLogger(logger).setLevel(before)


class _DaskWorkers:
    """The workers of a scheduler. Which there are is asked anew every second."""

    def __init__(self, distributed: ModuleType, address: str, threads: int | None):
        self._dask, self._address, self._own = distributed, address, threads
        try:
            self._client = distributed.Client(address, timeout=SOON, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            raise JobsError(
                f"no scheduler answers at {address} ({short(error)}): start it, with workers, or leave it out"
            ) from None
        self._there: dict[str, int] = {}
        self._given: dict[str, Any] = {}
        self._unfit: set[str] = set()
        self._asked, self._waits = -REFRESHED, False

    def _refresh(self) -> None:
        if time.monotonic() < self._asked + REFRESHED:
            return
        try:
            self._there = self._client.nthreads()
        except OSError as error:
            raise JobsError(
                f"the scheduler at {self._address} is gone ({short(error)}): what is done is kept, start another"
            ) from None
        self._asked = time.monotonic()
        if not self._there and not self._waits:
            LOGGER.warning("the scheduler at %s has no workers yet: waiting for one", self._address)
        self._waits = not self._there

    def idle(self) -> tuple[str, int] | None:
        self._refresh()
        worker = next((name for name in self._there if name not in self._given and name not in self._unfit), None)
        return worker and (worker, self._own or self._there[worker])

    def give(self, worker: str, call: bytes) -> None:
        # there and nowhere else: where the scheduler moves it to, another job may be at work
        self._given[worker] = self._client.submit(_serve_dask, call, workers=[worker], pure=False)

    def answers(self) -> list[tuple[str, bytes | _Died | Exception]]:
        if not self._given:
            time.sleep(REFRESHED)
        else:
            with self._client.as_current(), suppress(TimeoutError):
                try:
                    self._dask.wait([*self._given.values()], timeout=REFRESHED, return_when="FIRST_COMPLETED")
                except CancelledError:
                    self._asked = -REFRESHED  # by whom? the scheduler may be gone
        self._refresh()
        found = [(worker, self._answer(worker, future)) for worker, future in self._given.items()]
        for worker, answer in found:
            if answer is not None:
                self._client.cancel([self._given.pop(worker)])
        return [(worker, answer) for worker, answer in found if answer is not None]

    def _answer(self, worker: str, future: Any) -> bytes | _Died | Exception | None:
        gone = _Died(f"at {worker} is gone")
        try:
            if future.status == "finished":
                return future.result(timeout=SOON)
            if future.status == "error":
                error = future.exception(timeout=SOON)
                return gone if isinstance(error, self._dask.KilledWorker) else error
        except (OSError, CancelledError):  # it had done its job, and died before it told
            return gone
        return gone if future.status != "pending" or worker not in self._there else None

    def dismiss(self, worker: str, error: Exception) -> None:
        self._unfit.add(worker)
        if self._there.keys() <= self._unfit:
            raise error
        LOGGER.warning("the worker at %s gets no more jobs: %s", worker, error)

    def close(self) -> None:
        with suppress(Exception):  # the scheduler may be gone
            self._client.cancel([*self._given.values()])
        self._client.close(timeout=SOON)


# what happens elsewhere


def _serve(pipe: Connection) -> None:
    """A child's life."""
    tqdm.set_lock(threading.RLock())  # its own would be a semaphore as well, which outlives a process that is ended
    with suppress(EOFError):
        while True:
            pipe.send_bytes(_done(pipe.recv_bytes(), multiprocessing.parent_process().is_alive))


def _serve_dask(call: bytes) -> bytes:
    """A Dask task: bytes, so that its scheduler need not know what is in them."""
    from distributed import get_worker

    _keep_freed_memory()
    worker = get_worker()
    key = worker.get_current_task()

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state == "executing"

    return _done(call, wanted)


def _keep_freed_memory() -> None:
    """Up to 64 MB of it, as glibc does by itself: Dask starts its workers so that each tensor is made of new pages."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(M_TRIM_THRESHOLD, 2**26)


def _done(call: bytes, wanted: Callable[[], bool]) -> bytes:
    """Do one job as `_handed_out` sends it: its outcome, pickled."""
    versions, level, threads, packed = pickle.loads(zlib.decompress(call))
    with _ONE_JOB, _listening(level) as told:
        begun = False
        try:
            _check_same(versions)
            with limited(threads):
                task, job = pickle.loads(packed)
                begun = True
                outcome = Outcome(task(job, Place(threads, wanted)))
        except Exception as error:
            LOGGER.debug("%s", traceback.format_exc())
            said = error if isinstance(error, KitError) else JobsError(reason(error))
            outcome = Outcome(error=said, begun=begun)
    return pickle.dumps(replace(outcome, told=tuple(told)))


@contextmanager
def _listening(level: int) -> Iterator[list[tuple[str, int, str]]]:
    """What the kit logs from this level on, instead of where it would go."""
    told: list[tuple[str, int, str]] = []
    kit, ear = logging.getLogger("patchcore_kit"), logging.Handler()
    ear.emit = lambda record: told.append((record.name, record.levelno, record.getMessage()))
    before = kit.level, kit.propagate
    kit.setLevel(level)
    kit.propagate = False
    kit.addHandler(ear)
    try:
        yield told
    finally:
        kit.removeHandler(ear)
        kit.propagate = before[1]
        kit.setLevel(before[0])


def _source() -> str:
    """8 digits that change with the kit's code."""
    folder = Path(__file__).parent
    files = sorted(folder.rglob("*.py"))
    code = b"".join(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() for path in files)
    return hashlib.sha256(code).hexdigest()[:8]


_SOURCE = _source()  # as it is when it is loaded, which is what this process runs


def _versions() -> dict[str, str]:
    """Of all that values come from, without what a build adds to torch's (2.9.0+cpu)."""
    import faiss

    found = {"Python": ".".join(map(str, sys.version_info[:2]))}
    found |= {name: importlib.metadata.version(name).partition("+")[0] for name in VALUES}
    return found | {"faiss": faiss.__version__, "patchcore_kit": _SOURCE}


def _check_same(versions: dict[str, str]) -> None:
    """Raises JobsError where other values might come out than with these."""
    for name, version in _versions().items():
        if version != versions[name]:
            raise JobsError(
                f"the worker on {platform.node()} has {name} {version}, not {versions[name]}, so its values might be "
                "others: give it the same, and start it anew"
            )
