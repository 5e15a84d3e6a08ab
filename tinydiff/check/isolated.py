"""Grading: a learner's code runs in a process of its own, and what it answers is judged outside.

The inputs are drawn from a seed that the code cannot know, so that only somebody who computes the right arrays can send
them. The process starts in an empty folder with an empty environment, on a copy of tinydiff without `tinydiff.check`
and, for the exercise at hand, without the functions that are its answer. It has no other file to read than Python's own
(Linux 5.13 or later), no file to write, no network, no programs to start, no say over other processes (Linux on x86_64
and aarch64), and is another user where the grader is root. It ends after a time limit, and every process that it may
have left behind ends with it. Answers come back through a pipe, as frames of plain arrays of limited size, which are
parsed without pickle and judged by their values alone.

What remains possible: to copy the library's own source code into one's answer (it is public), to look up mathematics,
and to call parts of PyTorch, of other packages or of the library that compute the same under another name. Python's own
locks can be picked by whoever corrupts the memory of the process; the operating system's (files, user, limits, system
calls) cannot. On machines without Landlock (macOS, Windows, old Linux) or without root the notes of the verdict say
which lock is missing; there, let the grader run as a user of its own who may read nothing that learners should not.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tinydiff
from tinydiff.check.core import Exercise, Verdict, judge
from tinydiff.check.harness import Observation, pack_cases, unpack, unpack_observation

START = 120  # seconds that Python and its libraries may take on a busy machine
MISSING = {
    "files": "files: not locked (Landlock is missing here), so the code could read what its user may read",
    "user": "user: the code ran as the grader's own user, since only root can change it",
    "calls": "calls: not locked (seccomp is missing here), so code that breaks out of Python could reach the network",
    "limits": "limits: this system has no limits on memory and processor time",
}

AROUND = """
def _around(sources, space):
    import ast
    import builtins  # by which its last loop, too, finds what a cell may call by another name
    from harness import plain_python
    nodes, defined = [], set()
    for source in sources:
        try:
            nodes += ast.parse(plain_python(source)).body
        except Exception:
            pass
    kept = []
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            defined.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif not isinstance(node, (ast.Assign, ast.AnnAssign)) or any(isinstance(n, ast.Call) for n in ast.walk(node)):
            continue
        kept.append(node)
    codes = []
    for node in kept:
        stored = {{n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}}
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and stored & defined:
            continue  # a scratch variable does not replace a function
        try:
            codes.append(compile(ast.Module([node], []), "<another cell>", "exec"))
        except Exception:
            pass
    for code in codes:
        try:
            builtins.exec(code, space)
        except builtins.Exception:
            pass
_around({sources!r}, globals())
"""


def around(cells: Sequence[str]) -> str:
    """Code that runs the imports, functions, classes and constants of cells, and nothing else, as far as they run.

    A constant is what is assigned without a call.
    """
    return AROUND.format(sources=list(cells))


def run(
    exercise: Exercise,
    source: str | Sequence[str],
    *,
    seed: int | None = None,
    seconds: float = 10.0,
    total: float = 60.0,
    memory: int = 2 * 2**30,
    answers: int = 16 * 2**20,
    user: str = "nobody",
) -> Verdict:
    """Judge the function named like the exercise in some source code, without running that code here.

    Args:
        exercise: such as `check.q_sample`.
        source: the learner's code, one text or one for each cell; lines that only IPython knows are left out.
        seed: of the inputs; a secret one by default.
        seconds: for one call of the function, and for the code around it; after two that took longer the others are not
            tried.
        total: for all of it, counted from where the code begins.
        memory: bytes that the code may use beyond those of the libraries.
        answers: bytes that may come back.
        user: who the code runs as, if we are root.

    Returns:
        the verdict, with notes on the locks that are missing on this machine. Code that does not answer in time or at
        all is a verdict, too.
    """
    seed = secrets.randbelow(2**31) if seed is None else seed
    cases = exercise.cases(seed)
    cells = [source] if isinstance(source, str) else list(source)
    uid, gid = identity(user)
    with tempfile.TemporaryDirectory(prefix="tinydiff-") as folder:
        library, empty = Path(folder, "lib"), Path(folder, "empty")
        copy_library(library)
        empty.mkdir()
        os.chmod(folder, 0o755)  # another user has to get in
        job = {"name": exercise.name, "cells": cells, "library": exercise.library, "seconds": seconds, "total": total}
        job |= {"memory": memory, "uid": uid, "gid": gid, "readable": [str(p) for p in readable(library)]}
        data, said, ended = _converse(library, empty, pack_cases(cases, job), total, answers)
    seen, locks = read(data, len(cases))
    if locks is None:
        raise RuntimeError(f"The process that was to run the code did not start: {said.strip()[-1000:]}")
    for i, s in enumerate(seen):
        if s is None:
            told = f"No answer: the code {ended}."
            seen[i] = Observation(error="NoAnswer", report=told)
    verdict = judge(exercise, cases, [s for s in seen if s is not None])
    notes = [f"seed: {seed}", *(text for lock, text in MISSING.items() if lock not in locks)]
    if "user" in locks and not open_to_others(Path(sys.base_prefix)):
        notes.append(f"imports: {user} may not read {sys.base_prefix}; only what was loaded before could be imported")
    return replace(verdict, notes=tuple(notes))


def identity(user: str) -> tuple[int | None, int | None]:
    """The number of a user and of its group, if we may become it."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None, None
    import pwd

    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ValueError(f"There is no user {user!r} on this machine: name one with user=, such as 'nobody'.") from None
    return entry.pw_uid, entry.pw_gid


