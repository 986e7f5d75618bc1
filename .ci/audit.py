"""Known vulnerabilities in what constraints.txt pins, and secrets in the tracked files: `make audit`.

Leaves with 1 if there is either. The advisories are asked for over the network; where neither PyPI nor OSV gives them,
that is said in a line that begins with NOT AUDITED, and is no failure unless --strict is given (then 3): a build must
not depend on another's server, and nobody should take a check that was not made for one that was passed.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SERVICES = {"pypi": "PyPI", "osv": "OSV"}
# Advisories that do not concern us: {"PYSEC-…": "why"}.
IGNORED: dict[str, str] = {}
FOUND, NOT_AUDITED = 1, 3
SHOWN = 8  # packages that a line names
# What detect-secrets has no detector for, unless it stands in quotes: what our users log in with.
TOKENS = {
    "Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
    "W&B key, as ~/.netrc has it": re.compile(r"\bpassword\s+[0-9a-f]{40}\b"),
}


def call(*words: str) -> tuple[int, str, str]:
    """Run a tool of this environment in the repository: exit code, standard output, standard error."""
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def advisories(service: str) -> tuple[list[dict[str, Any]] | None, str]:
    """Each pinned package with its `vulns`, or with a `skip_reason`; None, and why, where the service gave nothing."""
    ignored = [word for name in IGNORED for word in ("--ignore-vuln", name)]
    code, out, err = call(
        "pip_audit",
        "--requirement",
        "constraints.txt",
        "--no-deps",
        "--disable-pip",
        "--format",
        "json",
        "--progress-spinner",
        "off",
        "--timeout",
        "20",
        "--vulnerability-service",
        service,
        *ignored,
    )
    try:
        packages = json.loads(out)["dependencies"]
    except (ValueError, KeyError):  # it came to no result at all
        words = [line for line in err.splitlines() if line.strip()]
        return None, words[-1].partition(":")[0] if words else f"exit code {code}"
    if all("skip_reason" in package for package in packages):
        # A server that answers, but knows not one of these packages, is not the one that was meant.
        return None, "it knows none of the packages"
    return packages, ""


def audit_packages() -> tuple[int, list[str]]:
    """Exit code and lines: of the first service that can be reached."""
    reasons = []
    for service, name in SERVICES.items():
        packages, why = advisories(service)
        if packages is None:
            reasons.append(f"{name} ({why})")
            continue
        lines = [
            f"audit: {p['name']} {p['version']}: {v['id']}, mended in {', '.join(v['fix_versions']) or 'no version yet'}"
            for p in packages
            for v in p.get("vulns", [])
        ]
        code = FOUND if lines else 0
        skipped = [p["name"] for p in packages if "skip_reason" in p]
        if skipped:
            more = f" and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
            lines.append(f"audit: {name} does not know {', '.join(skipped[:SHOWN])}{more}")
        known = len(packages) - len(skipped)
        lines.append(f"audit: {known} packages held against {name}'s advisories")
        return code, lines
    return NOT_AUDITED, [
        f"NOT AUDITED: no known vulnerabilities were looked for, {' and '.join(reasons)} could not be asked"
    ]


def audit_secrets(files: list[str]) -> tuple[int, list[str]]:
    """Exit code and lines: of detect-secrets, offline, and by TOKENS, over files of the repository."""
    # Not verified: a secret that was found must not be sent anywhere.
    code, out, err = call("detect_secrets.pre_commit_hook", "--no-verify", "--baseline", ".secrets.baseline", *files)
    ours = [
        f"{kind}: {name}:{text.count(chr(10), 0, found.start()) + 1}"
        for name in files
        for text in [(ROOT / name).read_text("utf-8", errors="replace")]
        for kind, pattern in TOKENS.items()
        for found in pattern.finditer(text)
    ]
    if code or ours:
        return FOUND, [
            *(out + err).splitlines(),
            *ours,
            "audit: these look like secrets (.secrets.baseline says what is none)",
        ]
    return 0, [f"audit: no secret in {len(files)} tracked files"]


def tracked_files() -> list[str]:
    """List the files that git tracks and that are there."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in tracked.split("\0") if name and (ROOT / name).is_file()]


def main(arguments: list[str]) -> int:
    """Both; the exit code."""
    codes = []
    for code, lines in (audit_packages(), audit_secrets(tracked_files())):
        print("\n".join(lines), flush=True)
        codes.append(code)
    if FOUND in codes:
        return FOUND
    return NOT_AUDITED if NOT_AUDITED in codes and "--strict" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
