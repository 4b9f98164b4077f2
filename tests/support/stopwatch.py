"""Time as it passes for this process: a busy machine must not make it look slow."""

import time
from pathlib import Path


class Stopwatch:
    """Runs from when it is made, and stands while threads of this process are ready and others have the processor.

    So what it shows is what the process spends: computing, waiting, sleeping. Where the system does not count how long
    its threads are kept waiting (Linux does), it is a plain clock.
    """

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._kept_waiting_s = _kept_waiting_s()

    @property
    def seconds(self) -> float:
        kept_waiting_s = _kept_waiting_s() - self._kept_waiting_s
        return max(time.perf_counter() - self._began - kept_waiting_s, 0.0)


def _kept_waiting_s() -> float:
    """Seconds that this process's threads have stood in the queue for a processor.

    Source: Linux, Documentation/scheduler/sched-stats.rst, /proc/<pid>/schedstat (read 2026-11-27).
    """
    waited_ns = 0
    for counts in Path("/proc/self/task").glob("*/schedstat"):
        try:
            waited_ns += int(counts.read_text().split()[1])
        except OSError:  # a thread that has ended meanwhile
            continue
    return waited_ns / 1e9
