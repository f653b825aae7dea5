"""To the Hub and back through the real client: atomic, pinned, private, one sentence for each fault."""

import hashlib
import time
import traceback
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from hub_server import TOKEN, Hub
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.embed import item_texts
from semid_lib.llm import fine_tuning
from semid_lib.llm.base_models import small_model
from semid_lib.llm.llm_search import Adapter, LanguageModelSearch
from semid_lib.llm.vocabulary import extend_vocabulary
from semid_lib.serving import hub
from semid_lib.serving.http import web
from semid_lib.serving.recommender import Recommender

REPO = "ann/shop"
FILES = {"config.json", "items.parquet", "model.safetensors", "semantic_ids.npz"}
QUERIES = ["red tent", "a lamp for the garden"]


@pytest.fixture
def server(serve, tmp_path, monkeypatch):
    """A Hub of the user Ann's, whom the client is logged in as, with an empty cache; nothing waits between attempts."""
    hub = Hub()
    point_to(monkeypatch, serve(hub.app))
    for name in ("HF_HUB_CACHE", "HF_TOKEN_PATH"):
        monkeypatch.setattr(constants, name, str(tmp_path / name))
    for name, value in {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_DISABLE_TELEMETRY": True}.items():
        monkeypatch.setattr(constants, name, value)
    for module in (file_download, _http):
        monkeypatch.setattr(module, "time", SimpleNamespace(**vars(time) | {"sleep": lambda _: None}))
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def point_to(monkeypatch, url):
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def pushed(server, recommender) -> hub.Source:
    """A private repository of Ann's with a recommender in it; nothing of it is in the cache."""
    source = recommender.push_to_hub(REPO)
    server.requests.clear()
    return source


def content_of(recommender, folder) -> dict[str, bytes]:
    recommender.save_pretrained(folder)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_of(call, kind=ValueError) -> str:
    """What a call fails with: one line, and no token in it or in its traceback."""
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and "sesame" not in "".join(traceback.format_exception(caught.value))
    return text


def load_error(kind=ValueError, revision=None, where=REPO) -> str:
    return error_of(lambda: Recommender.from_pretrained(where, revision=revision), kind)


# --- there and back ---


def test_what_is_pushed_comes_back(server, recommender, histories):
    source = recommender.push_to_hub(REPO)
    repository = server.repositories[REPO]
    assert repository.private and repository.files.keys() == FILES | {"README.md", ".gitattributes"}
    assert list(repository.commits)[1:] == [source.commit]  # the first made the repository
    again = Recommender.from_pretrained(REPO)
    assert again.source == source == (REPO, repository.refs["main"]) and str(source) == f"{REPO}@{source.commit}"
    np.testing.assert_array_equal(again.recommend(histories).item_ids, recommender.recommend(histories).item_ids)
    assert recommender.source is None
    assert recommender.push_to_hub(REPO) == source and len(server.asked("PUT")) == 3  # the same again: no new commit


def test_the_card_is_pushed_too_and_its_rows_are_checked_first(server, recommender):
    origin = dict.fromkeys(("scale", "commit", "dirty", "hardware", "fingerprint"), "") | {"data": "beauty"}
    row = {"key": "next_item/beauty/timeline/recall@10", "value": 0.07, "ci95": [0.06, 0.08], "n": 9} | origin
    error_of(lambda: recommender.push_to_hub(REPO, private=False, rows=[row, row | {"commit": "other"}]))
    assert server.requests == []
    recommender.push_to_hub(REPO, private=False, rows=[row], licence="apache-2.0")
    card = server.repositories[REPO].files["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["license"] == "apache-2.0" and ".0700" in card and "beauty" in card
    assert not server.repositories[REPO].private


@pytest.fixture
def adapted(server, shop, searchable, tmp_path):
    """A searcher whose model is a public one at a commit with an adapter merged into it, made as `sft` makes one."""
    model, tokenizer = small_model(item_texts(searchable), 300, hidden_size=16, n_layers=1, n_heads=2)
    fine_tuning.save_model(model, tokenizer, tmp_path / "base")
    files = {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()}
    commit = server.add("bob/base", files)
    server.add("bob/base", {**files, "model.safetensors": files["model.safetensors"][:-4] + b"\0\0\0\0"})  # main moves
    tokens = extend_vocabulary(model, tokenizer, shop.ids, item_texts(searchable))
    wrapped = fine_tuning.with_rows(model, tokens, fine_tuning.FineTuning(rank=2), "lora")
    torch.manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    wrapped.save_pretrained(tmp_path / "run", save_embedding_layers=False)
    trie = PrefixTrie.build(shop.ids.unique)
    adapter = Adapter("bob/base", commit, tmp_path / "run")
    merged = wrapped.merge_and_unload().eval()
    return LanguageModelSearch(merged, tokenizer, tokens, trie, beam_width=20, adapter=adapter)


def found_by(recommender, shop):
    return recommender.search(QUERIES, 5, query_vectors=shop.vectors[: len(QUERIES)])


@pytest.mark.slow
def test_an_adapter_is_pushed_without_its_model_and_the_next_push_removes_it(
    server, shop, searchable, adapted, recommender, tmp_path
):
    adapter = Recommender(None, shop.ids, searchable, adapted)
    before, stored = adapter.push_to_hub(REPO), server.repositories[REPO]
    assert "llm/adapter_model.safetensors" in stored.files and "llm/model.safetensors" not in stored.files
    assert yaml.safe_load(stored.files["README.md"].decode().split("---")[1])["base_model"] == "bob/base"
    again = Recommender.from_pretrained(REPO)
    np.testing.assert_array_equal(found_by(again, shop).item_ids, found_by(adapter, shop).item_ids)
    again.save_pretrained(tmp_path / "kept")  # it is still an adapter
    assert not (tmp_path / "kept" / "llm" / "model.safetensors").exists()
    huggingface_hub.HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id=REPO)
    recommender.push_to_hub(REPO)
    assert stored.files.keys() == FILES | {"README.md", ".gitattributes", "notes.txt"}
    assert Recommender.from_pretrained(REPO, revision=before.commit).searcher.adapter is not None


# --- which commit ---


def test_a_revision_is_a_branch_a_tag_or_a_commit(server, shop, new_timeline, histories):
    models = [Recommender(new_timeline(seed=seed), shop.ids, shop.items) for seed in (0, 1)]
    first, second = (model.push_to_hub(REPO) for model in models)
    server.repositories[REPO].refs["v1"] = first.commit
    for revision, number in {None: 1, "main": 1, "v1": 0, first.commit: 0, second.commit: 1}.items():
        loaded = Recommender.from_pretrained(REPO, revision=revision)
        assert loaded.source == (first, second)[number]
        wanted = models[number].recommend(histories).item_ids
        np.testing.assert_array_equal(loaded.recommend(histories).item_ids, wanted)
    for unknown in ("v2", "0" * 40):
        assert f"no revision {unknown!r}" in load_error(revision=unknown)


# --- nothing but our files ---


def test_other_files_of_the_repository_are_never_asked_for(server, recommender, tmp_path, histories):
    ours = content_of(recommender, tmp_path / "saved")
    others = {"pytorch_model.bin": b"\x80\x04.", "modeling.py": b"raise SystemExit", "huge.safetensors": b"0" * 10**6}
    server.add(REPO, ours | others)
    loaded = Recommender.from_pretrained(REPO)
    assert loaded.recommend(histories).item_ids.shape == (8, 10)
    assert {path.rpartition("/")[2] for path in server.asked("HEAD")} == FILES
    cached = {path.name for path in (tmp_path / "HF_HUB_CACHE").rglob("snapshots/*/*")}
    assert cached == FILES


# --- repositories that cannot be right ---


def test_files_that_cannot_be_right_are_not_downloaded(server, recommender, tmp_path):
    server.add(REPO, {"README.md": b"nothing here"})
    assert "has no config.json: expected what Recommender.push_to_hub" in load_error()
    server.add(REPO, {"config.json": b'{"model_type": "qwen3"}'})
    assert "has format None" in load_error()
    ours = content_of(recommender, tmp_path / "saved")
    for name in FILES - {"config.json"}:
        server.requests.clear()
        server.add(REPO, {path: content for path, content in ours.items() if path != name})
        assert f"has no {name}" in load_error()
        server.add(REPO, ours | {name: ours[name][:-1] + b"?"})
        assert f"{name} of {REPO}@" in load_error() and not server.asked("HEAD", name)


def test_a_damaged_cache_is_noticed(pushed):
    Recommender.from_pretrained(REPO)
    path = hub.fetch(pushed, {"model.safetensors": None}) / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "model.safetensors is not the file" in load_error(revision=pushed.commit)


@pytest.mark.parametrize("where", ["shop", "../shop", "ann/sh op"])
def test_a_name_that_is_neither_a_folder_nor_a_repository(server, recommender, tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    assert "neither a folder nor" in load_error(where=where)
    assert "neither a folder nor" in error_of(lambda: recommender.push_to_hub(where))
    assert server.requests == []


def test_a_folder_wins_and_has_no_revision(server, recommender, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recommender.save_pretrained("ann/shop")
    assert Recommender.from_pretrained("ann/shop").source is None and server.requests == []
    assert "has no revision 'main'" in load_error(revision="main")


# --- who may ---


def test_a_token_must_have_the_right(server, recommender, pushed, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "without a token: for a private one set HF_TOKEN" in load_error()
    assert "no token to push" in error_of(lambda: recommender.push_to_hub(REPO))
    server.repositories[REPO].private = False
    assert Recommender.from_pretrained(REPO).source == pushed
    monkeypatch.setenv("HF_TOKEN", "sesame_wrong")
    for call in (lambda: Recommender.from_pretrained(REPO), lambda: recommender.push_to_hub(REPO)):
        assert "does not know the token" in error_of(call)
    assert list(server.repositories) == [REPO] and server.repositories[REPO].refs["main"] == pushed.commit


def test_a_token_that_is_none_is_not_repeated(recommender, server, monkeypatch):
    broken = "sesame_ann\nX-Evil: 1"  # as from a file; the environment strips some
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: broken)
    assert "more than printable ASCII" in load_error()
    assert "more than printable ASCII" in error_of(lambda: recommender.push_to_hub(REPO)) and server.requests == []


@pytest.mark.parametrize("private", [True, False])
def test_a_push_never_changes_who_may_see(server, recommender, private):
    recommender.push_to_hub(REPO, private=not private)
    text = error_of(lambda: recommender.push_to_hub(REPO, private=private))
    assert ("is public, expected a private one" if private else "is private, expected a public one") in text
    assert server.repositories[REPO].private != private and len(server.repositories[REPO].commits) == 2


# --- a network that fails ---


def test_a_pinned_commit_in_the_cache_needs_no_network(server, pushed, histories, monkeypatch):
    loaded = Recommender.from_pretrained(REPO)
    server.requests.clear()
    again = Recommender.from_pretrained(REPO, revision=pushed.commit)
    assert server.requests == [] and again.source == pushed
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = Recommender.from_pretrained(REPO, revision=pushed.commit)
    np.testing.assert_array_equal(offline.recommend(histories).item_ids, loaded.recommend(histories).item_ids)
    assert Recommender.from_pretrained(REPO).source == pushed  # main, as it was last seen
    text = load_error(ConnectionError, "v1")
    assert text == f"{REPO}: HF_HUB_OFFLINE is set, and the cache does not have all files of v1"
    assert "HF_HUB_OFFLINE is set" in load_error(ConnectionError, "0" * 40)


def test_without_a_network(recommender, server, monkeypatch):
    point_to(monkeypatch, "http://127.0.0.1:9")  # nobody listens there
    for call in (lambda: Recommender.from_pretrained(REPO), lambda: recommender.push_to_hub(REPO)):
        assert f"{REPO}: the Hub does not answer" in error_of(call, ConnectionError)


@pytest.mark.parametrize(("status", "kind"), [(503, ConnectionError), (429, ConnectionError), (418, ValueError)])
def test_a_hub_that_does_not_work(server, recommender, status, kind):
    server.fail["api/"] = status
    for call in (lambda: Recommender.from_pretrained(REPO), lambda: recommender.push_to_hub(REPO)):
        assert str(status) in error_of(call, kind)


def test_half_a_snapshot_is_never_loaded_and_the_rest_is_fetched_later(server, pushed, tmp_path, monkeypatch):
    weights = hashlib.sha256(server.repositories[REPO].files["model.safetensors"]).hexdigest()
    server.fail[f"large/{weights}"] = 503
    assert "503" in load_error(ConnectionError)
    snapshot = tmp_path / "HF_HUB_CACHE" / "models--ann--shop" / "snapshots" / pushed.commit
    assert {path.name for path in snapshot.iterdir()} == FILES - {"model.safetensors"}
    load_error(where=snapshot)  # nor as a folder
    server.fail.clear()
    server.requests.clear()
    assert Recommender.from_pretrained(REPO).source == pushed
    assert {path.rpartition("/")[2] for path in server.asked("GET", "/large/")} == {weights}


def test_a_push_that_breaks_off_changes_nothing(server, recommender, pushed, shop, new_timeline):
    other = Recommender(new_timeline(seed=1), shop.ids, shop.items)
    server.fail["commit"] = 403
    assert "no right" in error_of(lambda: other.push_to_hub(REPO))
    assert server.repositories[REPO].refs["main"] == pushed.commit
    server.fail.clear()
    server.requests.clear()
    source = other.push_to_hub(REPO)
    assert not server.asked("PUT") and server.repositories[REPO].refs["main"] == source.commit  # nothing is sent again


def test_the_service_says_where_its_model_came_from(server, pushed, caplog):
    with caplog.at_level("INFO"):
        app = web.load_app(REPO, revision="main")
    assert app.state.service.facts()["source"] == str(pushed)
    [loaded] = [record for record in caplog.records if record.getMessage() == "loaded"]
    assert loaded.facts["source"] == str(pushed)
