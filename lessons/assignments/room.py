"""Where students' code runs: like `tinydiff.check.isolated`, with PyTorch loaded once for all and not once for each.

A room is a process that has loaded PyTorch and then does nothing but fork. Each question gets a child of its own, which
leaves its parent's session, closes every file but its job and its answer, may start no process, and goes on as
`isolated`'s process does: another user where possible, no files, no network, limits. The room never sees a line of a
student's code nor an answer, so that nothing of one student is left in memory that the next one's process inherits.
"""

import contextlib
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tinydiff.check import Exercise, Verdict, isolated, judge
from tinydiff.check.harness import Observation, pack_cases

FORKS = """
import os, resource, sys
sys.path.insert(0, {library!r})
import harness
commands, answers, silence = os.dup(0), os.dup(1), os.open(os.devnull, os.O_RDWR)
os.dup2(silence, 0), os.dup2(silence, 1)
os.write(answers, b"ready\\n")
while command := os.read(commands, 4096):
    job, channel = command.decode().rstrip("\\n").split("\\t")
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            os.dup2(os.open(job, os.O_RDONLY), 0), os.dup2(os.open(channel, os.O_WRONLY), 1)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
            harness.serve()
        finally:
            os._exit(1)
    os.write(answers, b"%d\\n" % child)
    _, status = os.waitpid(child, 0)
    os.write(answers, b"%d\\n" % os.waitstatus_to_exitcode(status))
"""


class Room:
    """One process that forks; `ask` runs one job at a time in a child of it."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="tinydiff-")
        place = Path(self.folder.name)
        place.chmod(0o755)  # another user has to get in
        self.library, self.empty, self.jobs = place / "lib", place / "empty", place / "jobs"
        isolated.copy_library(self.library)
        self.empty.mkdir()
        self.jobs.mkdir(mode=0o700)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", FORKS.format(library=str(self.library))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self.empty,
            env={"OMP_NUM_THREADS": "1", "HOME": str(self.empty), "LC_ALL": "C.UTF-8"},
            start_new_session=True,
            bufsize=0,
        )
        if self._line(isolated.START) != "ready":
            raise RuntimeError("The process in which students' code is to run did not start: see the lines above.")

    def ask(self, job: bytes, total: float, limit: int) -> tuple[bytes, str]:
        """Run one job; returns what came back, at most `limit` bytes, and how it ended, in words."""
        paper, channel = self.jobs / "job", self.jobs / "channel"
        paper.write_bytes(job)
        os.mkfifo(channel, 0o600)
        answer = os.open(channel, os.O_RDWR | os.O_NONBLOCK)  # also for writing: then it has no end before ours
        try:
            self.process.stdin.write(f"{paper}\t{channel}\n".encode())
            child = int(self._line(isolated.START) or 0)
            if not child:
                return b"", "was lost together with its process"
            received, ended = self._listen(answer, total, limit)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
            if ended:
                self._line(isolated.START)  # the status of what has just been killed
                return received, ended
            status = self._line(isolated.START)
            received = (received + self._drain(answer, limit))[:limit]
            code = int(status) if status else 0
            return received, f"ended by itself (exit code {code})" if code >= 0 else f"was stopped (signal {-code})"
        finally:
            os.close(answer)
            paper.unlink()
            channel.unlink()

    def _listen(self, answer: int, total: float, limit: int) -> tuple[bytes, str]:
        """Until the child has ended (then the words are empty), the time is over, or too much has come."""
        received, until, status = bytearray(), time.monotonic() + isolated.START, self.process.stdout.fileno()
        while True:
            ready, _, _ = select.select([answer, status], [], [], max(0, until - time.monotonic()))
            if not ready:
                return bytes(received), f"was not done after {total:g} seconds"
            if answer in ready:
                if not received:  # the first frame is sent before the student's code begins
                    until = time.monotonic() + total
                received += os.read(answer, 65536)
                if len(received) >= limit:
                    return bytes(received[:limit]), f"sent more than {limit:,} bytes"
            elif status in ready:
                return bytes(received), ""
            if time.monotonic() > until:
                return bytes(received), f"was not done after {total:g} seconds"

    @staticmethod
    def _drain(answer: int, limit: int) -> bytes:
        received = bytearray()
        with contextlib.suppress(BlockingIOError):
            while len(received) < limit and (chunk := os.read(answer, 65536)):
                received += chunk
        return bytes(received)

    def _line(self, seconds: float) -> str:
        """The next line that the room says; nothing if it has gone or says none in time."""
        line, until = b"", time.monotonic() + seconds
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, until - time.monotonic()))
            byte = self.process.stdout.read(1) if ready else b""
            if not byte:
                self.process.kill()
                return ""
            line += byte
        return line.decode().strip()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.folder.cleanup()


class House:
    """Some rooms, each used by one question at a time; judges what comes out of them, here and one after another."""

    def __init__(self, rooms: int) -> None:
        self.free: queue.Queue[Room | None] = queue.Queue()
        for _ in range(rooms):
            self.free.put(None)  # opened when first needed
        self.threads = ThreadPoolExecutor(rooms)

    def judge(
        self,
        questions: list[tuple[Exercise, list[str], int]],
        *,
        seconds: float = 5.0,
        total: float = 20.0,
        memory: int = 2 * 2**30,
        answers: int = 16 * 2**20,
        user: str = "nobody",
    ) -> list[Verdict]:
        """The verdicts on (exercise, cells, seed), as `isolated.run` would give them, whose options these are."""
        if not sys.platform.startswith("linux"):
            options = {"seconds": seconds, "total": total, "memory": memory, "answers": answers, "user": user}
            return [isolated.run(e, cells, seed=seed, **options) for e, cells, seed in questions]
        uid, gid = isolated.identity(user)
        options = {"seconds": seconds, "total": total, "memory": memory, "uid": uid, "gid": gid}
        cases = [exercise.cases(seed) for exercise, _, seed in questions]

        def run(i: int) -> tuple[bytes, str]:
            exercise, cells, _ = questions[i]
            room = self.free.get()
            try:
                if room is not None and room.process.poll() is not None:
                    room.close()
                    room = None
                room = room or Room()
                job = {"name": exercise.name, "cells": cells, "library": exercise.library, **options}
                job["readable"] = [str(place) for place in isolated.readable(room.library)]
                return room.ask(pack_cases(cases[i], job), total, answers)
            finally:
                self.free.put(room)

        came = list(self.threads.map(run, range(len(questions))))
        return [
            verdict(e, seed, c, data, ended)
            for (e, _, seed), c, (data, ended) in zip(questions, cases, came, strict=True)
        ]

    def close(self) -> None:
        self.threads.shutdown()
        while not self.free.empty():
            if room := self.free.get():
                room.close()


def verdict(exercise: Exercise, seed: int, cases: list, data: bytes, ended: str) -> Verdict:
    """What is to be said of the frames that came back."""
    seen, locks = isolated.read(data, len(cases))
    if locks is None:
        raise RuntimeError(f"The process that was to run the code of {exercise.name} did not start: it {ended}.")
    silent = Observation(error="NoAnswer", report=f"No answer: the code {ended}.")
    told = judge(exercise, cases, [silent if s is None else s for s in seen])
    notes = [text for lock, text in isolated.MISSING.items() if lock not in locks]
    if "user" in locks and not isolated.open_to_others(Path(sys.base_prefix)):
        notes.append(f"imports: other users may not read {sys.base_prefix}, so only what was loaded could be imported")
    return replace(told, notes=(f"seed: {seed}", *notes))
