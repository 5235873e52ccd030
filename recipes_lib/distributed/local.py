# SPDX-License-Identifier: Apache-2.0
"""Calls a function in several processes of this machine, for tests and small demonstrations; runs use torchrun."""

import importlib.util
import inspect
import io
import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from recipes_lib.distributed import world


def run_ranks(function: Callable[..., Any], size: int, *arguments: Any, max_seconds: float = 120.0) -> list[Any]:
    """Calls ``function(*arguments)`` in ``size`` new gloo processes with one thread each; returns results by rank.

    ``function`` must be defined at the top level of a file, which each process loads by its path. Arguments must be
    picklable; results are tensors, numbers, strings and containers of them.

    Raises: ``RuntimeError`` with the traceback of the first process that failed; ``TimeoutError`` if no process gives a
    result for ``max_seconds``.
    """
    # The rendezvous is in this process, on a port chosen by the system, so that two tests at once use different ports.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    # The fork server has no threads, and ranks do not import again what it has imported (set_forkserver_preload).
    context = multiprocessing.get_context("forkserver")
    pipes, processes = [], []
    for rank in range(size):
        receiver, sender = context.Pipe(duplex=False)
        # All environment variables are sent, since the server has those of the moment when it was started.
        variables = {**os.environ, "RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
        variables |= {"MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True, "OMP_NUM_THREADS": 1}
        where = (inspect.getfile(function), function.__name__)
        process = context.Process(target=_work, args=(*where, arguments, variables, sender), daemon=True)
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    try:
        return _collect(pipes, max_seconds)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _collect(pipes: list[Connection], max_seconds: float) -> list[Any]:
    results: dict[Connection, Any] = {}
    while len(results) < len(pipes):
        ready = wait([pipe for pipe in pipes if pipe not in results], timeout=max_seconds)
        if not ready:
            raise TimeoutError(
                f"{len(pipes) - len(results)} of {len(pipes)} processes gave no result in {max_seconds} s"
            )
        for pipe in ready:
            try:
                failure, payload = pipe.recv()
            except EOFError:
                failure, payload = f"process {pipes.index(pipe)} ended without a word", b""
            if failure:
                raise RuntimeError(failure)
            results[pipe] = torch.load(io.BytesIO(payload), weights_only=True)
    return [results[pipe] for pipe in pipes]


def _work(path: str, name: str, arguments: tuple, variables: dict[str, Any], sender: Connection) -> None:
    os.environ.clear()
    os.environ.update({key: str(value) for key, value in variables.items()})
    torch.set_num_threads(1)
    try:
        spec = importlib.util.spec_from_file_location(Path(path).stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        world.start("cpu")
        payload = io.BytesIO()
        torch.save(getattr(module, name)(*arguments), payload)
        sender.send(("", payload.getvalue()))
        world.stop()
    except Exception:
        sender.send((f"process {variables['RANK']} of {variables['WORLD_SIZE']}:\n{traceback.format_exc()}", b""))
