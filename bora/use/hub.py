"""Push an exported run to the Hugging Face hub: one repository, with a folder for each task."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RemoteEntryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from bora.errors import UserError, first_line
from bora.lib.names import one_line
from bora.runs.directory import RunDirectory
from bora.runs.peft import MAPPING, read_mapping
from bora.use.export import export


def push_to_hub(
    run: Path, repo: str, tasks: list[str] | None = None, merge: bool = False, private: bool = False
) -> str:
    """Export a run to a repository on the hub, which is created if it does not exist.

    Folders of an earlier export, as named by its tasks.json, are removed unless this export writes them; other files
    stay. The token is the one that huggingface_hub finds: HF_TOKEN, or the login's.

    Args:
        repo: NAMESPACE/NAME.
        tasks, merge: see `export`.
        private: make the repository private; otherwise a new one follows the namespace's settings.

    Returns:
        The repository's address.

    Raises:
        UserError: see `export`; the name is invalid, there is no token, the token may not write there, the hub does not
            answer, or `private` is asked for and the repository is public.
    """
    _check_name(repo)
    RunDirectory(run.expanduser()).summary()  # raises if the run is unfinished
    api = HfApi()
    with _hub_errors(repo):
        api.whoami()  # so that a missing token is found before the work begins
    with tempfile.TemporaryDirectory(prefix="bora.") as temporary:
        folder = Path(temporary) / "export"
        export(run, folder, tasks, merge, repo)
        with _hub_errors(repo):
            url = api.create_repo(repo, private=private or None, exist_ok=True)
            if private and not api.model_info(repo).private:
                raise UserError(f"{repo} is public already; make it private in its settings, or leave out --private")
            earlier = _earlier_files(api, repo)
            api.upload_folder(
                repo_id=repo, folder_path=folder, commit_message="bora export", delete_patterns=earlier or None
            )
    return str(url)


def _check_name(repo: str) -> None:
    """Raise a UserError unless `repo` is a valid NAMESPACE/NAME."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo!r} cannot name a repository: {first_line(error)}") from error
    if "/" not in repo:
        raise UserError(f"{repo!r} has no namespace: give NAMESPACE/NAME, with your user name or an organisation's")


def _earlier_files(api: HfApi, repo: str) -> list[str]:
    """Return patterns of an earlier export's files in a repository; an empty list if there was none."""
    with tempfile.TemporaryDirectory(prefix="bora.") as folder:
        try:
            api.hf_hub_download(repo, MAPPING, local_dir=folder)
        except RemoteEntryNotFoundError:
            return []
        mean, tasks = read_mapping(Path(folder))
    return [MAPPING, *(f"{name}/*" for name in (mean, *tasks) if name)]


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turn the client's errors into a UserError if the hub refuses or does not answer."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise UserError("no token for the Hugging Face hub; run hf auth login, or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        said = one_line(error.server_message or str(error))
        if error.response.status_code in (401, 403):
            said += f"; the token must be valid, and allowed to write to {repo.partition('/')[0]}"
        raise UserError(f"{repo}: the Hugging Face hub refused: {said}") from error
    # The second if HF_HUB_OFFLINE is set, the third if a download breaks off.
    except (HTTPError, ConnectionError, LocalEntryNotFoundError) as error:
        raise UserError(f"{repo}: the Hugging Face hub cannot be reached ({first_line(error)})") from error
