"""Contents to a repository of the Hub: one atomic commit, that a repeated call continues, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

from ..errors import CEMGError
from .contents import Contents

OWNED: Mapping[str, Sequence[str]] = {
    "model": ("*_cemg.py", "modeling_rqvae.py", "*.safetensors", "*.safetensors.index.json"),
    "dataset": ("*.parquet",),
}
"""Files that a commit removes where it does not bring them: left over from an earlier one, they would be loaded with it. Whatever else
stands in a repository, such as pictures for the card, stays."""
_HTTP_ERRORS = [base for base in HfHubHTTPError.__mro__ if issubclass(base, Exception) and base.__name__ == "HTTPError"]
_BROKEN: tuple[type[Exception], ...] = (OSError, RuntimeError, *_HTTP_ERRORS)
"""What a broken connection raises: the errors of httpx in huggingface_hub 1, of httpx2 in 2, and RuntimeError around either of them where
a large file was on its way."""
AGAIN = "it holds all of the push or nothing; run the same command again, what was uploaded is not sent twice"


@dataclass(frozen=True)
class Pushed:
    """The head of the branch after a push. changed: whether the push made a commit."""

    repo: str
    kind: str
    commit: str
    url: str
    changed: bool


def push(contents: Contents, repo: str, *, kind: str, private: bool, branch: str | None, message: str) -> Pushed:
    """Make the branch of a repository hold these files, in one commit on top of the head it had when the push began.

    Large files go up before the commit and are found there by their hash when an interrupted push is repeated. The endpoint and the
    token are those of `huggingface_hub` (HF_ENDPOINT, HF_TOKEN, `hf auth login`).

    Args:
        contents: the files.
        repo: "name" or "owner/name"; made if it does not exist.
        kind: "model" or "dataset".
        private: who may see a repository that is made now.
        branch: None is `main`; another one is made from it if it does not exist.
        message: title of the commit.

    Raises:
        CEMGError: no right or no way to push, a repository that is public though `private` was asked for, or one that changed meanwhile.
    """
    api = HfApi()
    with _explained(repo):
        repo = api.create_repo(repo, repo_type=kind, private=private or None, exist_ok=True).repo_id
        if private and not api.repo_info(repo, repo_type=kind).private:
            raise CEMGError(f"{repo}: exists and is public, --private does not change it; make it private in its settings, or leave it out")
        if branch is not None:
            api.create_branch(repo, branch=branch, repo_type=kind, exist_ok=True)
        head = api.repo_info(repo, repo_type=kind, revision=branch).sha
        there = set(api.list_repo_files(repo, repo_type=kind, revision=head))
        stale = {path for path in there - set(contents.files) if any(fnmatch(path, pattern) for pattern in OWNED[kind])}
        operations = [CommitOperationAdd(path, file) for path, file in sorted(contents.files.items())]
        commit = api.create_commit(
            repo,
            operations + [CommitOperationDelete(path) for path in sorted(stale)],
            commit_message=message,
            repo_type=kind,
            revision=branch,
            parent_commit=head,
        )
    return Pushed(repo, kind, commit.oid, f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo}", commit.oid != head)


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """What the client raises, as an error that names the repository and the remedy."""
    try:
        yield
    except CEMGError:
        raise
    except OfflineModeIsEnabled as error:
        raise CEMGError(f"{repo}: HF_HUB_OFFLINE is set, so nothing can be pushed; unset it") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise CEMGError(f"{repo}: the Hub does not know it, or not to you; check the name, and log in with `hf auth login`") from error
    except HfHubHTTPError as error:
        raise CEMGError(f"{repo}: {_reason(error)}") from error
    except ValueError as error:  # of names, and of a card whose metadata the Hub does not take
        raise CEMGError(f"{repo}: refused ({_one_line(error)}); correct what it names, and run the same command again") from error
    except _BROKEN as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        reason = _reason(cause) if isinstance(cause, HfHubHTTPError) else f"the connection broke ({_one_line(cause)}); {AGAIN}"
        raise CEMGError(f"{repo}: {reason}") from error


def _reason(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    said = error.server_message or _one_line(error)
    if status == 401:
        return "the Hub asks who you are; log in with `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return f"not allowed ({said}); take a token with write access to it, or another --repo"
    if status == 412:
        return "somebody else has committed to it meanwhile; look at what came, and run the same command again"
    if status == 429 or status >= 500:
        return f"the Hub answered {status} ({said}); {AGAIN}"
    return f"the Hub refused ({status}: {said}); correct what it names, and run the same command again"


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
