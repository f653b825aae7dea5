"""All ways to constrain a step choose what brute force chooses, so that their times can be compared."""

import numpy as np
import pytest
import torch

from semid_lib.studies import decoding_study, other_decoders

NEEDS = {
    "TransformersPeer": "transformers",
    "OutlinesPeer": "outlines_core",
    "XgrammarPeer": "xgrammar",
    "LLGuidancePeer": "llguidance",
}


def check(peer, ids: np.ndarray, level: int, step) -> None:
    """The answer of a peer has the values of brute force, each of another real continuation."""
    truth = torch.full((*step.scores.shape, peer.n_tokens), -torch.inf)
    for user, beam in np.ndindex(step.scores.shape):
        follows = (ids[:, :level] == step.prefixes[user, beam].numpy()).all(axis=1)
        token = torch.from_numpy(peer.tokens(ids[follows, : level + 1])[:, -1])
        values = step.log_probabilities[user * step.scores.shape[1] + beam, token]
        truth[user, beam, token] = values + step.scores[user, beam]
    values, beams, tokens = peer.step(level, peer.prepare(level, step.prefixes), step.scores, step.log_probabilities)
    values, order = values.sort(dim=1, descending=True)
    beams, tokens = beams.gather(1, order), tokens.gather(1, order)
    place, alive, truth = beams * peer.n_tokens + tokens, values > -torch.inf, truth.flatten(1)
    assert values.equal(truth.sort(dim=1, descending=True).values[:, : values.shape[1]]), "not the best values"
    assert all(len(row[real].unique()) == real.sum() for row, real in zip(place, alive, strict=True))
    assert truth.gather(1, place)[alive].equal(values[alive])


@pytest.mark.parametrize(("n_levels", "codebook_size"), [(4, 8), (3, 16)])
@pytest.mark.parametrize("kind", ["TriePeer", "CompiledTriePeer", "StaticPeer", "WideStaticPeer", *NEEDS])
def test_peer_selects_as_brute_force(kind, n_levels, codebook_size):
    if kind in NEEDS:
        pytest.importorskip(NEEDS[kind])
    ids = other_decoders.random_ids(300, n_levels, codebook_size, seed=1)
    peer = getattr(other_decoders, kind)(ids, codebook_size)
    for level in range(n_levels):
        for beam_width in (1, 4, 30):  # 30 beams are more than there are codes at level 0
            step = decoding_study.random_step(ids, level, 3, beam_width, codebook_size, seed=level)
            check(peer, ids, level, step)


def test_static_carries_states_to_the_next_step():
    ids = other_decoders.random_ids(300, 4, 8, seed=2)
    peer = other_decoders.StaticPeer(ids, 8)
    for level in range(3):
        step = decoding_study.random_step(ids, level, 2, 5, 8, seed=3)
        _, beams, tokens = peer.step(level, peer.prepare(level, step.prefixes), step.scores, step.log_probabilities)
        codes = (tokens - other_decoders.FIRST - 8 * level)[..., None]
        longer = step.prefixes.gather(1, beams[..., None].expand(-1, -1, level))
        assert peer.carried.equal(peer.prepare(level + 1, torch.cat([longer, codes], dim=2)))


def test_a_comparison_has_a_line_for_each_method():
    rows = decoding_study.compare(other_decoders.random_ids(200, 3, 8), n_users=2, beam_width=5, seconds=0.0)
    assert {"here, torch", "transformers, dict trie", "STATIC"} <= {row["method"] for row in rows}
    for row in rows:
        assert row["items"] == 200
        assert all(value > 0 for name, value in row.items() if name.endswith(" ms") or name == "build s")
        assert row["mean ms"] == pytest.approx(np.mean([row[f"level {level} ms"] for level in range(3)]))


def test_a_comparison_refuses_a_method_that_chooses_otherwise(monkeypatch):
    class Wrong(other_decoders.TriePeer):
        name, limit = "wrong", 30  # alone with its part of the items

        def step(self, *arguments):
            values, *rest = super().step(*arguments)
            return values - 1, *rest

    monkeypatch.setattr(other_decoders, "PEERS", (other_decoders.TriePeer, Wrong))
    with pytest.raises(ValueError, match="wrong chooses other beams than here, torch at level 0"):
        decoding_study.compare(other_decoders.random_ids(50, 3, 8), 2, 5, seconds=0.0)
