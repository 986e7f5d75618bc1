"""What this machine has: processors, memory, disk, what it can reach, which extras are installed."""

import gc
import importlib.util
import netrc
import os
import platform
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from packaging.requirements import Requirement

# Extras for working on this project, not with it.
OURS = {"test", "docs", "audit"}
CGROUP = Path("/sys/fs/cgroup")  # where Linux tells a container's bound on memory


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> tuple[int, int] | None:
    """Bytes in all, and available now; of the container where there is one. None where the system does not say."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (1024 * int(lines[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        if importlib.util.find_spec("psutil") is None:
            return None
        import psutil

        total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    try:
        bound = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # none, or "max"
        return total, free
    return min(total, bound), min(free, max(0, bound - used))


def gpus() -> list[dict[str, Any]]:
    """Each CUDA device: name, memory, free (bytes) and whether it computes in bfloat16."""
    found = []
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        with torch.cuda.device(i):
            bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        found.append(
            {"name": torch.cuda.get_device_name(i), "memory": total, "free": free, "bfloat16": bfloat16}
        )
    return found


def forget_peak() -> None:
    """From here on the peak of memory is counted anew, where the system can do so."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    forget = Path("/proc/self/clear_refs")
    if forget.exists():  # Linux
        forget.write_text("5")


def peak_memory(device: str) -> int:
    """Bytes that were needed at most since then: of the GPU, or by the whole process with its libraries."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    if Path("/proc/self/clear_refs").exists():
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return 1024 * int(status["VmHWM"].split()[0])
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_disk(path: Path) -> int:
    """Bytes free where a folder is, or would be made."""
    path = path.expanduser().absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def reach(urls: Mapping[str, str], seconds: float = 4.0) -> dict[str, str]:
    """Whether servers answer, all asked at once.

    Args:
        urls: name → address.
        seconds: after which no answer is waited for any more.

    Returns:
        name → "reached", or "not reached" and why.
    """
    found = dict.fromkeys(urls, f"not reached (no answer in {seconds:g} s)")

    def ask(name: str, url: str) -> None:
        try:
            parts = urlsplit(url)
            bare = parts._replace(
                netloc=parts.netloc.rpartition("@")[2]
            ).geturl()  # whether it answers, not to whom
            request = urllib.request.Request(bare, method="HEAD", headers={"User-Agent": "bora"})
            urllib.request.urlopen(request, timeout=seconds).close()
            found[name] = "reached"
        except urllib.error.HTTPError as error:  # an answer; that to the root may be anything
            blocked = error.code in (407, 502, 503, 504)
            found[name] = f"not reached (answer {error.code})" if blocked else "reached"
        except (OSError, ValueError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            found[name] = f"not reached ({getattr(reason, 'strerror', None) or reason})"

    # Daemons: looking up a name takes no timeout, and must not keep the command from ending.
    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in urls.items()]
    until = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return dict(found)


def wandb_key(url: str) -> bool:
    """Whether there is a key for the W&B server: in the environment, or in ~/.netrc, where wandb login puts it.

    W&B itself is not asked: it would go to the network.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    names = (os.environ.get("NETRC"), "~/.netrc", "~/_netrc")
    for file in (Path(name).expanduser() for name in names if name):
        try:
            if file.is_file() and netrc.netrc(str(file)).authenticators(urlsplit(url).hostname or ""):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def extras() -> dict[str, list[str]]:
    """Each of bora's extras for its users: the packages that it lacks."""
    wanted: dict[str, set[str]] = {}
    for line in requires("bora") or []:
        need = Requirement(line)
        for extra in _extras_of(need) - OURS:
            wanted.setdefault(extra, set()).add(str(need.name))
    return {extra: sorted(p for p in names if not _installed(p)) for extra, names in sorted(wanted.items())}


def _extras_of(need: Requirement) -> set[str]:
    if need.marker is None or need.name == "bora":  # one extra that names another
        return set()
    known = {part.split('"')[1] for part in str(need.marker).split("extra ==")[1:]}
    return {extra for extra in known if need.marker.evaluate({"extra": extra})}


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
