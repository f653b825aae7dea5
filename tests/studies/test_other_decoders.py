"""All ways to constrain a step choose what brute force chooses, so that their times can be compared."""

import numpy as np
import pytest

from semid_lib.studies import other_decoders

NEEDS = {
    "TransformersPeer": "transformers",
    "OutlinesPeer": "outlines_core",
    "XgrammarPeer": "xgrammar",
    "LLGuidancePeer": "llguidance",
}


@pytest.mark.parametrize(("n_levels", "codebook_size"), [(4, 8), (3, 16)])
@pytest.mark.parametrize("kind", ["TriePeer", "CompiledTriePeer", "StaticPeer", "WideStaticPeer", *NEEDS])
def test_peer_selects_as_brute_force(kind, n_levels, codebook_size):
    if kind in NEEDS:
        pytest.importorskip(NEEDS[kind])
    ids = other_decoders.random_ids(300, n_levels, codebook_size, seed=1)
    peer = getattr(other_decoders, kind)(ids, codebook_size)
    for level in range(n_levels):
        for beam_width in (1, 4, 30):  # 30 beams are more than there are codes at level 0
            step = other_decoders.random_step(ids, level, 3, beam_width, codebook_size, seed=level)
            other_decoders.check(peer, ids, level, step)


def test_static_carries_states_to_the_next_step():
    ids = other_decoders.random_ids(300, 4, 8, seed=2)
    peer = other_decoders.StaticPeer(ids, 8)
    for level in range(3):
        step = other_decoders.random_step(ids, level, 2, 5, 8, seed=3)
        _, beams, tokens = peer.step(level, peer.prepare(level, step.prefixes), step.scores, step.log_probabilities)
        codes = (tokens - other_decoders.FIRST - 8 * level)[..., None]
        longer = step.prefixes.gather(1, beams[..., None].expand(-1, -1, level))
        assert peer.carried.equal(peer.prepare(level + 1, other_decoders.torch.cat([longer, codes], dim=2)))


def test_a_comparison_has_a_line_for_each_method():
    rows = other_decoders.compare(other_decoders.random_ids(200, 3, 8), n_users=2, beam_width=5, seconds=0.0)
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
        other_decoders.compare(other_decoders.random_ids(50, 3, 8), 2, 5, seconds=0.0)


def test_check_finds_a_wrong_choice():
    ids = other_decoders.random_ids(300, 3, 16, seed=1)
    peer = other_decoders.StaticPeer(ids, 16)
    peer.forbidden[1] = peer.forbidden[1] & False
    with pytest.raises(ValueError, match="not the best values"):
        other_decoders.check(peer, ids, 1, other_decoders.random_step(ids, 1, 3, 30, 16))
