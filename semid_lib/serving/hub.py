"""Recommenders on the Hugging Face Hub: a revision as a commit, the files of it that are asked for, a folder pushed.

All traffic is the `huggingface_hub` client's: its cache, its endpoint, and its login, which is HF_TOKEN or what
`hf auth login` left; no token is an argument here, and none stands in an error or a log. A commit whose files all lie
in the cache is read without a request. What goes wrong is one sentence: a ValueError for what has to be changed first,
a ConnectionError for what may pass when it is tried again.
"""

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

_LOGIN = "set HF_TOKEN, or run `hf auth login`"


class Source(NamedTuple):
    """Where on the Hub a recommender lies."""

    repo: str  # org/name
    commit: str  # 40 hexadecimal digits

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit}"


def resolve(where: str | Path, revision: str | None = None) -> Source | None:
    """The commit that a revision of a repository stands for now; None for a folder.

    where: a folder, or "org/name" where there is none. revision: a branch, a tag or a commit, by default the branch
    main. A commit is taken as it is, without a request; without a network, a branch or tag is what it was when it was
    last seen from here.

    Raises ValueError for a name that is neither, a revision of a folder, and a repository or revision that does not
    exist or may not be seen; ConnectionError if the Hub cannot be asked.
    """
    if Path(where).is_dir():
        if revision is not None:
            raise ValueError(f"{where} is a folder, which has no revision {revision!r}: give one for 'org/name' alone")
        return None
    repo = _checked_name(where)
    with _plain_errors(repo, revision or "main"):
        return Source(repo, _client().resolve_revision(repo, revision=revision).resolved)


def fetch(source: Source, sums: Mapping[str, str | None]) -> Path:
    """Bring files of a commit into the cache, and return the folder of its snapshot; whole files or none.

    sums: the files, by their paths in the repository, with their SHA-256 or None. Those already in the cache are not
    asked for. Of the others the Hub is asked first whether it has them all, and which checksums it knows: nothing is
    downloaded of a repository that cannot be right. (The checksum of what arrives is for the caller to compute.)

    Raises ValueError naming a file that is missing there or has another checksum, and as `resolve` does.
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
    path = Path(try_to_load_from_cache(repo, first, revision=commit))
    return path.parents[first.count("/")]


def check(source: Source, sums: Mapping[str, str | None]) -> None:
    """Whether the Hub has files of a commit, and knows the checksums that are given; nothing is downloaded.

    Raises as `fetch` does.
    """
    from huggingface_hub import RepoFile

    with _plain_errors(*source):
        found = _client().get_paths_info(source.repo, list(sums), revision=source.commit)
    held = {file.path: file for file in found if isinstance(file, RepoFile)}
    for name in sums:
        if name not in held:
            raise ValueError(f"{source} has no {name}: expected what Recommender.push_to_hub wrote")
        large = held[name].lfs
        if large is not None and sums[name] not in (None, large.sha256):
            raise ValueError(f"{name} of {source} is not the file that was saved with it: its checksum differs")


def check_push(repo: str, private: bool) -> bool:
    """Whether there is such a repository, after everything that could stop a push before it begins.

    Raises ValueError for a name that is none, no token or a wrong one, and a repository that exists but is public
    where a private one is asked for, or the other way round; ConnectionError if the Hub cannot be asked.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    repo, client = _checked_name(repo), _client()
    if get_token() is None:
        raise ValueError(f"there is no token to push to {repo} with: {_LOGIN}")
    with _plain_errors(repo):
        client.whoami()
        try:
            is_private = bool(client.model_info(repo).private)
        except RepositoryNotFoundError:
            return False
    if is_private != private:
        found, wanted = ("private", "public") if is_private else ("public", "private")
        raise ValueError(
            f"{repo} exists and is {found}, and a {wanted} one is asked for: give private={is_private}, or change it "
            "in its settings on the Hub"
        )
    return True


def push(folder: str | Path, repo: str, private: bool = True, replaced: Sequence[str] = ()) -> Source:
    """Put the files of a folder into a repository as one commit, and return that; the repository is made if need be.

    Large files go first, beside the repository, and the commit last: whatever breaks off before leaves the repository
    as it was, and the next push does not send again what had arrived. If all are there already, there is no new commit.
    Files that the folder does not have stay, except those that match one of the patterns `replaced`, such as "llm/*".
    Raises as `check_push` does, and ValueError for a token that may not write there.
    """
    exists, client = check_push(repo, private), _client()
    with _plain_errors(repo), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")  # the item table
        if not exists:
            client.create_repo(repo, private=private)
        written = client.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="A recommender, by semid_lib",
            delete_patterns=list(replaced) or None,
        )
        return Source(repo, written.oid)


def _client():
    """The Hub's client. Raises ValueError for a token that would not fit into a header, and would stand in an error."""
    from huggingface_hub import HfApi, get_token

    if not re.fullmatch(r"[!-~]*", get_token() or ""):
        raise ValueError(f"the token for the Hub holds more than printable ASCII: {_LOGIN} again")
    return HfApi(library_name="semid-lib", library_version=metadata.version("semid-lib"))


def _checked_name(where: str | Path) -> str:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    with contextlib.suppress(HFValidationError):
        if isinstance(where, str) and where.count("/") == 1:
            validate_repo_id(where)
            return where
    raise ValueError(f"{where} is neither a folder nor the name of a repository on the Hub, 'org/name'")


@contextlib.contextmanager
def _plain_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """What the client raises, as one sentence about the repository; revision: what is looked for in it."""
    from huggingface_hub import errors, get_token
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.utils import httpx

    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{repo} has no revision {revision!r}: expected a branch, a tag or a commit") from error
    except errors.RepositoryNotFoundError as error:
        who = f"that is seen without a token: for a private one {_LOGIN}" if get_token() is None else "of this token's"
        raise ValueError(f"{repo} is no folder here, and no repository on the Hub {who}") from error
    except errors.HfHubHTTPError as error:
        raise _refusal(repo, error) from error
    except (
        httpx.RequestError,
        errors.OfflineModeIsEnabled,
        errors.LocalEntryNotFoundError,
        errors.RevisionResolutionError,
        RuntimeError,  # by which the client says that an upload broke off
    ) as error:
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise _refusal(repo, error.__cause__) from error
        why = "HF_HUB_OFFLINE is set" if is_offline_mode() else "the Hub cannot be reached, or broke off"
        here = "" if revision is None else f", and {revision} is not wholly on this machine"
        raise ConnectionError(f"{repo}: {why}{here}") from error


def _refusal(repo: str, error) -> ValueError | ConnectionError:
    status = error.response.status_code
    if status == 401:
        return ValueError(f"the Hub does not know the token that asks for {repo}: {_LOGIN} again")
    if status == 403:
        return ValueError(f"the token has no right to do this in {repo}: expected one that may write there")
    if status in (408, 429) or status >= 500:
        return ConnectionError(f"the Hub answers {status} for {repo}: try again later")
    return ValueError(f"the Hub refuses this for {repo}: {status}, {error.server_message or 'without a reason'}")
