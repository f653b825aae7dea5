"""Catalogues of two items and of few different texts: what chapters 01 to 05 call works, or says how many it needs."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids import assignment, codebooks, embed, quantize, rqvae
from semid_lib.queries import filters, synthesis
from semid_lib.search import retrieval
from semid_lib.studies import control_codes

TEXTS = ("Red gel pen", "Blue tent for camping", "Green wool socks", "Large copper kettle", "Brass lamp with shade")


@st.composite
def catalogues(draw, min_distinct=2):
    """Vectors and titles of 1 to 5 different texts, some of them several times; with the zero vector of no text."""
    n_distinct = draw(st.integers(min_distinct, 5))
    rows = [*range(n_distinct), *draw(st.lists(st.integers(0, n_distinct - 1), max_size=20))]
    rows = draw(st.permutations(rows))
    vectors = np.random.default_rng(draw(st.integers(0, 9))).normal(size=(5, 8)).astype(np.float32)
    vectors[draw(st.integers(0, 4))] *= draw(st.sampled_from([0, 1]))
    return embed.normalize(vectors[rows]), [TEXTS[row] for row in rows]


def assert_a_set_of_ids(quantizer, vectors):
    """Equal vectors have equal codes; each policy gives each item an ID of its own."""
    np.testing.assert_array_equal(quantizer.encode(vectors), quantizer.codes)
    equal = (vectors[:, None] == vectors).all(axis=2)
    assert (quantizer.codes[:, None] == quantizer.codes).all(axis=2)[equal].all()
    for policy in ("disambiguate", "reassign", "sinkhorn"):
        ids, report = assignment.resolve_collisions(quantizer.codes, vectors, quantizer, policy)
        assert PrefixTrie.build(ids.unique).n_items == len(vectors)
        assert np.isfinite(report.distortion_after)


@given(catalogues())
@settings(max_examples=15, deadline=None)
def test_residual_k_means_is_exact(catalogue):
    vectors, _ = catalogue
    size = quantize.suggest_codebook_size(len(vectors))
    fitted = quantize.fit_residual_kmeans(vectors, 3, size, 5)
    np.testing.assert_allclose(fitted.decode(fitted.codes), vectors, atol=1e-6)
    assert fitted.sizes == (size,) * 3
    assert_a_set_of_ids(fitted, vectors)
    assert codebooks.distortion(vectors, fitted.decode(fitted.encode(vectors, beam_width=8))) < 1e-10


@pytest.mark.slow
@given(catalogues())
@settings(max_examples=4, deadline=None)
def test_an_rq_vae(catalogue):
    vectors, _ = catalogue
    config = rqvae.RQVAEConfig(
        n_levels=2, codebook_size=quantize.suggest_codebook_size(len(vectors)), n_epochs=1, hidden_dim=8
    )
    assert_a_set_of_ids(rqvae.fit_rqvae(vectors, config), vectors)


@given(catalogues(min_distinct=1), st.booleans())
@settings(max_examples=12, deadline=None)
def test_controls_and_figures(catalogue, one_category):
    vectors, titles = catalogue
    labels = np.array(["shop"] * len(titles) if one_category else titles)
    size = quantize.suggest_codebook_size(len(vectors))
    tree = control_codes.category_codes(vectors, labels, 3, size)
    for codes in (tree, control_codes.random_codes(len(vectors), 3, size)):
        used, diverse = codebooks.utilization(codes, size), codebooks.perplexity(codes, size)
        assert ((used > 0) & (used <= 1) & (diverse >= 1 - 1e-9)).all()
        assert 0 <= codebooks.collision_rate(codes) < 1
        stability = codebooks.prefix_stability(codes, codes)
        np.testing.assert_allclose(stability[~np.isnan(stability)], 1)
        if len(vectors) > 1:
            assert (codebooks.neighbour_preservation(vectors, codes).share <= 1).all()
        purity = codebooks.prefix_purity(codes[:, :1], labels, n_resamples=5)
        assert np.isnan(purity.adjusted) or purity.observed <= 1


@given(catalogues(), st.integers(0, 6))
@settings(max_examples=15, deadline=None)
def test_new_items_find_a_place_under_frozen_codebooks(catalogue, n_new):
    vectors, _ = catalogue
    fitted = quantize.fit_residual_kmeans(vectors, 3, quantize.suggest_codebook_size(len(vectors)), 5)
    before, _ = assignment.resolve_collisions(fitted.codes, vectors, fitted)
    arrived = np.resize(vectors, (n_new, 8))
    after, report = assignment.add_items(before, arrived, fitted)
    assert report.n_items == n_new
    np.testing.assert_array_equal(after.unique[: len(before), : before.unique.shape[1]], before.unique)
    assert PrefixTrie.build(after.unique).n_items == len(before) + n_new
    errors = [codebooks.squared_errors(v, fitted.decode(fitted.encode(v))) for v in (vectors, arrived)]
    assert not codebooks.drift(*errors).refit


@pytest.mark.parametrize("vectors", [np.ones((1, 4)), np.ones((9, 4)), np.zeros((9, 4)), np.ones((0, 4))])
def test_one_text_has_no_semantic_ids_and_says_so(vectors):
    config = rqvae.RQVAEConfig(codebook_size=4)
    for fit in (quantize.fit_residual_kmeans, lambda v: rqvae.fit_rqvae(v, config)):
        with pytest.raises(ValueError, match=f"at least {quantize.MIN_ITEMS} items with different texts"):
            fit(vectors)


@given(catalogues(min_distinct=1))
@settings(max_examples=15, deadline=None)
def test_search(catalogue):
    vectors, titles = catalogue
    bm25, dense = retrieval.BM25(titles), retrieval.Dense(vectors)
    for method in (bm25, dense, retrieval.FusedScores(dense, bm25)):
        found = method.search([titles[0]], 10, None, vectors[:1])
        assert found.items.shape == (1, 10)
        assert titles[found.items[0, 0]] == titles[0] or (method is dense and not vectors[0].any())
        real = found.items[found.items >= 0].tolist()
        assert len(set(real)) == len(real) <= len(titles)


@given(catalogues(min_distinct=1))
@settings(max_examples=20, deadline=None)
def test_queries(catalogue):
    vectors, titles = catalogue
    items = pd.DataFrame({"item_id": [f"SKU-{row}" for row in range(len(titles))], "title": titles})
    written = synthesis.synthesize(items, 4)
    assert set(written["item"]) == set(range(len(items)))
    kept, _ = filters.filter_queries(written, titles)
    of_items = vectors[kept["item"].to_numpy()]
    assert (filters.round_trip_ranks(kept["item"], of_items, vectors)[of_items.any(axis=1)] == 1).all()
    try:
        split = filters.split_queries(kept, [])
    except ValueError as error:
        assert "write more per item, or add items" in str(error)
    else:
        assert len(split.train) + len(split.test) + split.n_dropped == len(kept)
