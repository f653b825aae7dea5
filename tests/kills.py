"""Work that is disturbed or killed at a chosen line of the library, or after some time: what does it leave behind?"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import ModuleType

from tqdm import tqdm


def at_line(work: Callable[[], object], line: int, do: Callable[[], object], *modules: ModuleType) -> bool:
    """Run `work`, and `do` before the n-th line that it runs of these modules; whether it came so far.

    Counted lines come at the same place on a fast machine and on a slow one.
    """
    files, left = {module.__file__ for module in modules}, line

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        left -= event == "line"
        if not left:
            sys.settrace(None)
            do()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return left <= 0


def killed_at(work: Callable[[], object], line: int, *modules: ModuleType) -> bool:
    """`killed`, before the n-th line that `work` runs of these modules; whether it had finished."""
    return killed(lambda: at_line(work, line, lambda: os.kill(os.getpid(), signal.SIGKILL), *modules))


def killed(work: Callable[[], object], seconds: float = 600) -> bool:
    """Run `work` in a forked process, kill it with SIGKILL after some seconds, and return whether it had finished.

    Forked, since importing takes longer than what is tested. Raises AssertionError if `work` raised: its traceback is
    on stderr.
    """
    pid = os.fork()
    if not pid:
        status = 1
        tqdm.set_lock(threading.RLock())  # its own one is shared with the parent, which would wait for it for ever
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert status in (0, signal.SIGKILL), f"the process ended with status {status}"
            return status == 0
        time.sleep(min(0.001, max(0.0, deadline - time.monotonic())))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False