def open_to_others(folder: Path) -> bool:
    """Whether every user may enter this folder."""
    return all(place.stat().st_mode & 0o001 for place in (folder, *folder.parents))


def copy_library(folder: Path) -> None:
    """The library without the checks, the weights and the lessons, and beside it the other side of the conversation."""
    package = Path(tinydiff.__file__).parent
    shutil.copytree(
        package,
        folder / "tinydiff",
        ignore=lambda _, names: [n for n in names if n in ("check", "weights", "cli.py") or n.startswith("_lessons")],
    )
    shutil.copyfile(package / "check" / "harness.py", folder / "harness.py")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def readable(library: Path) -> Iterator[Path]:
    """Where Python and its packages lie, around the installed tinydiff, and what the system's libraries need."""
    yield from (library / "tinydiff" / name for name in ("plot.py", "widgets.py"))  # all else is loaded, and answers
    hidden = Path(tinydiff.__file__).resolve().parent
    roots = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()}
    places = sorted({Path(root).resolve() for root in roots if os.path.isdir(root)})
    for place in places:
        if not any(place != other and place.is_relative_to(other) for other in places):
            yield from _around(place, hidden)
    for system in ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom"):
        if os.path.exists(system):
            yield from _around(Path(system).resolve(), hidden)


def _around(place: Path, hidden: Path) -> Iterator[Path]:
    """The place itself; or its parts, if what is to be hidden lies in it."""
    if not hidden.is_relative_to(place):
        yield place
    elif place != hidden:
        for part in sorted(place.iterdir()):
            if not part.is_symlink():
                yield from _around(part, hidden)


def _converse(library: Path, folder: Path, job: bytes, total: float, limit: int) -> tuple[bytes, str, str]:
    """Start the other process, hand it the job, and read what it answers until it or the time ends.

    Returns:
        the answers, at most `limit` bytes; what was said on stderr before the code ran; and how it ended, in words.
    """
    token = secrets.token_hex(16)
    environment = {"OMP_NUM_THREADS": "1", "TINYDIFF_JOB": token, "HOME": str(folder), "LC_ALL": "C.UTF-8"}
    environment |= {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}
    start = f"import sys; sys.path.insert(0, {str(library)!r}); import harness; harness.serve()"
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        received, broken, ready = bytearray(), [], threading.Event()

        def listen() -> None:
            while len(received) < limit and (chunk := process.stdout.read1(65536)):  # type: ignore[union-attr]
                received.extend(chunk)
                ready.set()  # the first frame is sent before the code begins
            ready.set()
            if len(received) >= limit:
                broken.append(f"sent more than {limit:,} bytes")
                _kill(process, token)

        def speak() -> None:
            try:
                process.stdin.write(job)  # type: ignore[union-attr]
                process.stdin.close()  # type: ignore[union-attr]
            except OSError:
                pass  # it has ended, and its stderr says why

        threads = [threading.Thread(target=work, daemon=True) for work in (listen, speak)]
        for thread in threads:
            thread.start()
        try:
            ready.wait(START)
            code = process.wait(timeout=total)
            ended = f"ended by itself (exit code {code})" if code >= 0 else f"was stopped (signal {-code})"
        except subprocess.TimeoutExpired:
            ended = f"was not done after {total:g} seconds"
        finally:
            _kill(process, token)
            process.wait()
        for thread in threads:
            thread.join(timeout=5)
        stderr.seek(0)
        said = stderr.read(10_000).decode(errors="replace")
    return bytes(received[:limit]), said, broken[0] if broken else ended


def _kill(process: "subprocess.Popen[bytes]", token: str) -> None:
    """End the process, its group, and whoever else inherited the job's environment."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    mark = f"TINYDIFF_JOB={token}".encode()
    for _ in range(20):  # somebody who forks fast needs more than one look
        others = [int(p.name) for p in Path("/proc").glob("[0-9]*") if _has(p, mark) and int(p.name) != process.pid]
        for pid in others:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not others:
            return
        time.sleep(0.01)


def _has(process: Path, mark: bytes) -> bool:
    try:
        return mark in (process / "environ").read_bytes()
    except OSError:
        return False


def read(data: bytes, count: int) -> tuple[list[Observation | None], list[str] | None]:
    """The frames that came back: the first says which locks are closed, before any learner's code ran."""
    frames = _frames(data)
    seen: list[Observation | None] = [None] * count
    try:
        _, first = unpack(next(frames))
        locks = [str(lock) for lock in first["locks"]]
    except (StopIteration, ValueError, KeyError, TypeError):
        return seen, None
    try:
        for frame in frames:
            index, observation = unpack_observation(frame)
            if not 0 <= index < count:
                break
            seen[index] = observation
    except ValueError:
        pass  # nothing after it can be trusted to be a frame
    return seen, locks


def _frames(data: bytes) -> Iterator[bytes]:
    while len(data) >= 8:
        size = int.from_bytes(data[:8], "big")
        if size > len(data) - 8:
            return
        yield data[8 : 8 + size]
        data = data[8 + size :]


def describe(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON can hold it, for a gradebook."""
    return {
        "exercise": verdict.exercise,
        "score": verdict.score,
        "properties": verdict.properties,
        "mistake": verdict.mistake.name if verdict.mistake else None,
        "text": verdict.text(),
        "notes": list(verdict.notes),
    }
