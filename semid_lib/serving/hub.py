"""Recommenders on the Hugging Face Hub: resolve a revision, fetch the listed files of a commit, push a folder.

All requests are made by `huggingface_hub`: its cache, its endpoint and its login, which is HF_TOKEN or that of
`hf auth login`. A token is never an argument, and never part of an error or a log. A commit whose files are all cached
is read without a request. Errors are one sentence: ValueError for what the user has to change, ConnectionError for what
may work when tried again.
"""

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # imported where it is used: many recommenders never meet the Hub
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

_LOGIN = "set HF_TOKEN, or run `hf auth login`"


class Source(NamedTuple):
    """The commit that a recommender was loaded from."""

    repo: str  # org/name
    commit: str  # 40 hexadecimal digits

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit}"


def resolve(where: str | Path, revision: str | None = None) -> Source | None:
    """Find the commit that a revision of a repository names now; None for a folder.

    Parameters
    ----------
    where : str or Path
        A folder, or "org/name" where no such folder exists.
    revision : str, optional
        A branch, tag or commit; by default the branch main. A commit needs no request. Without a network, a branch or
        tag is what it was when it was last seen from here.

    Raises
    ------
    ValueError
        For a name that is neither, a revision of a folder, and a repository or revision that is missing or hidden.
    ConnectionError
        If the Hub does not answer.
    """
    if Path(where).is_dir():
        if revision is not None:
            raise ValueError(f"{where} is a folder, which has no revision {revision!r}: give one for 'org/name' alone")
        return None
    repo = _checked_name(where)
    with _plain_errors(repo, revision or "main"):
        return Source(repo, _client().resolve_revision(repo, revision=revision).resolved)


def fetch(source: Source, sums: Mapping[str, str | None]) -> Path:
    """Bring files of a commit into the cache, each whole, and return the folder of its snapshot.

    Cached files are not requested. For the others, `check` runs first, so nothing is downloaded from a repository that
    cannot be right. The caller computes the checksums of the downloaded files.

    Parameters
    ----------
    source : Source
    sums : mapping
        The files, by their paths in the repository, with their SHA-256 or None.

    Raises
    ------
    ValueError, ConnectionError
        As `check` and `resolve` do.
    """
    from huggingface_hub import try_to_load_from_cache

    repo, commit = source
    missing = [name for name in sums if not isinstance(try_to_load_from_cache(repo, name, revision=commit), str)]
    if missing:
        check(source, {name: sums[name] for name in missing})
    with _plain_errors(repo, commit):
        client = _client()
        for name in missing:
            client.hf_hub_download(repo, name, revision=commit)
    first = next(iter(sums))
    path = Path(str(try_to_load_from_cache(repo, first, revision=commit)))
    return path.parents[first.count("/")]


def check(source: Source, sums: Mapping[str, str | None]) -> None:
    """Check that a commit has these files with these checksums, as far as the Hub knows; nothing is downloaded.

    Raises
    ------
    ValueError
        Naming a file that is missing or has another checksum.
    ConnectionError
        If the Hub does not answer.
    """
    from huggingface_hub import RepoFile

    with _plain_errors(*source):
        found = _client().get_paths_info(source.repo, list(sums), revision=source.commit)
    held = {file.path: file for file in found if isinstance(file, RepoFile)}
    for name, wanted in sums.items():
        if name not in held:
            raise ValueError(f"{source} has no {name}: expected what Recommender.push_to_hub wrote")
        large = held[name].lfs
        if large is not None and wanted not in (None, large.sha256):
            raise ValueError(f"{name} of {source} is not the file that was saved with it: its checksum differs")


def push(folder: str | Path, repo: str, private: bool, replaced: Sequence[str]) -> Source:
    """Upload the files of a folder as one commit, and return it; a missing repository is created.

    Large files are sent first and the commit last. So an interrupted push leaves the repository as it was, and the next
    one does not send again what arrived. If nothing has changed, there is no new commit.

    Parameters
    ----------
    folder : str or Path
    repo : str
    private : bool
    replaced : sequence of str
        Patterns such as `llm/*`: files in the repository that match, and that the folder does not have, are deleted.

    Raises
    ------
    ValueError
        For a name that is none, a token that is missing, wrong or may not write there, and a repository that exists
        with another visibility.
    ConnectionError
        If the Hub does not answer.
    """
    from huggingface_hub import get_token

    repo, client = _checked_name(repo), _client()
    if get_token() is None:
        raise ValueError(f"there is no token to push to {repo}: {_LOGIN}")
    with _plain_errors(repo), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")  # the item table
        client.create_repo(repo, private=private, exist_ok=True)
        if (is_private := bool(client.model_info(repo).private)) != private:
            found, wanted = ("private", "public") if is_private else ("public", "private")
            raise ValueError(
                f"{repo} is {found}, expected a {wanted} one: give private={is_private}, or change it on the Hub"
            )
        message = "A recommender, by semid_lib"
        written = client.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=message, delete_patterns=list(replaced)
        )
        return Source(repo, written.oid)


def _client() -> "HfApi":
    """The Hub's client. Raises ValueError for a token that does not fit into a header and would be part of an error."""
    from huggingface_hub import HfApi, get_token

    if not re.fullmatch(r"[!-~]*", get_token() or ""):
        raise ValueError(f"the token for the Hub holds more than printable ASCII: {_LOGIN} again")
    return HfApi(library_name="semid-lib", library_version=metadata.version("semid-lib"))


def _checked_name(where: str | Path) -> str:
    if isinstance(where, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", where):
        return where
    raise ValueError(f"{where} is neither a folder nor the name of a repository on the Hub, 'org/name'")


@contextlib.contextmanager
def _plain_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn errors of the client into one sentence about the repository, and the revision if one is read."""
    from huggingface_hub import errors, get_token
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.utils import httpx

    broken = (httpx.RequestError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{repo} has no revision {revision!r}: expected a branch, a tag or a commit") from error
    except errors.RepositoryNotFoundError as error:
        who = f"without a token: for a private one {_LOGIN}" if get_token() is None else "with this token"
        raise ValueError(f"{repo} is no folder here, and no repository that the Hub shows {who}") from error
    except errors.HfHubHTTPError as error:
        raise _refusal(repo, error) from error
    except (*broken, errors.RevisionResolutionError, RuntimeError) as error:  # RuntimeError: an upload broke off
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise _refusal(repo, error.__cause__) from error
        why = "HF_HUB_OFFLINE is set" if is_offline_mode() else "the Hub does not answer, or the connection broke off"
        here = "" if revision is None else f", and the cache does not have all files of {revision}"
        raise ConnectionError(f"{repo}: {why}{here}") from error


def _refusal(repo: str, error: "HfHubHTTPError") -> ValueError | ConnectionError:
    status = error.response.status_code
    if status in (408, 429) or status >= 500:
        return ConnectionError(f"the Hub answers {status} for {repo}: try again later")
    known = {
        401: f"the Hub does not know the token that asks for {repo}: {_LOGIN} again",
        403: f"the token has no right to do this in {repo}: expected one that may write there",
    }
    reason = error.server_message or "without a reason"
    return ValueError(known.get(status, f"the Hub refuses this for {repo}: {status}, {reason}"))
