from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cemg_hf.hub.contents import Contents, folder_contents, problems, values_without_local_paths, without_local_paths
from cemg_hf.models import cemg

# Written in two parts, so that no scanner takes this file for a leak.
SECRETS = {
    "a Hugging Face token": "hf_" + "aB3" * 12,
    "an AWS access key": "AKIA" + "ABCDEFGH23456789",
    "an AWS secret key": "aws_secret_access_key = " + "aB3/" * 10,
    "a private key": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "a password in a URL": "postgres://shop:" + "hunter2@db.internal/orders",
    "a GitHub token": "ghp_" + "a1B2" * 9,
    "a GitLab token": "glpat-" + "a1B2" * 5,
    "a Slack token": "xoxb-" + "1234567890-abc",
    "an API key": "sk-" + "proj-" + "a1B2" * 10,
}
HARMLESS = """
#!/usr/bin/env python
see https://arxiv.org/abs/2512.21543 and http://user@example.org:8080/home/page, file names like and/or/home/x
$HOME/data, ~/data, ./home/x, ${CEMG_DATA}/home/beauty, runs/home/x, </root/x>, /home alone, re.compile(r"^/home/x")
hf_hub_download(repo), an hf_token, AKIA, sk-learn, 0123456789abcdef0123456789abcdef0123456789abcdef
"""


def contents(folder: Path, text: str | bytes, name: str = "notes.md") -> Contents:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return Contents({name: file})


@pytest.mark.parametrize(("what", "secret"), SECRETS.items())
def test_a_secret_in_any_text_is_named_by_place_and_kind_and_never_shown(tmp_path: Path, what: str, secret: str) -> None:
    (found,) = problems(contents(tmp_path, f"first line\nthe key: '{secret}'\n"))
    assert found == f"notes.md, line 2: {what}"


def test_the_token_in_use_is_found_whatever_it_looks_like(tmp_path: Path) -> None:
    assert problems(contents(tmp_path, "x = plain-token-1"), ["plain-token-1"]) == ["notes.md, line 1: the token you are logged in with"]


@pytest.mark.parametrize(
    "path", ["/home/me/data/x.csv", "/root/runs/shop", "/Users/me/x", r"C:\Users\me\x", "file:///home/me/x", "PATH=a:/home/me/x"]
)
def test_a_path_of_this_machine_is_found(tmp_path: Path, path: str) -> None:
    (found,) = problems(contents(tmp_path, f'{{"source": "{path}"}}'))
    assert found.startswith("notes.md, line 1: a path of this machine (")


def test_the_folder_of_this_test_is_a_path_of_this_machine(tmp_path: Path) -> None:
    (found,) = problems(contents(tmp_path, f"--output {tmp_path}/run"))
    assert str(tmp_path) in found


def test_what_only_looks_like_it_is_let_through(tmp_path: Path) -> None:
    assert problems(contents(tmp_path, HARMLESS)) == []


def test_binary_files_are_not_read_as_text(tmp_path: Path) -> None:
    assert problems(contents(tmp_path, b"\0\1" + SECRETS["a GitHub token"].encode(), "x.safetensors")) == []


def test_a_long_text_whose_block_ends_within_a_character_is_still_text(tmp_path: Path) -> None:
    text = "x" * 8191 + "é\n" + SECRETS["a GitHub token"]
    assert problems(contents(tmp_path, text)) == ["notes.md, line 2: a GitHub token"]


@given(st.lists(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1), min_size=1, max_size=5))
def test_a_text_without_local_paths_has_none_and_keeps_the_name(parts: list[str]) -> None:
    path = "/home/" + "/".join(parts)
    shortened = without_local_paths(f"cemg run beauty --output {path} --seed 1")
    assert shortened == f"cemg run beauty --output {parts[-1]} --seed 1"


def test_settings_keep_everything_but_the_way_to_files() -> None:
    settings = {"a": "/srv/x/data.csv", "b": ["$CEMG_DATA/x.parquet", 3, None], "c": {"d": "say /home/me/x twice"}, "e": "/usr/share/words"}
    expected = {"a": "data.csv", "b": ["$CEMG_DATA/x.parquet", 3, None], "c": {"d": "say x twice"}, "e": "words"}
    assert values_without_local_paths(settings) == expected


def test_a_folder_goes_without_its_manifest_and_hidden_files(tmp_path: Path) -> None:
    for name in (
        "manifest.json",
        ".cache/x",
        ".DS_Store",
        ".eval_results/x.yaml",
        "README.md",
        "splits/test.parquet",
        "splits/manifest.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = folder_contents(tmp_path)
    assert found.sizes == {".eval_results/x.yaml": 20, "README.md": 9, "splits/manifest.json": 20, "splits/test.parquet": 19}


def test_the_code_that_goes_with_every_model_is_clean() -> None:
    folder = Path(cemg.__file__).parent
    assert problems(Contents({path.name: path for path in folder.glob("*.py")})) == []
